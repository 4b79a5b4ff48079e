"""Figures of drawn pictures: what is equal, what is moved, and what of the background an output changed."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageDraw, ImageOps

from qvl_data.example.recoloured import CHANGES
from qvl_data.sample import Media
from qvl_edit.checks import recoloured
from qvl_edit.cut import Bucket
from qvl_edit.figures import background, error, measured, psnr, ssim, unchanged
from qvl_edit.wanted import Edited, Shown, Wanted, pixels

SIZE = 96


@pytest.fixture
def source(photo: Image.Image) -> Image.Image:
    return photo.resize((SIZE, SIZE))


@pytest.fixture
def target(source: Image.Image) -> Image.Image:
    """The source, a square of it painted."""
    changed = source.copy()
    ImageDraw.Draw(changed).rectangle((20, 30, 49, 59), fill=(250, 20, 20))
    return changed


def edited(folder: Path, source: Image.Image, target: Image.Image, output: Image.Image, text: str = "x") -> Edited:
    media = []
    for name, picture in (("source", source), ("target", target), ("output", output)):
        picture.save(folder / f"{name}.png")
        media.append(Media(kind="image", path=str(folder / f"{name}.png")))
    from qvl_data.media import Opener

    shown, size = Shown((media[0],), media[1], Opener(folder, (folder,))), (source.height, source.width)
    wanted = Wanted("test", "0", "0.png", text, Bucket(size, (size,)), lambda: shown)
    return Edited(wanted, folder / "output.png")


def test_what_is_equal_is_perfect(tmp_path: Path, source: Image.Image, target: Image.Image) -> None:
    found = measured(edited(tmp_path, source, target, target))
    assert found["error"] == found["background_error"] == found["target_shift"] == 0
    assert found["ssim"] == pytest.approx(1)
    assert found["psnr"] == found["background_psnr"] == pytest.approx(58.92, abs=0.01)
    assert found["nearer_target"] is True


def test_a_source_that_came_back_is_no_edit(tmp_path: Path, source: Image.Image, target: Image.Image) -> None:
    found = measured(edited(tmp_path, source, target, source))
    assert found["nearer_target"] is False
    assert found["background_error"] == 0
    assert found["source_shift"] == 0
    assert found["error"] == pytest.approx(error(source, target))


def test_background_is_what_the_target_leaves(source: Image.Image, target: Image.Image) -> None:
    kept = unchanged(source, target)
    painted = np.zeros((SIZE, SIZE), bool)
    painted[28:62, 18:52] = True  # the square and two pixels about it
    assert not kept[30:60, 20:50].any()
    assert kept[~painted].all()
    worse = Image.blend(target, Image.new("RGB", target.size), 0.1)
    ImageDraw.Draw(worse).rectangle((20, 30, 49, 59), fill=(0, 0, 0))  # is not looked at
    found = background(source, target, worse)
    apart = np.abs(pixels(worse) - pixels(source))[kept]
    assert found["background"] == pytest.approx(kept.mean())
    assert found["background_error"] == pytest.approx(apart.mean() / 127.5)
    assert found["background_psnr"] == pytest.approx(10 * np.log10(255**2 / np.square(apart).mean()))


def test_of_a_picture_that_is_changed_all_over_no_background_is_measured(source: Image.Image) -> None:
    inverted = ImageOps.invert(source)
    found = background(source, inverted, inverted)
    assert found.keys() == {"background"}
    assert found["background"] < 0.05


def test_shifts_are_found_in_pixels(tmp_path: Path, source: Image.Image, target: Image.Image) -> None:
    moved = ImageChops.offset(target, 3, 4)
    found = measured(edited(tmp_path, source, target, moved))
    assert found["target_shift"] == found["source_shift"] == 5
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8))
    assert measured(edited(tmp_path, source, target, noise))["source_shift"] is None


def test_psnr_and_ssim_are_those_of_their_formulas(source: Image.Image) -> None:
    darker = source.point(lambda value: max(0, value - 10))
    squares = np.square(pixels(source) - pixels(darker)).mean()
    assert psnr(pixels(source), pixels(darker)) == pytest.approx(10 * np.log10(255**2 / squares))
    assert ssim(source, source) == pytest.approx(1)
    constant = [Image.new("RGB", (32, 32), (value, value, value)) for value in (100, 150)]
    luminance = (2 * 100 * 150 + (0.01 * 255) ** 2) / (100**2 + 150**2 + (0.01 * 255) ** 2)
    assert ssim(*constant) == pytest.approx(luminance, abs=1e-6)


@pytest.mark.parametrize("name", CHANGES)
def test_an_edit_that_is_known_is_checked_in_both_languages(name: str, tmp_path: Path, source: Image.Image) -> None:
    right = CHANGES[name].make(source)
    for text in CHANGES[name].said.values():
        assert recoloured([edited(tmp_path, source, right, right, text)]) == [{name: True}]
        for other in {*CHANGES} - {name}:
            wrong = CHANGES[other].make(source)
            assert recoloured([edited(tmp_path, source, right, wrong, text)]) == [{name: False}]
        assert recoloured([edited(tmp_path, source, right, source, text)]) == [{name: False}]
    faint = Image.blend(right, Image.new("RGB", right.size, (128, 128, 128)), 0.9)
    assert recoloured([edited(tmp_path, source, right, faint, CHANGES[name].said["en"])]) == [{name: False}]
    assert recoloured([edited(tmp_path, source, right, right, "make it blue")]) == [{}]
