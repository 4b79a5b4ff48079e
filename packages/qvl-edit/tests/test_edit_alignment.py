"""A shift between two pictures is found to the pixel, whatever the edit did to colours, and not where there is none."""

from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from qvl_data.example.pictures import PHOTOS, opened
from qvl_edit.alignment import shift

SIDE = 160
CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "nothing": lambda picture: picture,
    "inverted": ImageOps.invert,
    "grey": lambda picture: ImageOps.grayscale(picture).convert("RGB"),
    "brighter": lambda picture: picture.point(lambda value: min(255, value + 40)),
    "red": lambda picture: Image.merge("RGB", [band.point(lambda v: v // 2) for band in picture.split()[:1]] * 3),
}


def cut(name: str, down: int, right: int) -> Image.Image:
    """A part of a photograph, as if seen through a window that moves up and to the left by so much."""
    whole = opened(name).convert("RGB").resize((256, 256))
    return whole.crop((48 - right, 48 - down, 48 - right + SIDE, 48 - down + SIDE))


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("photo", PHOTOS, ids=lambda photo: photo.name)
def test_an_edit_in_place_is_not_shifted(photo: Any, change: str) -> None:
    source = cut(photo.name, 0, 0)
    found = shift(np.asarray(source), np.asarray(CHANGES[change](source)))
    assert (found.down, found.right) == (0, 0)
    assert found.sure


@settings(max_examples=40, deadline=None)
@given(st.integers(-24, 24), st.integers(-24, 24), st.sampled_from(PHOTOS), st.sampled_from([*CHANGES]))
def test_a_known_shift_is_found(down: int, right: int, photo: Any, change: str) -> None:
    found = shift(np.asarray(cut(photo.name, 0, 0)), np.asarray(CHANGES[change](cut(photo.name, down, right))))
    assert (found.down, found.right) == (down, right)
    assert found.sure
    assert found.distance == pytest.approx(np.hypot(down, right))


def test_other_pictures_give_no_sure_shift() -> None:
    pictures = [np.asarray(cut(photo.name, 0, 0)) for photo in PHOTOS]
    assert not any(shift(one, other).sure for one, other in combinations(pictures, 2))


def test_pictures_without_edges_say_nothing() -> None:
    plain = np.full((32, 48, 3), 200, np.uint8)
    assert shift(plain, plain // 2) == (0, 0, 0.0)
