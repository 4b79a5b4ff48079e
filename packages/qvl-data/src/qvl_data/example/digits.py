"""The 1,797 handwritten digits of the UCI set, enlarged from 8 x 8 to 64 x 64 pixels, with questions of several kinds.

A picture belongs to one split in every kind, so that no kind's test picture is another kind's training picture. See
assets/digits/ATTRIBUTION.md.
"""

import gzip
import io
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qvl_core.errors import BadInput

from ..order import mix, order
from ..sample import Media, Message, Meta, Part, Sample
from .split import Split

SPLITS: dict[Split, tuple[int, int]] = {"train": (0, 1257), "validation": (1257, 1437), "test": (1437, 1797)}
SIDE = 64
LICENSE = "CC-BY-4.0"

# kind -> question (with one picture), and the answer for digit d
_ONE: dict[str, tuple[str, Callable[[int], str]]] = {
    "digit": ("Which digit is this?", str),
    "parity": ("Is this digit odd or even?", lambda d: "odd" if d % 2 else "even"),
    "size": ("Is this digit larger than four?", lambda d: "yes" if d > 4 else "no"),
    "next": ("Which number comes after this digit?", lambda d: str(d + 1)),
}
_TWO = ("larger", "Which picture shows the larger digit, the first or the second?")
KINDS = (*_ONE, _TWO[0])


def digits_dataset(kind: str, split: Split, seed: int = 0) -> list[Sample]:
    """All samples of one question kind (`digit`, `parity`, `size`, `next`, `larger`) in one split.

    The split (1,257 / 180 / 360 pictures) is random by `seed`, and the same for all kinds.
    """
    check_kinds([kind])
    _, labels = arrays()
    chosen = indices(split, seed)
    if kind in _ONE:
        question, answer = _ONE[kind]
        return [_sample(kind, split, (i,), question, answer(int(labels[i]))) for i in chosen]
    pairs = []
    for i in chosen:
        others = [j for j in chosen if labels[j] != labels[i]]
        j = others[mix(seed, i) % len(others)]
        pairs.append(_sample(kind, split, (i, j), _TWO[1], "first" if labels[i] > labels[j] else "second"))
    return pairs


def digits(split: Split, kinds: Sequence[str] = KINDS, seed: int = 0) -> Iterator[Sample]:
    """The samples of several kinds, picture by picture."""
    for group in zip(*(digits_dataset(kind, split, seed) for kind in kinds), strict=True):
        yield from group


def samples(split: Split, seed: int = 0) -> Iterator[Sample]:
    """All kinds of questions about every digit of a split."""
    return digits(split, KINDS, seed)


def check_kinds(kinds: Sequence[str] | None, known: Sequence[str] = KINDS, of: str = "question") -> Sequence[str]:
    """The kinds asked for, all that are known by default. Raises BadInput for an unknown one."""
    for kind in kinds or ():
        if kind not in known:
            raise BadInput(f'unknown kind of {of} "{kind}"; known are {", ".join(known)}.')
    return kinds or known


def indices(split: Split, seed: int = 0) -> list[int]:
    """The digits of a split, by their number in the set."""
    return [order(seed, position, len(arrays()[1])) for position in range(*SPLITS[split])]


@cache
def arrays() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Pictures (1797, 8, 8) with values 0..16, and their digits (1797,)."""
    packed = files("qvl_data").joinpath("assets/digits/digits.csv.gz").read_bytes()
    table = np.loadtxt(io.BytesIO(gzip.decompress(packed)), delimiter=",").astype(np.uint8)
    return table[:, :64].reshape(-1, 8, 8), table[:, 64]


def small(index: int) -> Image.Image:
    """Digit `index` as it is: 8 x 8 grey pixels, white on black."""
    pictures, _ = arrays()
    return Image.fromarray((pictures[index].astype(np.uint16) * 255 // 16).astype(np.uint8))


@cache
def digit_png(index: int) -> bytes:
    """Digit `index` as a PNG of 64 x 64 grey pixels, white on black.

    Bicubic, since the tiny model learned best from it (200 steps, one seed: 98.1 %; bilinear 97.8 %, nearest 96.9 %).
    """
    file = io.BytesIO()
    small(index).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(file, "PNG", optimize=True)
    return file.getvalue()


def digit_media(index: int) -> Media:
    """Digit `index` as embedded media."""
    origin = f"digits/{index:04d}.png"
    return Media(kind="image", bytes=digit_png(index), mime="image/png", width=SIDE, height=SIDE, origin=origin)


def _sample(kind: str, split: Split, pictures: tuple[int, ...], question: str, answer: str) -> Sample:
    shown = [Part(type="image", media=number) for number in range(len(pictures))]
    return Sample(
        id=f"digits-{kind}-{pictures[0]:04d}",
        task="chat",
        media=tuple(map(digit_media, pictures)),
        messages=(
            Message(role="user", parts=(*shown, Part(type="text", text=question))),
            Message(role="assistant", parts=(Part(type="text", text=answer),)),
        ),
        meta=Meta(dataset=f"digits/{kind}", license=LICENSE, split=split),
    )
