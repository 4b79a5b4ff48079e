"""What is in a data set: how many, how long, how large, in which words, in one pass and in bounded memory.

    result = stats(Dataset("digits", split="train"))
    result.numbers["width"]       # a Histogram: bin edges and counts, mean, median ...
    result.counts["answer"]       # Counts: the most frequent answers, share of the largest, evenness
    result.to_dict()              # JSON, `qvl.stats/1`

Pictures are known from their headers; none is decoded. Samples that cannot be read are counted by reason and left out;
`qvl-data validate` names them.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..dataset import Dataset
from ..progress import track
from ..walk import steps, walk
from .collect import Collector
from .sketch import Counts, Histogram

__all__ = ["COUNTS", "NUMBERS", "Counts", "Histogram", "Stats", "stats"]

SCHEMA = "qvl.stats/1"
STEP = 2_000
"""Samples between two merges; part of the definition of what is dropped where there are too many answers."""
TOP = 20

NUMBERS = {
    "turns": "turns per sample",
    "images": "pictures per sample",
    "videos": "videos per sample",
    "regions": "boxes, points and polygons per sample",
    "width": "width of pictures (pixels)",
    "height": "height of pictures (pixels)",
    "megapixels": "megapixels of pictures",
    "aspect": "aspect of pictures (longer side / shorter side)",
    "picture_bytes": "bytes of a picture's file (not of those embedded in tables)",
    "image_tokens": "tokens of a picture (Qwen3-VL's default budget)",
    "sample_image_tokens": "tokens of all pictures of a sample",
    "question_characters": "characters of what is asked (system and user turns)",
    "answer_characters": "characters of an answer",
    "tokens": "tokens of a sample (with a model)",
}
"""Every number that is collected, with its meaning and unit."""

COUNTS = {
    "split": "samples by split",
    "task": "samples by task",
    "role": "turns by role",
    "answer": "answers",
    "first_word": "answers by first word",
    "script": "samples by script of their text",
    "picture_format": "pictures by file format",
    "region_label": "regions by label",
    "dataset": "samples by data set of origin",
    "license": "samples by licence",
    "unread": "samples and pictures that cannot be read, by reason",
}
"""Everything that is counted by value."""


@dataclass(frozen=True)
class Stats:
    """What is in a data set.

    source          file or folder
    samples         samples that could be read
    same_text       samples whose text (all turns) is that of an earlier sample
    numbers         by name (see NUMBERS); those without a single value are left out
    counts          by name (see COUNTS); those without a single value are left out
    """

    source: str
    samples: int
    same_text: int
    numbers: dict[str, Histogram]
    counts: dict[str, Counts]

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, `qvl.stats/1`."""
        return {"schema": SCHEMA, **asdict(self)}


def stats(
    data: Dataset | Mapping[str, Dataset], processor: Any = None, *, source: str = "", workers: int = 1, top: int = TOP
) -> Stats:
    """The figures of one data set, or of its splits by name. Deterministic; the same for every number of workers.

    processor   with one (`qvl_data.processor.open_processor`), the tokens of every sample are counted, too
    source      what to call the data; default: its file
    top         how many of the most frequent values are listed

    Raises BadInput for what is wrong with the files; a sample that cannot be read is counted under `unread`.
    """
    sets = {data.file.stem: data} if isinstance(data, Dataset) else dict(data)
    total = Collector(sets, processor)
    todo = steps(sets, STEP)
    name = source or ", ".join(str(each.file) for each in sets.values())
    for _, part in track(walk(total.collect, todo, workers), f"stats {name}", len(todo)):
        total.merge(part)
    hashes = np.frombuffer(total.texts, np.uint64)
    return Stats(
        source=name,
        samples=len(hashes),
        same_text=len(hashes) - len(np.unique(hashes)),
        numbers={key: total.numbers[key].summary() for key in NUMBERS if total.numbers[key].counts},
        counts={key: total.counts[key].summary(top) for key in COUNTS if total.counts[key].total},
    )
