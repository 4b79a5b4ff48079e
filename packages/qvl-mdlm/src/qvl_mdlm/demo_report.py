"""The page of the demo: canvases as they fill, accuracy against forward passes, and the base beside it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qvl_core.demo import Bar, figures
from qvl_core.report import (
    Block,
    Code,
    Curves,
    Picture,
    Pictures,
    Said,
    Section,
    Table,
    Text,
    Token,
    Transcript,
    write,
)
from qvl_core.run import RunFolder
from qvl_data.sample import Sample
from qvl_mdlm.canvas import Kind, Piece, pieces
from qvl_mdlm.sample import Step

if TYPE_CHECKING:
    from qvl_mdlm.demo import Answers

BARS = {  # for the mean over five seeds, of a single one for `seconds`
    "exact_accuracy": Bar(0.92),
    "schedule_difference": Bar(0.03, at_most=True),
    "shuffled_accuracy": Bar(0.2, at_most=True),
    "forwards_per_token": Bar(0.6, at_most=True),
    "nelbo_ratio": Bar(1.0, at_most=True),
    "seconds": Bar(240, at_most=True),
}
SHOWN = {  # what these figures are called, and their chance
    "exact_accuracy": ("right answers, several tokens a pass", 0.1),
    "schedule_difference": ("difference from one token a pass", None),
    "forwards_per_token": ("forward passes per token", None),
    "shuffled_accuracy": ("pictures shuffled", 0.1),
    "nelbo_ratio": ("nats per answer, of those before training", None),
    "seconds": ("CPU seconds, until the page is written", None),
}
GRID = 18
COMMAND = "qvl-mdlm train full_2b data.train=my_data.parquet --out runs/mine"
_TITLES: dict[Kind, str] = {
    "mask": "masked",
    "new": "written now",
    "old": "written before",
    "end": "the end, and what fills up",
}


def write_report(
    out: Path,
    values: Mapping[str, Any],
    processor: Any,
    test: Sequence[Sample],
    found: Mapping[str, "Answers"],
    spoken: "Answers",
    strips: Sequence[Sequence[Step]],
) -> Path:
    """Write out/report.html.

    found   answers of each schedule
    spoken  those of the autoregressive base
    strips  every step of the first samples' canvases
    """
    tokenizer = processor.tokenizer
    base, masked = (RunFolder(out / "runs" / name) for name in ("base", "masked"))
    token = int(masked.read_environment()["mask_token_id"])
    films = [_film(sample, steps, tokenizer, token) for sample, steps in zip(test, strips, strict=False)]
    notes = {"nelbo_ratio": f"{values['nelbo_after']:.1f} of {values['nelbo_before']:.0f}"}
    sections = [
        Section("What it learned", [figures(values, BARS, SHOWN, notes), _explanation(values)]),
        Section("How an answer is written", films, "From top to bottom, a forward pass in each line; new is marked."),
        Section("Held-out pictures", [_gallery(test, found["reduced"].texts)]),
        Section("Fewer forward passes", _schedules(found)),
        Section("Beside the model it came from", [_beside(values, found, spoken), _honest(values)]),
        Section(
            "Training",
            [
                _loss("The base, word by word", base),
                _loss("The same weights, filling in masks", masked),
            ],
        ),
        Section("The same with Qwen3-VL-2B", [Code(COMMAND, "full fine-tuning")]),
    ]
    lead = (
        f"A Qwen3-VL of 1.7 million parameters, trained word by word, then converted and trained to denoise, in "
        f"{values['seconds']:.0f} CPU seconds (seed {values['seed']}). An answer counts if it is one of the four "
        f"phrasings, letter for letter, with the right digit; {len(test)} pictures were never trained on."
    )
    return write(RunFolder(out), sections, "qvl-mdlm demo: answers by denoising", lead)


def _explanation(values: Mapping[str, Any]) -> Text:
    return Text(
        "The conversion changes no weight: attention sees both ways, and a spare row of the vocabulary becomes the "
        f"mask. Untrained it writes nothing of use ({values['nelbo_before']:.0f} nats per answer by the bound). Four "
        "phrasings are equally likely, so no model can be below ln 4 = 1.39 nats. Shuffled pictures are the control: "
        "with another picture the answer must fall to chance. Bars are for the mean over five seeds; a single seed may "
        "lie 0.02 beyond."
    )


def _film(sample: Sample, steps: Sequence[Step], tokenizer: Any, mask: int) -> Transcript:
    picture = sample.media[0].bytes
    assert picture is not None
    lines = [Said("user", [Picture(picture), Token(sample.messages[0].text)])]
    for step in steps:
        shown = pieces(step.canvases[0], step.written[0], tokenizer, mask)
        lines.append(Said(f"pass {step.number + 1}", list(map(_token, shown))))
    return Transcript(f"{len(steps)} forward passes", lines)


def _token(piece: Piece) -> Token:
    return Token(
        piece.text, _TITLES[piece.kind], learned=float(piece.kind == "new"), faint=piece.kind in ("mask", "end")
    )


def _gallery(test: Sequence[Sample], texts: Sequence[str]) -> Pictures:
    from qvl_mdlm.demo import is_right

    cells = [
        Picture(sample.media[0].bytes or b"", text or "–", "good" if is_right(text, sample) else "bad")
        for sample, text in zip(test[:GRID], texts, strict=False)
    ]
    return Pictures(cells, width=150, note="The frame tells whether phrasing and digit are right.")


def _schedules(found: Mapping[str, "Answers"]) -> list[Block]:
    rows = [
        {
            "schedule": {"full": "one token a pass", "reduced": "threshold 0.8", "1 steps": "1 step"}.get(name, name),
            "forward passes per token": round(one.forwards_per_token, 2),
            "right": round(one.accuracy, 3),
            "pictures": len(one.texts),
            "tokens / CPU-s": round(one.tokens_per_second),
        }
        for name, one in sorted(found.items(), key=lambda item: -item[1].forwards_per_token)
    ]
    kinds = {
        "so many steps": [one for name, one in found.items() if name.endswith("steps") or name == "full"],
        "threshold, end tokens last": [one for name, one in found.items() if "threshold" in name or name == "reduced"],
    }
    curves = {
        kind: sorted((one.forwards_per_token, one.accuracy) for one in answers) for kind, answers in kinds.items()
    }
    return [
        Curves("Right answers against forward passes per token", curves, x="passes per token", smooth=False),
        Table(rows),
        Text(
            "Tokens that are written in the same pass do not know of one another: with a fixed number of steps, words "
            "of two phrasings mix. A threshold writes together only what is certain alone."
        ),
    ]


def _beside(values: Mapping[str, Any], found: Mapping[str, "Answers"], spoken: "Answers") -> Table:
    rows = [
        {"model": "autoregressive base, key-value cache", "right": spoken.accuracy, "passes per token": 1.0,
         "tokens / CPU-s": round(spoken.tokens_per_second)},
        {"model": "denoising, threshold 0.8", "right": found["reduced"].accuracy,
         "passes per token": round(found["reduced"].forwards_per_token, 2),
         "tokens / CPU-s": round(found["reduced"].tokens_per_second)},
        {"model": "denoising, one token a pass", "right": found["full"].accuracy,
         "passes per token": round(found["full"].forwards_per_token, 2),
         "tokens / CPU-s": round(found["full"].tokens_per_second)},
    ]  # fmt: skip
    return Table([{**row, "right": round(float(str(row["right"])), 3)} for row in rows])


def _honest(values: Mapping[str, Any]) -> Text:
    ratio = values["tokens_per_second"] / values["base_tokens_per_second"]
    said = f"{ratio:.1f} times as fast as" if ratio >= 1 else f"{1 / ratio:.1f} times slower than"
    return Text(
        f"Here denoising is {said} the base. A pass of the base computes one token behind its cache; one of the "
        "denoising model computes prompt and canvas anew, because under full attention every written token changes "
        "all others. Fewer passes pay where a pass costs the same for one token as for many, as on a GPU with few "
        "rows; prefix and block attention have exact caches (qvl-mdlm bench)."
    )


def _loss(title: str, run: RunFolder) -> Curves:
    steps = [record for record in run.read_metrics() if "loss" in record]
    return Curves(title, {"loss per token": [(record["step"], record["loss"]) for record in steps]}, log=True)
