"""The page of the demo: drawings by name and from pictures, how one comes about, what guidance trades, and controls."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from qvl_core.demo import Bar
from qvl_core.report import (
    Block,
    Card,
    Cards,
    Code,
    Curves,
    Figure,
    Figures,
    Picture,
    Pictures,
    Section,
    Strip,
    Table,
    Text,
    write,
)
from qvl_core.run import RunFolder
from qvl_data.example.drawings import caption
from qvl_metaquery.preview import png
from qvl_metaquery.report import drawn_section, spread

if TYPE_CHECKING:
    from qvl_metaquery.demo import Drawings

BARS = {  # for the mean over five seeds, of a single one for `seconds`
    "recognised": Bar(0.97),
    "diversity": Bar(0.7),
    "i2i_success": Bar(0.9),
    "untrained_recognised": Bar(0.3, at_most=True),
    "shuffled_recognised": Bar(0.3, at_most=True),
    "i2i_shuffled": Bar(0.3, at_most=True),
    "seconds": Bar(300, at_most=True),
}
SHOWN = {  # what these figures are called, and their chance
    "recognised": ("drawings that are recognised", 0.1),
    "diversity": ("their diversity, of real digits'", None),
    "i2i_success": ("pictures inverted, recognised", 0.1),
    "untrained_recognised": ("untrained, recognised", 0.1),
    "shuffled_recognised": ("prompts shuffled, recognised", 0.1),
    "i2i_shuffled": ("pictures shuffled, recognised", 0.1),
    "seconds": ("CPU seconds, until the page is written", None),
}
SCALE = 6  # page pixels for one of a drawing
GAP = 2
PAIRS = 12
FRAMES = 8
COMMAND = "qvl-metaquery train qwen3vl2b_sana data.train=my_pictures --out runs/mine"
GOOD, BAD = (255, 255, 255), (214, 69, 65)


def write_report(
    out: Path,
    values: Mapping[str, Any],
    sweep: Mapping[float, "Drawings"],
    untrained: "Drawings",
    shown: Sequence[int],
    inverted: "Drawings",
    films: Mapping[int, Sequence[Image.Image]],
) -> Path:
    """Write out/report.html.

    sweep      drawings of all digits by guidance
    untrained  those of the model before its first step
    shown      digits of the set that were to be inverted, by number, and `inverted` what came of them
    films      what was there after each step, of a few digits
    """
    guidance = values["guidance"]
    draw, edit = (RunFolder(out / "runs" / name) for name in ("draw", "edit"))
    sections = [
        Section("What it learned", [_figures(values), _explanation()]),
        Section(
            "Drawn by name",
            [_sheets(sweep[guidance])],
            f"All drawings of each prompt, at guidance {guidance:g}; in a red frame what was taken for another digit.",
        ),
        Section("From noise to a digit", [_films(films)], "What is there after some of the 20 steps."),
        Section("What guidance trades", _sweep(sweep)),
        Section(
            "Drawn from a picture",
            [_pairs(shown, inverted)],
            "A held-out digit, and what was drawn of it and the words “the same digit, inverted”.",
        ),
        Section("Controls", [_controls(values, untrained)]),
        Section(
            "While it learned",
            [
                *drawn_section(draw.samples).blocks,
                _loss("Stage one, by name", draw),
                _loss("Stage two, from pictures", edit),
            ],
        ),
        Section("The same with Qwen3-VL-2B and Sana", [Code(COMMAND, "512 pixels, 256 queries")]),
    ]
    lead = (
        f"A Qwen3-VL of 1.7 million random, frozen parameters is asked by 8 learned queries; a connector and a Sana of "
        f"0.8 million learn to draw what it says, in {values['seconds']:.0f} CPU seconds (seed {values['seed']}). The "
        "judge is the nearest of 1,257 real training digits."
    )
    return write(RunFolder(out), sections, "qvl-metaquery demo: digits that are drawn", lead)


def _figures(values: Mapping[str, Any]) -> Figures:
    notes = {"recognised": f"guidance {values['guidance']:g}", "diversity": "the same drawings"}
    return Figures(
        [
            Figure(SHOWN[name][0], values[name], bar.value, SHOWN[name][1], bar.at_most, notes.get(name, ""))
            for name, bar in BARS.items()
        ]
    )


def _explanation() -> Text:
    return Text(
        "Recognised: the nearest real training digit, of 64 pixels, is one of the digit that was asked for. Diversity: "
        "the mean distance between drawings of the same digit, over that between real ones; one good seven drawn again "
        "and again would have none. Pictures are held out; a drawing of one is inverted back before it is judged. Bars "
        "are for the mean over five seeds; a single seed may lie 0.02 beyond."
    )


def _sheets(drawings: "Drawings") -> Pictures:
    """A row of drawings for each digit."""
    sheets = []
    for digit in range(10):
        rows = [place for place, asked in enumerate(drawings.asked) if asked == digit]
        right = sum(drawings.read[place] == digit for place in rows)
        sheet = _sheet([drawings.images[place] for place in rows], [drawings.read[place] == digit for place in rows])
        sheets.append(Picture(png(sheet), f"{caption(digit)}: {right} of {len(rows)} recognised"))
    return Pictures(sheets, width=440)


def _sheet(images: Sequence[Image.Image], right: Sequence[bool]) -> Image.Image:
    """Drawings side by side, enlarged with hard edges, each in a frame."""
    side = images[0].width * SCALE
    sheet = Image.new("RGB", (len(images) * (side + 2 * GAP), side + 2 * GAP), GOOD)
    for place, (image, good) in enumerate(zip(images, right, strict=True)):
        left = place * (side + 2 * GAP)
        sheet.paste(GOOD if good else BAD, (left, 0, left + side + 2 * GAP, side + 2 * GAP))
        sheet.paste(image.resize((side, side), Image.Resampling.NEAREST), (left + GAP, GAP))
    return sheet


def _films(films: Mapping[int, Sequence[Image.Image]]) -> Cards:
    cards = []
    for digit, images in films.items():
        frames = [Picture(png(image), f"step {step}") for step, image in enumerate(images, 1)]
        cards.append(Card(caption(digit), [Strip(spread(frames, FRAMES))]))
    return Cards(cards)


def _sweep(sweep: Mapping[float, "Drawings"]) -> list[Block]:
    points = sorted(sweep.items())
    curves = {
        "recognised": [(guidance, one.recognised) for guidance, one in points],
        "diversity": [(guidance, one.diversity) for guidance, one in points],
    }
    rows = [
        {"guidance": guidance, "recognised": round(one.recognised, 3), "diversity": round(one.diversity, 3)}
        for guidance, one in points
    ]
    return [
        Curves("Recognised and diversity", curves, x="guidance", smooth=False),
        Table(rows),
        Text(
            "Guidance goes beyond what the prompt says, away from what an empty one says: drawings become clearer and "
            "more alike. Both figures are therefore always told of the same drawings, at one guidance."
        ),
    ]


def _pairs(shown: Sequence[int], inverted: "Drawings") -> Cards:
    from qvl_data.example.digits import digit_png

    cards = [
        Card(
            f"a {asked}" if asked == read else f"a {asked}, drawn like a {read}",
            [Picture(digit_png(number), "shown"), Picture(png(image), "drawn", "good" if asked == read else "bad")],
            becomes=True,
        )
        for number, image, asked, read in zip(shown, inverted.images, inverted.asked, inverted.read, strict=True)
    ]
    return Cards(cards[:PAIRS])


def _controls(values: Mapping[str, Any], untrained: "Drawings") -> Table:
    rows = [
        {"what": "drawn by name", "recognised": values["recognised"]},
        {"what": "the same model before its first step", "recognised": values["untrained_recognised"]},
        {"what": "drawn by names that were shuffled", "recognised": values["shuffled_recognised"]},
        {"what": "drawn from a picture", "recognised": values["i2i_success"]},
        {"what": "drawn from pictures that were shuffled", "recognised": values["i2i_shuffled"]},
    ]
    return Table(rows, note="Chance is 0.1. A control that is recognised would mean that the judge is fooled.")


def _loss(title: str, run: RunFolder) -> Curves:
    steps = [record for record in run.read_metrics() if "loss" in record]
    return Curves(title, {"loss": [(record["step"], record["loss"]) for record in steps]})
