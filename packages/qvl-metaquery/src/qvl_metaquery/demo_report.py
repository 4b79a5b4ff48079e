"""The page of the demo: drawings by name and from pictures, how one comes about, what guidance trades, and controls."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from qvl_core.demo import Bar, figures
from qvl_core.report import Card, Cards, Code, Picture, Section, Table, Text, write
from qvl_core.report.drawn import drawn_section
from qvl_core.run import RunFolder
from qvl_data.example.digits import digit_png
from qvl_data.example.drawings import caption
from qvl_data.shown import png
from qvl_metaquery.demo_blocks import films, guided, loss, sheet
from qvl_metaquery.demo_parts import Drawings

BARS = {  # for the mean over five seeds, of a single one for `seconds`
    "recognised": Bar(0.97),
    "diversity": Bar(0.7),
    "i2i_success": Bar(0.9),
    "untrained_recognised": Bar(0.3, at_most=True),
    "shuffled_recognised": Bar(0.3, at_most=True),
    "i2i_shuffled": Bar(0.3, at_most=True),
    "seconds": Bar(300, at_most=True),
}
CALLED = {  # what these figures are called, and their chance
    "recognised": ("drawings that are recognised", 0.1),
    "diversity": ("their diversity, of real digits'", None),
    "i2i_success": ("pictures inverted, recognised", 0.1),
    "untrained_recognised": ("untrained, recognised", 0.1),
    "shuffled_recognised": ("prompts shuffled, recognised", 0.1),
    "i2i_shuffled": ("pictures shuffled, recognised", 0.1),
    "seconds": ("CPU seconds, until the page is written", None),
}
PAIRS = 12
COMMAND = "qvl-metaquery train qwen3vl2b_sana data.train=my_pictures --out runs/mine"


def write_report(
    out: Path,
    values: Mapping[str, Any],
    sweep: Mapping[float, Drawings],
    shown: Sequence[int],
    inverted: Drawings,
    filmed: Mapping[str, Sequence[Image.Image]],
) -> Path:
    """Write out/report.html.

    sweep   drawings of all digits by guidance
    shown   digits of the set that were to be inverted, by number, and `inverted` what came of them
    filmed  what was there after each step, of a few digits
    """
    guidance = values["guidance"]
    notes = {"recognised": f"guidance {guidance:g}", "diversity": "the same drawings"}
    base, draw, edit = (RunFolder(out / "runs" / name) for name in ("base", "draw", "edit"))
    traded = {at: {"recognised": one.recognised, "diversity": one.diversity} for at, one in sweep.items()}
    sections = [
        Section("What it learned", [figures(values, BARS, CALLED, notes), _explanation()]),
        Section(
            "Drawn by name",
            [_sheets(sweep[guidance])],
            f"All drawings of each prompt, at guidance {guidance:g}; in a red frame what was taken for another digit.",
        ),
        Section("From noise to a digit", [films(filmed)], "What is there after some of the 20 steps."),
        Section("What guidance trades", guided("Recognised and diversity", traded)),
        Section(
            "Drawn from a picture",
            [_pairs(shown, inverted)],
            "A held-out digit, and what was drawn of it and the words “the same digit, inverted”.",
        ),
        Section("Controls", [_controls(values)]),
        Section(
            "While it learned",
            [
                *drawn_section(draw.samples).blocks,
                loss("The base, which digit it is", base),
                loss("Stage one, by name", draw),
                loss("Stage two, from pictures", edit),
            ],
        ),
        Section("The same with Qwen3-VL-2B and Sana", [Code(COMMAND, "512 pixels, 256 queries")]),
    ]
    lead = (
        "A Qwen3-VL of 1.7 million parameters learns which digit is shown or named, and is frozen; 8 queries ask it, "
        "and a connector and a Sana of 0.8 million learn to draw what it says, in "
        f"{values['seconds']:.0f} CPU seconds (seed {values['seed']}). The judge is the nearest of 1,257 real training "
        "digits."
    )
    return write(RunFolder(out), sections, "qvl-metaquery demo: digits that are drawn", lead)


def _explanation() -> Text:
    return Text(
        "Recognised: the nearest real training digit, of 64 pixels, is one of the digit that was asked for. Diversity: "
        "the mean distance between drawings of the same digit, over that between real ones; one good seven drawn again "
        "and again would have none. Pictures are held out; a drawing of one is inverted back before it is judged. Bars "
        "are for the mean over five seeds; a single seed may lie 0.02 beyond."
    )


def _sheets(drawings: Drawings) -> Cards:
    """A row of drawings for each digit."""
    sheets = []
    for digit in range(10):
        rows = np.flatnonzero(drawings.asked == digit).tolist()
        right = drawings.right[rows]
        title = f"{caption(digit)}: {right.sum()} of {len(rows)} recognised"
        sheets.append(sheet(title, [drawings.images[place] for place in rows], right))
    return Cards(sheets)


def _pairs(shown: Sequence[int], inverted: Drawings) -> Cards:
    cards = [
        Card(
            f"a {asked}" if asked == read else f"a {asked}, drawn like a {read}",
            [Picture(digit_png(number), "shown"), Picture(png(image), "drawn", "good" if asked == read else "bad")],
            becomes=True,
        )
        for number, image, asked, read in zip(shown, inverted.images, inverted.asked, inverted.read, strict=True)
    ]
    return Cards(cards[:PAIRS])


def _controls(values: Mapping[str, Any]) -> Table:
    rows = [
        {"what": "drawn by name", "recognised": values["recognised"]},
        {"what": "the same model before its first step", "recognised": values["untrained_recognised"]},
        {"what": "drawn by names that were shuffled", "recognised": values["shuffled_recognised"]},
        {"what": "drawn from a picture", "recognised": values["i2i_success"]},
        {"what": "drawn from pictures that were shuffled", "recognised": values["i2i_shuffled"]},
    ]
    return Table(rows, note="Chance is 0.1. A control that is recognised would mean that the judge is fooled.")
