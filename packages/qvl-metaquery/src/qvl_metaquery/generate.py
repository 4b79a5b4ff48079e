"""`qvl-metaquery generate`: pictures of prompts, as files. The same command goes on after a kill.

Every picture has a seed of its own, so how many are drawn together changes speed and memory, not pictures.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from PIL import Image

from qvl_core.errors import BadInput
from qvl_core.training.engine import DTYPES, resolve_precision
from qvl_data.drawing.files import Wish, draw_missing, said_of, wishes_of
from qvl_data.drawing.prompts import Asked
from qvl_metaquery.checkpoint import state_of
from qvl_metaquery.pipeline import MetaQueryPipeline
from qvl_metaquery.sampling import Sampling

Mode = Literal["t2i", "i2i"]


def generate(
    model: str,
    prompts: Sequence[Asked],
    out: Path,
    mode: Mode = "t2i",
    sampling: Sampling = Sampling(),  # noqa: B008 (immutable)
    number: int = 1,
    seed: int = 0,
    batch: int = 4,
) -> list[Path]:
    """Draw `number` pictures of each prompt, `batch` at once, and write them to the folder `out`; their paths.

    seed  of the first picture of each prompt; the following ones count up

    Pictures that are there already, drawn by the same model in the same way, are left as they are.

    Raises BadInput for pictures in a prompt of mode t2i, and for none in one of mode i2i.
    """
    check_mode(prompts, mode)
    state, how = state_of(Path(model)), {"model": model, **sampling.said()}
    wishes = [(wish, {**said_of(wish, state), **how}) for wish in wishes_of(prompts, number, seed)]
    pipeline = cache(lambda: open_pipeline(model))  # only if something is missing
    files = draw_missing(out, wishes, lambda part: drawn(pipeline(), part, sampling, batch), batch)
    for file in files:
        print(file)
    return files


def check_mode(prompts: Sequence[Asked], mode: Mode) -> None:
    """Raise BadInput for a prompt that does not fit the mode."""
    for asked in prompts:
        if mode == "t2i" and asked.pictures:
            raise BadInput(f"--mode t2i: prompt {asked.text!r} has pictures; say --mode i2i, or leave --image out.")
        if mode == "i2i" and not asked.pictures:
            raise BadInput(
                f"--mode i2i: prompt {asked.text!r} has no picture; add --image FILE, or `images` to its line in a "
                "JSONL file, or say --mode t2i."
            )


def open_pipeline(folder: str) -> MetaQueryPipeline:
    """The model in a folder, on the best device, in its 16-bit type there."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = DTYPES[resolve_precision("auto", device)]
    return MetaQueryPipeline.from_pretrained(folder, torch_dtype=dtype).to(device)


def drawn(pipeline: MetaQueryPipeline, wishes: Sequence[Wish], sampling: Sampling, batch: int) -> Iterator[Image.Image]:
    """The pictures of wishes, in their order."""
    for start in range(0, len(wishes), batch):
        part = wishes[start : start + batch]
        texts = [wish.asked.text for wish in part]
        shown = [wish.asked.opened() for wish in part]
        yield from pipeline(texts, shown, seed=[wish.seed for wish in part], **sampling.arguments()).images
