"""From the recipe's `model` and `pictures` to a checkpoint's folder and the sizes of pictures."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from qvl_core.qwen3vl.load import find_folder
from qvl_edit.geometry import STEP, Geometry
from qvl_edit.profile import PROFILES, Profile, read_profile, read_scale
from qvl_edit.recipe import EditModel, Pictures
from qvl_edit.tiny import tiny

ABOUT = ("*.json", "*/*.json", "*/*.txt", "*/*.jinja")  # small files: classes, sizes, tokenizer
EVERY_PART = (*ABOUT, "*/*.safetensors")
FOR_TEXTS = (*ABOUT, "text_encoder/*.safetensors")
KNOWN = {
    "tiny": ("edit-plus", 2),
    "Qwen/Qwen-Image": ("t2i", 8),
    "Qwen/Qwen-Image-2512": ("t2i", 8),
    "Qwen/Qwen-Image-Edit": ("edit", 8),
    "Qwen/Qwen-Image-Edit-2509": ("edit-plus", 8),
    "Qwen/Qwen-Image-Edit-2511": ("edit-2511", 8),
}
"""Profile, and pixels along a side of a latent place, of checkpoints by name."""


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
    return _sized(pictures, profile, read_scale(folder))


def described(model: EditModel, pictures: Pictures) -> tuple[Profile, Geometry]:
    """Kind and sizes of a checkpoint, of which no file is opened if it is one of Qwen's that are known. Raises
    BadInput."""
    if model.name in KNOWN:
        name, scale = KNOWN[model.name]
        profile = next(profile for profile in PROFILES if profile.name == name)
        return profile, _sized(pictures, profile, scale)
    folder = find_folder(model.name, model.revision, "model.name", ABOUT)
    profile = read_profile(folder)
    return profile, geometry_of(pictures, profile, folder)


def _sized(pictures: Pictures, profile: Profile, scale: int) -> Geometry:
    token = 2 * scale
    return Geometry(
        area=pictures.size**2 if pictures.size else profile.area,
        vl_area=pictures.vl_size**2 if pictures.vl_size else profile.vl_area,
        step=STEP if 2 * token == STEP else token,
        token=token,
    )
