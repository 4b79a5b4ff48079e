import io

import numpy as np
import pytest
from PIL import Image

from qvl_core.errors import BadInput
from qvl_data.example import KINDS, SPLITS, digit_png, digits, digits_dataset

COUNTS = {"train": 1257, "validation": 180, "test": 360}


def numbers(samples):
    """The UCI index of every picture."""
    return [int(media.origin.split("/")[1].split(".")[0]) for sample in samples for media in sample.media]


def test_every_digit_is_in_exactly_one_split():
    splits = [numbers(digits_dataset("digit", split)) for split in SPLITS]
    assert [len(split) for split in splits] == list(COUNTS.values())
    assert sorted(number for split in splits for number in split) == list(range(1797))


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_share_the_splits_and_never_mix_them(kind):
    for seed in (0, 3):
        for split in SPLITS:
            own = set(numbers(digits_dataset("digit", split, seed)))
            assert set(numbers(digits_dataset(kind, split, seed))) == own
    assert set(numbers(digits_dataset(kind, "test", 0))) != set(numbers(digits_dataset(kind, "test", 3)))


def test_answers_are_true():
    truth = {
        number: int(sample.messages[1].text)
        for split in SPLITS
        for sample in digits_dataset("digit", split)
        for number in numbers([sample])
    }
    assert sorted(np.bincount(list(truth.values()))) == [174, 177, 178, 179, 180, 181, 181, 182, 182, 183]
    rules = {
        "parity": lambda d: ["even", "odd"][d % 2],
        "size": lambda d: "yes" if d > 4 else "no",
        "next": lambda d: str(d + 1),
        "larger": lambda a, b: "first" if a > b else "second",
    }
    for kind, rule in rules.items():
        for sample in digits_dataset(kind, "train"):
            assert sample.messages[1].text == rule(*(truth[number] for number in numbers([sample])))
    larger = [sample.messages[1].text for sample in digits_dataset("larger", "train")]
    assert 0.4 < larger.count("first") / len(larger) < 0.6


def test_pictures_are_64_pixels_and_look_like_the_digit():
    image = Image.open(io.BytesIO(digit_png(0)))
    assert (image.size, image.mode, image.format) == ((64, 64), "L", "PNG")
    small = np.asarray(image.resize((8, 8), Image.Resampling.BOX), float) / 255 * 16
    zero = [0, 0, 5, 13, 9, 1, 0, 0, 0, 0, 13, 15, 10, 15, 5, 0]  # first two rows of the file
    assert np.abs(small[:2].ravel() - zero).max() < 3


def test_the_mixed_dataset_asks_every_kind_about_every_picture():
    samples = list(digits("test"))
    assert len(samples) == 360 * len(KINDS)
    assert len({sample.id for sample in samples}) == len(samples)
    assert {sample.meta.dataset for sample in samples} == {f"digits/{kind}" for kind in KINDS}
    assert {sample.meta.license for sample in samples} == {"CC-BY-4.0"}
    assert [s.id for s in digits("test", seed=1)] != [s.id for s in samples]
    assert [s.id for s in digits("test")] == [s.id for s in samples]


def test_unknown_kind():
    with pytest.raises(BadInput, match='unknown kind of question "colour"; known are digit, parity'):
        digits_dataset("colour", "train")
