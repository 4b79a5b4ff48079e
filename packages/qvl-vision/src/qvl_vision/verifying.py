"""Prove that a swapped checkpoint is what it says, before a GPU is spent on it.

    verify("qwen3vl-4b-rad-dino")              # loads it; raises QVLError with the first thing that is wrong
    verify("qwen3vl-4b-rad-dino", model)       # checks a model that was loaded in another way

The stock class reads a swapped folder without a word of protest and builds its own tower, with random weights; a
processor of another model puts tokens in the wrong place. Both are found here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qvl_core.errors import BadInput, QVLError
from qvl_core.qwen3vl.load import SAMPLES, quiet
from qvl_data.example.pictures import PHOTOS, opened
from qvl_vision.checkpoint import load
from qvl_vision.config import QVLVisionConfig
from qvl_vision.processing import as_batch

TOLERANCE = 1e-5  # of features: a batch against its singles, in fp32
LOUD = 50.0  # times the deviation of text embeddings
_FIX = "load it with qvl_vision.load, or with AutoModelForImageTextToText after importing qvl_vision.model"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    ok: bool
    found: str


def verify(folder: str | Path, model: Any = None) -> list[Check]:
    """All checks, if each holds. Raises QVLError with the first that fails, BadInput if nothing can be loaded."""
    found = []
    for check in checks(folder, model):
        if not check.ok:
            raise QVLError(f"{folder}: {check.name}: {check.found}")
        found.append(check)
    return found


def checks(folder: str | Path, model: Any = None) -> Iterator[Check]:
    """The checks one after the other; those that stand on one that failed are left out."""
    folder = Path(folder)
    reference, processor = load(folder)
    model = model or reference
    yield (weights := _weights(folder, model, reference))
    yield (swapped := _swapped(model))
    if not (weights.ok and swapped.ok):
        return
    yield (sizes := _sizes(model, processor))
    if not sizes.ok:
        return
    yield from _pictures(model, processor)


def _swapped(model: Any) -> Check:
    vision = model.config.vision_config
    if not isinstance(vision, QVLVisionConfig):
        return Check("tower", False, f"{type(model).__name__} has Qwen's own tower; {_FIX}")
    names = " + ".join(encoder["name"] for encoder in vision.encoders or [])
    return Check("tower", True, f"{names}, merger {vision.merger}")


def _weights(folder: Path, model: Any, reference: Any) -> Check:
    """Whether the model's weights are those of the files: by name, and by evenly spaced values of each."""
    own, stored = dict(model.named_parameters()), dict(reference.named_parameters())
    if missing := sorted(own.keys() - stored.keys()):
        return Check("weights", False, f"{len(missing)} are not in the files and are random ({missing[0]}); {_FIX}")
    if extra := sorted(stored.keys() - own.keys()):
        return Check("weights", False, f"{len(extra)} of the files have no place in it ({extra[0]}); {_FIX}")
    if unread := _left_over(folder, reference):
        found = f"{len(unread)} of the files belong to another model ({unread[0]}); save it again"
        return Check("weights", False, found)
    for name, value in own.items():
        if not torch.equal(_some(value), _some(stored[name].to(value.dtype))):
            return Check("weights", False, f"{name} is not what stands in the files; {_FIX}")
    return Check("weights", True, f"{len(own)} of the model are those of the files")


def _left_over(folder: Path, reference: Any) -> list[str]:
    """Weights of the files that the model has no place for."""
    with quiet(bars=False):
        _, info = type(reference).from_pretrained(folder, output_loading_info=True, device_map="meta")
    return sorted(info["unexpected_keys"])


def _some(value: torch.Tensor) -> torch.Tensor:
    flat = value.detach().flatten()
    return flat[:: max(1, flat.numel() // SAMPLES)].cpu()


def _sizes(model: Any, processor: Any) -> Check:
    vision = model.config.vision_config
    merges = {
        "tower": model.model.visual.spatial_merge_size,
        "config.json": vision.spatial_merge_size,
        "image processor": processor.image_processor.merge_size,
        "video processor": processor.video_processor.merge_size,
    }
    if len(set(merges.values())) > 1:
        listed = ", ".join(f"{place} {size}" for place, size in merges.items())
        return Check("merge size", False, f"differs ({listed}); copy the processor files of this checkpoint")
    patches = {
        "config.json": vision.patch_size,
        "image processor": processor.image_processor.patch_size,
        "video processor": processor.video_processor.patch_size,
    }
    if vision.layout == "patches" and len(set(patches.values())) > 1:
        listed = ", ".join(f"{place} {size}" for place, size in patches.items())
        return Check("patch size", False, f"differs ({listed}); copy the processor files of this checkpoint")
    return Check("merge size", True, f"{vision.spatial_merge_size} in tower, config.json and processor")


@torch.no_grad()
def _pictures(model: Any, processor: Any) -> Iterator[Check]:
    """Real pictures of several sizes through processor, encoder and merger."""
    visual, merge = model.model.visual, model.config.vision_config.spatial_merge_size
    device, dtype = visual.device, visual.dtype
    whole = [opened(photo.name).convert("RGB") for photo in PHOTOS[:4]]
    images = [image.resize(size) for image, size in zip(whole, ((96, 64), (64, 96), (96, 64), (80, 80)), strict=True)]

    def tokens(chosen: list[Any]) -> tuple[torch.Tensor, list[int]]:
        pixels, grid = as_batch(processor, chosen)
        out = visual(pixels.to(device, dtype), grid.to(device)).pooler_output
        return out.float(), (grid.prod(-1) // merge**2).tolist()

    try:
        together, counts = tokens(images)
    except BadInput as error:
        yield Check("tokens", False, str(error))
        return
    right = len(together) == sum(counts)
    yield Check("tokens", right, f"{counts} for pictures of four sizes; {len(together)} in all")
    yield Check("finite", bool(torch.isfinite(together).all()), "features of real pictures")
    parts = together.split(counts)
    near = max(float((part - tokens([image])[0]).abs().max()) for part, image in zip(parts, images, strict=True))
    size = float(together.abs().max())
    limit = TOLERANCE if dtype == torch.float32 else 0.05
    yield Check("batch", near <= limit * max(1.0, size), f"differs from single pictures by at most {near:.1e}")
    apart = float((parts[0][: counts[2]] - parts[2][: counts[0]]).abs().max())
    yield Check("looks", apart > 0, f"two pictures of one size differ by up to {apart:.2g}")
    ratio = float(together.std() / model.get_input_embeddings().weight.float().std())
    words = f"its tokens are {ratio:.2g} times as large as text embeddings"
    yield Check("scale", ratio < LOUD, words if ratio < LOUD else f"{words}; swap with calibrate, or with input_norm")
