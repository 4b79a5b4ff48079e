import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from qvl_data.jpeg_pixels import quick_picture
from qvl_data.limits import DEFAULTS, Limits

from .chats import file_of, picture


def pillow(content):
    try:
        image = Image.open(io.BytesIO(content), formats=["JPEG"])
        image.load()
    except Exception:
        return None
    return image.convert("RGB")


def check(content):
    """Where the quick way gives a picture it is Pillow's; returns whether it does."""
    found = quick_picture(io.BytesIO(content), DEFAULTS)
    if found is None:
        return False
    expected = pillow(content)
    assert expected is not None
    assert (found.mode, found.size) == ("RGB", expected.size)
    assert np.array_equal(np.asarray(found), np.asarray(expected))
    return True


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (17, 9), (224, 224), (333, 127)])
@pytest.mark.parametrize(
    "options",
    [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 1}, {"optimize": True}, {"keep_rgb": True},
     {"restart_marker_rows": 1}, {"icc_profile": b"x" * 70_000}, {"comment": b"\xff\xd8"}, {"quality": 100}],
    ids=str,
)  # fmt: skip
def test_pixels_are_those_of_pillow(size, options):
    assert check(file_of(picture(*size), "JPEG", **options)) == ("icc_profile" not in options)


def test_grey_pictures_are_read_and_others_are_left_to_pillow():
    grey = picture(60, 40).convert("L")
    assert check(file_of(grey, "JPEG"))
    assert not check(file_of(picture(60, 40).convert("CMYK"), "JPEG"))
    turned = Image.Exif()
    turned[0x0112] = 6
    assert not check(file_of(picture(60, 40), "JPEG", exif=turned))
    assert not check(file_of(picture(60, 40), "PNG"))
    content = file_of(picture(60, 40), "JPEG")
    for limits in (Limits(pixels=60 * 40 - 1), Limits(side=59)):
        assert quick_picture(io.BytesIO(content), limits) is None


def test_what_is_cut_off_is_left_to_pillow():
    for options in ({}, {"progressive": True}):
        content = file_of(picture(40, 40), "JPEG", **options)
        assert [end for end in range(len(content) - 2) if check(content[:end])] == []


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10**6), st.binary(min_size=1, max_size=3), st.booleans())
def test_damage_gives_the_same_picture_or_none(at, junk, progressive):
    content = bytearray(file_of(picture(33, 20), "JPEG", progressive=progressive))
    at %= len(content)
    content[at : at + len(junk)] = junk
    check(bytes(content))
