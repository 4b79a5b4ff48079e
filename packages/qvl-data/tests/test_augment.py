import numpy as np
import pytest
from PIL import Image

from qvl_data.augment import shift

from .chats import picture


def test_shift_moves_the_picture_and_repeats_the_border():
    image = picture(20, 12)
    pixels = np.asarray(image)
    seen = set()
    for key in range(200):
        moved = np.asarray(shift(image, 3, 0, key))
        matches = [
            (dx, dy)
            for dx in range(-3, 4)
            for dy in range(-3, 4)
            if np.array_equal(moved, pixels[np.clip(np.arange(12) - dy, 0, 11)][:, np.clip(np.arange(20) - dx, 0, 19)])
        ]
        assert len(matches) == 1
        seen.add(matches[0])
    assert len(seen) >= 44  # of the 49 places


def test_shift_is_a_function_of_its_key():
    image = picture()
    assert shift(image, 4, 1, 2, 3).tobytes() == shift(image, 4, 1, 2, 3).tobytes()
    assert len({shift(image, 4, *key).tobytes() for key in ((1, 2), (2, 1), (1, 3), (0, 1, 2))}) > 1


@pytest.mark.parametrize("size", [(1, 1), (3, 5)])
def test_a_shift_beyond_the_picture_leaves_border_only(size):
    image = Image.new("RGB", size, (9, 8, 7))
    assert shift(image, 50, 1).tobytes() == image.tobytes()


def test_no_shift_is_the_same_picture():
    image = picture()
    assert shift(image, 0, 1) is image
