"""The page of the demo: canvases as they fill, accuracy against forward passes, and the base beside it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qvl_core.report import (
    Block,
    Code,
    Curves,
    Figure,
    Figures,
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
from qvl_mdlm.sample import Step

if TYPE_CHECKING:
    from qvl_mdlm.demo import Answers

MASK = "░"
GRID = 18
COMMAND = "qvl-mdlm train full_2b data.train=my_data.parquet --out runs/mine"


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
    sections = [
        Section("What it learned", [_figures(values), _explanation(values)]),
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


def _figures(values: Mapping[str, Any]) -> Figures:
    before = f"{values['nelbo_before']:.0f} before training"
    return Figures(
        [
            Figure("right answers, several tokens a pass", values["exact_accuracy"], 0.92, 0.1),
            Figure(
                "difference from one token a pass",
                abs(values["full_schedule_accuracy"] - values["exact_accuracy"]),
                0.03,
                at_most=True,
            ),
            Figure("forward passes per token", values["forwards_per_token"], 0.6, at_most=True),
            Figure("pictures shuffled", values["shuffled_accuracy"], 0.2, 0.1, at_most=True),
            Figure(
                "nats per answer",
                values["nelbo_after"],
                values["nelbo_before"],
                at_most=True,
                note=before,
            ),
        ]
    )


def _explanation(values: Mapping[str, Any]) -> Text:
    return Text(
        "The conversion changes no weight: attention sees both ways, and a spare row of the vocabulary becomes the "
        f"mask. Untrained it writes nothing of use ({values['nelbo_before']:.0f} nats per answer by the bound). Four "
        "phrasings are equally likely, so no model can be below ln 4 = 1.39 nats. Shuffled pictures are the control: "
        "with another picture the answer must fall to chance. Bars are for the mean over five seeds."
    )


def _film(sample: Sample, steps: Sequence[Step], tokenizer: Any, mask: int) -> Transcript:
    picture = sample.media[0].bytes
    assert picture is not None
    lines = [Said("user", [Picture(picture), Token(sample.messages[0].text)])]
    for step in steps:
        new = set(step.written[0].tolist())
        tokens = [_token(int(token), place in new, tokenizer, mask) for place, token in enumerate(step.canvases[0])]
        lines.append(Said(f"pass {step.number + 1}", tokens))
    return Transcript(f"{len(steps)} forward passes", lines)


def _token(token: int, new: bool, tokenizer: Any, mask: int) -> Token:
    if token == mask:
        return Token(f"{MASK} ", "masked", faint=True)
    text = tokenizer.decode([token])
    return Token(text, f"token {token}", learned=float(new), chip=token in tokenizer.all_special_ids)


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
