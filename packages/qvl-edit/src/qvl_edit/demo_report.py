"""The page of the demo: sources, what was wanted and what was drawn, of digits and of photographs; losses; controls."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qvl_core.demo import Bar, figures
from qvl_core.report import (
    Block,
    Card,
    Cards,
    Code,
    Curves,
    Histogram,
    Picture,
    Section,
    Table,
    Text,
    write,
)
from qvl_core.run import RunFolder
from qvl_data.drawing.sheets import sheet
from qvl_data.example.pictures import PHOTOS
from qvl_data.example.recoloured import CHANGES
from qvl_data.shown import png
from qvl_edit.outcomes import CLOSE

if TYPE_CHECKING:
    from qvl_edit.demo import Trial

BARS = {  # for the mean over five seeds, of a single one for `seconds`
    **{f"success_{change}": Bar(0.97) for change in CHANGES},
    "mean_error": Bar(0.05, at_most=True),
    "untrained_success": Bar(0.0, at_most=True),
    "shuffled_success": Bar(0.4, at_most=True),
    "seconds": Bar(240, at_most=True),
}
SHOWN = {  # what these figures are called, and their chance
    **{f"success_{change}": (made.said["en"], None) for change, made in CHANGES.items()},
    "mean_error": ("mean error, of the 2 from black to white", None),
    "untrained_success": ("untrained, right", None),
    "shuffled_success": ("instructions shuffled, right", 1 / 3),
    "seconds": ("CPU seconds, until the page is written", None),
}
COLUMNS = 7  # pictures of a sheet, of which there are more
COMMAND = "qvl-edit extract lora_2509 data.train=my_pairs.jsonl && qvl-edit train lora_2509 data.train=my_pairs.jsonl"


def write_report(out: Path, values: Mapping[str, Any], digits: "Trial", photos: "Trial") -> Path:
    """Write out/report.html.

    digits, photos  every edit of held-out digits, and of crops of photographs
    """
    run = RunFolder(out / "runs" / "edits")
    sections = [
        Section("What it learned", [figures(values, BARS, SHOWN), _explanation()]),
        Section(
            "Held-out digits",
            [_sheets(digits), _errors(digits)],
            "Some sources, below them what is right, and what was drawn; in a red frame what is wrong.",
        ),
        Section("Photographs", [_photographs(values), _sheets(photos)]),
        Section("Controls", [_controls(values)]),
        Section("While it learned", [_losses(run)]),
        Section("The same with Qwen-Image-Edit-2509", [Code(COMMAND, "adapters, 1024 pixels")]),
    ]
    lead = (
        f"A Qwen-Image-Edit of 1.1 million parameters learns three edits from random weights in "
        f"{values['seconds']:.0f} CPU seconds (seed {values['seed']}); its text encoder is random, too, and stays so. "
        "Digits are real, written by hand, in two random colours each; those below were never trained on."
    )
    return write(RunFolder(out), sections, "qvl-edit demo: three edits", lead)


def _explanation() -> Text:
    return Text(
        "Right is a drawing that is nearer to the edit that was asked for than to the other two and to the source, and "
        f"whose mean absolute error is below {CLOSE}, where black and white are 2 apart. Pictures pass an autoencoder "
        "that only rearranges pixels, so that nothing is lost there. Bars are for the mean over five seeds; a single "
        "seed may lie 0.02 beyond."
    )


def _sheets(edited: "Trial") -> Cards:
    """For each edit sources, below them what is right, and below that what was drawn."""
    cards = []
    for place, (name, change) in enumerate(CHANGES.items()):
        shown = slice(place, place + COLUMNS * len(CHANGES), len(CHANGES))
        rows = [edited.sources[shown], edited.wanted[shown], edited.drawn[shown]]
        columns, right = len(rows[0]), edited.outcomes.right[shown]
        marks = np.concatenate([np.ones(2 * columns, bool), right])
        title = f"{change.said['en']}: {edited.success(name):.0%} of {len(edited.drawn) // len(CHANGES)}"
        picture = sheet([image for row in rows for image in row], marks, columns)
        cards.append(Card(title, [Picture(png(picture))]))
    return Cards(cards)


def _errors(edited: "Trial") -> Histogram:
    edges = [round(0.01 * step, 2) for step in range(16)]
    errors = edited.outcomes.errors
    counts = [int(((errors >= low) & (errors < high)).sum()) for low, high in pairwise(edges)]
    beyond = int((errors >= edges[-1]).sum())
    note = f"{beyond} of {len(errors)} are beyond {edges[-1]:g}." if beyond else ""
    return Histogram("Mean error of each drawing", edges, counts, note)


def _photographs(values: Mapping[str, Any]) -> Text:
    return Text(
        f"Crops of {len(PHOTOS)} photographs, which look like nothing that was trained on: "
        f"{values['photo_success']:.0%} of their edits are right, at a mean error of {values['photo_error']:.2f}. No "
        "bar is set for them; they show how far three edits of digits carry."
    )


def _controls(values: Mapping[str, Any]) -> Block:
    trained = sum(values[f"success_{change}"] for change in CHANGES) / len(CHANGES)
    rows = [
        {"what": "by its instruction", "right": round(trained, 3)},
        {"what": "the same model before its first step", "right": round(values["untrained_success"], 3)},
        {"what": "by an instruction at random", "right": round(values["shuffled_success"], 3)},
    ]
    note = "An instruction at random is the right one in a third of the cases: who reads it can be right no more often."
    return Table(rows, note=note)


def _losses(run: RunFolder) -> Curves:
    steps = run.read_metrics()
    found = {
        title: [(record["step"], record[name]) for record in steps if name in record]
        for title, name in {"training": "loss", "held-out digits": "validation_loss"}.items()
    }
    return Curves("Loss", found, log=True)
