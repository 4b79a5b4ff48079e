"""`qvl-edit edit`: pictures of instructions, as files. The same command goes on after a kill.

Every picture has a seed of its own, so how many are drawn together changes speed and memory, not pictures.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from qvl_core.training.engine import DTYPES, resolve_precision
from qvl_data.drawing.files import Wish, draw_missing, said_of, wishes_of
from qvl_data.drawing.prompts import Asked
from qvl_edit.pipeline import EditPipeline
from qvl_edit.trained import Trained, find_trained

PARTS = ("scheduler", "tokenizer", "processor", "text_encoder", "vae")  # of a checkpoint, beside its transformer


def edit(
    model: str,
    prompts: Sequence[Asked],
    out: Path,
    *,
    given: dict[str, Any] | None = None,
    lora: Sequence[Path] = (),
    height: int | None = None,
    width: int | None = None,
    number: int = 1,
    seed: int = 0,
    batch: int = 4,
) -> list[Path]:
    """Draw `number` pictures of each prompt, `batch` at once, and write them to the folder `out`; their paths.

    given   fields of `Sampling` that are not as the model has them
    lora    adapters that are put upon the model
    seed    of the first picture of each prompt; the following ones count up

    Pictures that are there already, drawn from the same files in the same way, are left as they are. Raises BadInput.
    """
    found = find_trained(model)
    sampling = found.sampling.but(**(given or {}))
    how = {"model": model, "lora": list(map(str, lora)), **sampling.said(), "height": height, "width": width}
    state = state_of(found, lora)
    wishes = wishes_of(prompts, number, seed)
    said = [(wish, {**said_of(wish, state), **how}) for wish in wishes]
    pipeline = cache(lambda: open_pipeline(found, lora))  # only if something is missing

    def draw(part: Sequence[Wish]) -> list[Image.Image]:
        return pipeline()(
            [wish.asked.text for wish in part],
            [wish.asked.opened() for wish in part],
            seed=[wish.seed for wish in part],
            sampling=sampling,
            height=height,
            width=width,
        ).images

    files = draw_missing(out, said, draw, batch)
    for file in files:
        print(file)
    return files


def open_pipeline(found: Trained, lora: Sequence[Path] = ()) -> EditPipeline:
    """A model on the best device, in its 16-bit type there."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return EditPipeline.of(found, DTYPES[resolve_precision("auto", device)], lora).to(device)


def state_of(found: Trained, lora: Sequence[Path] = ()) -> list[Any]:
    """What tells apart models that draw differently, as JSON: sizes of pictures, what was tuned and how, and names,
    sizes and times of all files that they are read from."""
    parts = [found.transformer, *(found.checkpoint / part for part in PARTS)]
    files = [found.checkpoint / "model_index.json", *(file for part in parts for file in sorted(part.glob("[!.]*")))]
    for path in (found.folder, *lora):
        files += sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    stats = [(file.name, file.stat()) for file in files if file.is_file()]
    tune = {name: group.model_dump(mode="json") for name, group in found.recipe.tune.items()} if found.recipe else None
    pictures = found.settings.pictures.model_dump(mode="json", exclude={"vae_batch"})  # which drawing does not use
    return [pictures, tune, [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]]
