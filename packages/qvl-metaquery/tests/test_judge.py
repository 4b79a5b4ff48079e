"""The judge: the nearest real digit, and diversity, each against what is known of it."""

import numpy as np
from PIL import Image

from qvl_data.example.digits import arrays, small
from qvl_metaquery.judge import diversity, grey, nearest, real


def test_real_digits_are_read_as_what_they_are() -> None:
    known, digits = real("train")
    assert (nearest(known, known, digits) == digits).all()
    held_out, theirs = real("test")
    assert (nearest(held_out, known, digits) == theirs).mean() > 0.98
    by_hand = [digits[np.linalg.norm(known - one, axis=1).argmin()] for one in held_out[:20]]
    assert (nearest(held_out[:20], known, digits) == by_hand).all()
    assert (nearest(1 - held_out, known, digits) == theirs).mean() < 0.2  # inverted, they are not


def test_diversity_is_a_part_of_that_of_real_digits() -> None:
    known, digits = real("train")
    assert np.isclose(diversity(known, digits, known, digits), 1)
    middle = np.stack([known[digits == digit].mean(0) for digit in range(10)])[digits]
    for part in (0.0, 0.3, 0.7):
        assert np.isclose(diversity(middle + part * (known - middle), digits, known, digits), part, atol=1e-5)
    shifted = known + 0.2  # the same for all, so that no pair is further apart
    assert np.isclose(diversity(shifted, digits, known, digits), 1)


def test_a_picture_of_any_size_is_what_it_shows() -> None:
    picture = small(7)
    pixels = arrays()[0][7].reshape(-1) / 16
    enlarged = picture.resize((32, 32), Image.Resampling.NEAREST).convert("RGB")
    assert np.abs(grey([picture, enlarged]) - pixels).max() < 1 / 255
