"""From the recipe's `model` and `pictures` to a checkpoint's folder and the sizes of pictures."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.load import find_folder
from qvl_edit.geometry import STEP, Geometry
from qvl_edit.packing import Grid
from qvl_edit.profile import Profile, named, read_config, read_grid, read_profile, read_seen
from qvl_edit.recipe import EditModel, Pictures
from qvl_edit.tiny import tiny

ABOUT = ("*.json", "*/*.json", "*/*.txt", "*/*.jinja")  # small files: classes, sizes, tokenizer
EVERY_PART = (*ABOUT, "*/*.safetensors")
FOR_TRAINING = (*ABOUT, "transformer/*.safetensors", "vae/*.safetensors")
FOR_TEXTS = (*ABOUT, "text_encoder/*.safetensors")


class Described(NamedTuple):
    """What decides the sizes of pictures: the kind of a checkpoint, and its latents."""

    profile: Profile
    channels: int
    grid: Grid
    seen: tuple[int, int] | None = None
    """fewest and most pixels of a picture that the text encoder's processor leaves as they are, if it is known"""


RELEASED = {
    name: Described(named(kind), *((64, Grid(16, 1)) if named(kind).one_stream else (16, Grid())))
    for name, kind in {
        "Qwen/Qwen-Image": "t2i",
        "Qwen/Qwen-Image-2512": "t2i",
        "Qwen/Qwen-Image-Edit": "edit",
        "Qwen/Qwen-Image-Edit-2509": "edit-plus",
        "Qwen/Qwen-Image-Edit-2511": "edit-2511",
        "Qwen/Qwen-Image-2.1": "image-2.1",
    }.items()
}
"""Qwen's own checkpoints, by hub id."""
TINY = Described(named("edit-plus"), channels=12, grid=Grid(2))


@contextmanager
def checkpoint(model: EditModel, files: Sequence[str] = EVERY_PART) -> Iterator[Path]:
    """The folder of a checkpoint in the layout of diffusers, for as long as parts of it are read. Raises BadInput."""
    if model.name != "tiny":
        yield find_folder(model.name, model.revision, "model.name", files)
        return
    with TemporaryDirectory() as folder:
        tiny(Path(folder) / "tiny", coder="patches")
        yield Path(folder) / "tiny"


def geometry_of(pictures: Pictures, profile: Profile, folder: Path) -> Geometry:
    """The sizes of pictures: the recipe's, else the checkpoint's own.

    Sides are rounded as the pipelines do: to two tokens of Qwen-Image's autoencoder. What is drawn through a finer
    one is small, and would be bent by that: it is rounded to tokens.
    """
    return sized(pictures, profile, read_grid(folder), read_seen(folder))


def described(model: EditModel) -> Described:
    """Of a recipe's checkpoint; no file of `tiny`, and of Qwen's own, is opened. Raises BadInput."""
    if (known := {**RELEASED, "tiny": TINY}.get(model.name)) is not None:
        return known
    folder = find_folder(model.name, model.revision, "model.name", ABOUT)
    channels = read_config(folder / "vae" / "config.json")["z_dim"]
    return Described(read_profile(folder), channels, read_grid(folder), read_seen(folder))


def sized(pictures: Pictures, profile: Profile, grid: Grid, seen: tuple[int, int] | None = None) -> Geometry:
    """The same of a checkpoint that cuts pictures so. Raises BadInput for a size that it has not."""
    if pictures.vl_size and profile.vl_area is None:
        raise BadInput(f"pictures.vl_size: {profile.name} shows its encoders one size; set pictures.size alone.")
    token = grid.unit
    return Geometry(
        area=pictures.size**2 if pictures.size else profile.area,
        vl_area=pictures.vl_size**2 if pictures.vl_size else profile.vl_area,
        step=STEP if 2 * token == STEP else token,
        token=token,
        seen=seen if profile.vl_area is None else None,
    )
