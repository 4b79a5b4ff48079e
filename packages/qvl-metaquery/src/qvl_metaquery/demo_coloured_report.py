"""The page of the coloured demo: drawings by name, what the autoencoder keeps, what guidance trades, and controls."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from qvl_core.demo import Bar, figures
from qvl_core.report import Card, Cards, Code, Picture, Section, Table, Text, write
from qvl_core.report.drawn import drawn_section
from qvl_core.run import RunFolder
from qvl_data.example.coloured import COLOURS
from qvl_data.shown import png
from qvl_metaquery.coloured_judge import CAPTIONS
from qvl_metaquery.demo_blocks import films, guided, loss, sheet
from qvl_metaquery.demo_parts import Drawings

BARS = {  # for the mean over three seeds; of each for `reconstruction_error` and `seconds`
    "recognised": Bar(0.92),
    "digits_recognised": Bar(0.92),
    "colours_recognised": Bar(0.98),
    "diversity": Bar(0.58),
    "untrained_recognised": Bar(0.1, at_most=True),
    "shuffled_recognised": Bar(0.1, at_most=True),
    "reconstruction_error": Bar(0.025, at_most=True),
    "seconds": Bar(600, at_most=True),
}
CALLED = {  # what these figures are called, and their chance
    "recognised": ("drawings of the digit in its colour", 0.02),
    "digits_recognised": ("the digit is right", 0.1),
    "colours_recognised": ("the colour is right", 0.2),
    "diversity": ("diversity of shapes, of real digits'", None),
    "untrained_recognised": ("untrained, recognised", 0.02),
    "shuffled_recognised": ("prompts shuffled, recognised", 0.02),
    "reconstruction_error": ("error of the autoencoder, held out", None),
    "seconds": ("CPU seconds, until the page is written", None),
}
PAIRS = 6
PAIR = len(COLOURS) + 1  # from one of them to the next in the list of held-out pictures: another digit, another colour
COMMAND = "qvl-metaquery train qwen3vl2b_sana data.train=my_pictures --out runs/mine"


def digits_right(drawings: Drawings) -> float:
    """The part whose digit is right, in whichever colour."""
    return float((drawings.read % 10 == drawings.asked % 10).mean())


def colours_right(drawings: Drawings) -> float:
    """The part whose colour is right, of whichever digit."""
    return float((drawings.read // 10 == drawings.asked // 10).mean())


def write_report(
    out: Path,
    values: Mapping[str, Any],
    sweep: Mapping[float, Drawings],
    untrained: Drawings,
    held_out: Sequence[Image.Image],
    again: Drawings,
    filmed: Mapping[str, Sequence[Image.Image]],
) -> Path:
    """Write out/report.html.

    sweep      drawings of all prompts by guidance
    untrained  those of the model before its first step
    held_out   real pictures, and `again` how the first of them come back from the autoencoder
    filmed     what was there after each step, of a few drawings
    """
    guidance = values["guidance"]
    notes = {"recognised": f"guidance {guidance:g}", "diversity": "the same drawings"}
    draw = RunFolder(out / "runs" / "draw")
    sections = [
        Section("What it learned", [figures(values, BARS, CALLED, notes), _explanation()]),
        Section(
            "Drawn by name",
            [_sheets(sweep[guidance])],
            f"All drawings of each prompt, at guidance {guidance:g}: zero to nine from left to right. In a red frame "
            "what was taken for another digit or another colour.",
        ),
        Section("From noise to a digit", [films(filmed)], "What is there after some of the 20 steps."),
        Section("What guidance trades", guided("By guidance", {at: _figures(one) for at, one in sweep.items()})),
        Section(
            "What the autoencoder keeps",
            [_pairs(held_out, again), loss("Mean absolute difference", RunFolder(out / "base"))],
            "Held-out pictures, and what comes back of them from 4 x 4 places of 4 numbers. Pixels run from -1 to 1.",
        ),
        Section("Controls", [_controls(values), _untrained(untrained)]),
        Section("While it learned", [*drawn_section(draw.samples).blocks, loss("Drawing", draw)]),
        Section("The same with Qwen3-VL-2B and Sana", [Code(COMMAND, "512 pixels, 256 queries")]),
    ]
    lead = (
        "A Qwen3-VL of 1.7 million random, frozen parameters is asked by 8 learned queries; a connector and a Sana of "
        "0.8 million learn to draw what it says, in the latents of an autoencoder of 0.6 million that was trained just "
        f"before: {values['seconds']:.0f} CPU seconds together (seed {values['seed']})."
    )
    return write(RunFolder(out), sections, "qvl-metaquery demo: digits that are drawn in colours", lead)


def _explanation() -> Text:
    return Text(
        "The digit is that of the nearest real training digit, by ink alone; the colour is that of the nearest known "
        "ink. Neither rule was trained, and of held-out real pictures they read what the table of controls says. "
        "Diversity: the mean distance between the shapes of drawings of the same digit, over that between real ones. "
        "Bars are for the mean over three seeds; a single seed may lie 0.02 beyond."
    )


def _figures(drawings: Drawings) -> dict[str, float]:
    return {
        "digit in its colour": drawings.recognised,
        "digit": digits_right(drawings),
        "colour": colours_right(drawings),
        "diversity": drawings.diversity,
    }


def _sheets(drawings: Drawings) -> Cards:
    """A sheet for each colour, with a column for each digit."""
    sheets = []
    for number, colour in enumerate(COLOURS):
        own = np.flatnonzero(drawings.asked // 10 == number)  # digit by digit
        rows = own.reshape(10, -1).T.ravel().tolist()
        right = drawings.right[rows]
        title = f"{colour}: {right.sum()} of {len(rows)} recognised"
        sheets.append(sheet(title, [drawings.images[place] for place in rows], right))
    return Cards(sheets)


def _pairs(held_out: Sequence[Image.Image], again: Drawings) -> Cards:
    """Some of different digits, each in another colour."""
    cards = [
        Card(
            CAPTIONS[again.asked[place]],
            [
                Picture(png(held_out[place]), "held out"),
                Picture(png(again.images[place]), "back", "good" if again.right[place] else "bad"),
            ],
            becomes=True,
        )
        for place in range(0, PAIRS * PAIR, PAIR)
    ]
    return Cards(cards)


def _controls(values: Mapping[str, Any]) -> Table:
    rows = [
        {"what": "drawn by name", "recognised": values["recognised"]},
        {"what": "the same model before its first step", "recognised": values["untrained_recognised"]},
        {"what": "drawn by names that were shuffled", "recognised": values["shuffled_recognised"]},
        {"what": "held-out real pictures", "recognised": values["real_recognised"]},
        {"what": "the same after the way through the autoencoder", "recognised": values["reconstructed_recognised"]},
    ]
    note = (
        "Chance is 0.02. A control that is recognised would mean that the judge is fooled. Of held-out pictures it "
        f"reads {100 * values['real_digits_recognised']:.1f} % of the digits and "
        f"{100 * values['real_colours_recognised']:.1f} % of the colours right."
    )
    return Table(rows, note=note)


def _untrained(drawings: Drawings) -> Cards:
    """One drawing of each digit in the first colour."""
    first = np.flatnonzero(np.diff(drawings.asked, prepend=-1))[:10].tolist()
    images = [drawings.images[place] for place in first]
    return Cards([sheet(f"{COLOURS[0]} zero to nine, before the first step", images, drawings.right[first], columns=5)])
