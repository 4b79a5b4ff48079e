"""Embeddings and latents that `qvl-edit extract` has stored, found by what they were made of: pictures' files, and the
text or the size.

So the order of samples, their splits, tasks and mixtures do not matter, and nothing is opened to find one. What the
texts about the same pictures share lies there once, and each text by itself.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qvl_core.qwen3vl.load import weights_sha256
from qvl_core.training.store import Store
from qvl_data.errors import BadSample
from qvl_data.hashing import media_key
from qvl_data.media import media_name
from qvl_data.sample import Sample
from qvl_edit.cut import Size
from qvl_edit.geometry import Geometry
from qvl_edit.packing import Grid
from qvl_edit.profile import Profile

LATENTS_FIX = "name another folder in stored.latents, or write one: qvl-edit extract RECIPE stored.latents=FOLDER"
FIX = "name another folder in stored.embeddings, or write one: qvl-edit extract RECIPE --out FOLDER"


@dataclass(frozen=True)
class StoredEmbeddings:
    """A store of embeddings; shapes as in `embed`."""

    store: Store

    def pieces(self, sample: Sample, pictures: Sequence[int], text: str) -> tuple[Tensor, Tensor]:
        """(P, D) and (S, D) of a text about some of a sample's media, in the type that they were stored in and in the
        memory that the store is mapped to: not to be written to. Raises BadSample."""
        shown = content(sample, pictures)
        shared, own = self.store.get(key(shown)), self.store.get(key(shown, text))
        if shared is None or own is None:
            said = f'"{text[:60]}"' if text else "the empty text"
            problem = (
                f"{said} with its {len(pictures)} pictures is not in stored.embeddings ({self.store.folder}); add it "
                "with `qvl-edit extract`"
            )
            raise BadSample("not_extracted", problem, sample.place, sample.id)
        return shared, own


@dataclass(frozen=True)
class StoredLatents:
    """A store of latents, as tokens, for they differ in size; shapes as in `latents`."""

    store: Store
    grid: Grid

    def __call__(self, sample: Sample, index: int, size: Size) -> NDArray[np.float32]:
        """(C, H, W) of one of a sample's media at a size in pixels. Raises BadSample."""
        (picture,) = content(sample, [index])
        found = self.store.get(latent_key(picture, size))
        if found is None:
            problem = (
                f"{media_name(sample.media[index])} at {size[1]} x {size[0]} pixels is not in stored.latents "
                f"({self.store.folder}); add it with `qvl-edit extract`"
            )
            raise BadSample("not_encoded", problem, sample.place, sample.id)
        return self.grid.unpack(found[None].float(), size)[0].numpy()


def latent_key(picture: bytes, size: Size) -> bytes:
    """The key of a picture's latents at a size in pixels."""
    return hashlib.sha256(picture + f"latents {size[0]} {size[1]}".encode()).digest()


def about_latents(geometry: Geometry, folder: Path | None, dtype: torch.dtype) -> dict[str, Any]:
    """What decides the values of stored latents; `folder` is the checkpoint's, for its autoencoder's weights, without
    which they are not compared."""
    return {
        **({} if folder is None else {"autoencoder": weights_sha256(folder / "vae")[:16]}),
        "size": [geometry.area, geometry.source_area or geometry.area, geometry.step],
        "dtype": str(dtype).removeprefix("torch."),
    }


def content(sample: Sample, pictures: Sequence[int]) -> tuple[bytes, ...]:
    """What tells pictures apart, in their order. Raises BadSample for one that cannot be read."""
    opener = sample.opener
    return tuple(media_key(sample.media[index], opener) for index in pictures)


def key(pictures: Sequence[bytes], text: str | None = None) -> bytes:
    """The key of a text about some pictures; without a text, of what all of them share."""
    said = b"" if text is None else b"text" + text.encode("utf-8", "surrogatepass")
    return hashlib.sha256(len(pictures).to_bytes(4, "big") + b"".join(pictures) + said).digest()


def about(profile: Profile, geometry: Geometry, folder: Path, pictures: Any, dtype: torch.dtype) -> dict[str, Any]:
    """What decides the values of stored embeddings.

    folder    of the checkpoint, for its text encoder's weights; without these, which are 16.6 GB, they are not compared
    pictures  the image processor, which resizes once more; None without pictures
    """
    size = None if pictures is None else pictures.size
    limits = [] if size is None else [size["shortest_edge"], size["longest_edge"]]
    encoder = folder / "text_encoder"
    return {
        **profile.about(),
        **({"text_encoder": weights_sha256(encoder)[:16]} if any(encoder.glob("*.safetensors")) else {}),
        "resize": [*geometry.shown, *limits] if limits else None,
        "dtype": str(dtype).removeprefix("torch."),
    }
