"""Answers that are scripted, over real samples and a tiny model that computes all else; and what they are judged on."""

import importlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from command import Done

from qvl_core.run import RunFolder
from qvl_data.convert import write_samples
from qvl_data.example import samples
from qvl_data.sample import Meta, Sample

KINDS = ("photo", "drawing", "写真")
LONG = "一只戴着红色帽子的猫坐在窗台上,看着外面的雨。" * 4


def write_sets(folder: Path) -> Path:
    """captions.jsonl, with several references and a field to group by, and boxes.parquet: forty samples each."""
    captions = []
    for number, sample in enumerate(islice(samples("images", "test"), 40)):
        fields = {"kind": KINDS[number % 3], "references": [f"{sample.messages[-1].text} {LONG}"]}
        captions.append(sample.model_copy(update={"extra": json.dumps({"fields": fields}), "meta": Meta()}))
    write_samples(captions, folder / "captions.jsonl")
    write_samples(list(islice(samples("grounding", "test"), 40)), folder / "boxes.parquet")
    return folder


@contextmanager
def answering(answer: Callable[[str, int], str]) -> Iterator[None]:
    """While it lasts, models say answer(reference, number of the sample)."""
    room = importlib.import_module("qvl_sft.evaluate")
    prompt, generate = room.prompt, room.generate
    references: dict[str, str] = {}

    def remembered(sample: Sample, processor: Any, **options: Any) -> Any:
        question, references[sample.id] = prompt(sample, processor, **options)
        return question, references[sample.id]

    def said(model: Any, processor: Any, prompts: Sequence[Any], max_new_tokens: int) -> list[str]:
        return [answer(references[p.id], int(p.id.rpartition("-")[2])) for p in prompts]

    room.prompt, room.generate = remembered, said  # type: ignore[attr-defined]
    try:
        yield
    finally:
        room.prompt, room.generate = prompt, generate  # type: ignore[attr-defined]


def moved(reference: str, number: int) -> str:
    """The boxes of the reference, in every third answer the first one elsewhere, in every fifth too large."""
    stated = json.loads(reference)
    first = stated[0] if isinstance(stated, list) else stated
    x1, y1, x2, y2 = first["bbox_2d"]
    if number % 3 == 0:
        first["bbox_2d"] = [x1, y1, (x1 + x2) // 2 - 1, y2]
    elif number % 5 == 0:
        first["bbox_2d"] = [x1, y1, x2 + 900, y2]
    return json.dumps(stated)


def cut(reference: str, number: int) -> str:
    return reference[: len(reference) - 4 * (number % 4)]


def result(folder: Path) -> dict[str, Any]:
    found = RunFolder(folder).read_result()
    assert found is not None
    return found


def refused(done: Done, *words: str) -> None:
    """Bad input, said in one sentence; libraries that are imported meanwhile may have warned before."""
    assert done.code == 2, done.err
    *_, sentence = done.err.strip().splitlines()
    assert "Traceback" not in done.err
    for word in words:
        assert word in sentence, sentence
