"""Rows as the document writes them, with their pictures: of several numbers of sources, some with a way back."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZES = ((64, 64), (48, 80), (80, 48))  # height, width


def row(folder: Path, name: str, sources: Sequence[tuple[int, int]], target: tuple[int, int], **texts: str) -> Any:
    """A row of the document, and its pictures in `folder`."""
    files = [f"{name}-{number}.png" for number in range(len(sources) + 1)]
    for number, (file, (height, width)) in enumerate(zip(files, (*sources, target), strict=True)):
        values = np.random.default_rng([len(name), number]).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / file)
    shown = files[:-1] if len(sources) > 1 else (files[0] if sources else None)
    return {"source_image": shown, "target_image": files[-1], **texts}


def task(folder: Path, counts: Sequence[int]) -> Path:
    """The rows.jsonl of a task whose samples have such numbers of sources; every other one has all four texts."""
    folder.mkdir(parents=True)
    rows = []
    for number, count in enumerate(counts):
        size = SIZES[number % len(SIZES)]
        texts = {"instruction": f"{folder.name} {number}"}
        if number % 2 == 0:
            texts |= {"instruction_cn": f"{folder.name} {number} cn"}
            texts |= {"inverse_instruction": f"back {number}", "inverse_instruction_cn": f"back {number} cn"}
        rows.append(row(folder, f"{number:03d}", [size] * count, size, **texts))
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return file
