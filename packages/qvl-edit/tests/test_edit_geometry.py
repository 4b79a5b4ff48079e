"""Sizes are the pipelines' own, source and target are treated alike, and nothing is stretched further than allowed."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as plus
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qvl_core.errors import BadInput
from qvl_data.errors import REASONS, BadSample
from qvl_edit import geometry as module
from qvl_edit.alignment import shift
from qvl_edit.geometry import Geometry, numbers, resized, sides, stretched

SIDES = st.integers(32, 6000)
SIZES = st.tuples(SIDES, SIDES)
AREAS = st.sampled_from([256 * 256, 384 * 384, 512 * 512, 1024 * 1024])
GEOMETRY = st.builds(Geometry, area=AREAS, stretch=st.sampled_from([0.01, 0.07, 0.2]), step=st.sampled_from([16, 32]))


@given(AREAS, st.floats(0.1, 10))
def test_sides_are_those_of_diffusers(area: int, ratio: float) -> None:
    height, width = sides(area, ratio)
    assert (width, height) == plus.calculate_dimensions(area, ratio)


@pytest.mark.parametrize(
    ("size", "vl", "area", "error"),
    [
        ((1024, 1024), (384, 384), (1024, 1024), 0),
        ((1080, 1920), (288, 512), (768, 1376), 0.0078),
        ((600, 800), (320, 448), (896, 1184), -0.0089),
        ((500, 1500), (224, 672), (576, 1760), 0.0185),
    ],
)
def test_known_sizes(size: Any, vl: Any, area: Any, error: float) -> None:
    geometry = Geometry(vl_area=384 * 384)
    assert geometry.vl(size) == vl
    assert geometry.fit(size, [size]) == (area, (area,))
    assert stretched(size, area) == pytest.approx(error, abs=6e-5)


@given(GEOMETRY, SIZES, st.lists(SIZES, max_size=3))
def test_what_is_fitted_keeps_what_is_promised(geometry: Geometry, target: Any, sources: list[Any]) -> None:
    try:
        bucket = geometry.fit(target, sources)
    except BadSample:
        return
    for size, fitted in zip([target, *sources], [bucket.target, *bucket.sources], strict=True):
        assert abs(stretched(size, fitted)) <= geometry.stretch
        assert all(side % geometry.step == 0 and side > 0 for side in fitted)
    assert geometry.fit(target, sources) == bucket


@given(GEOMETRY, SIZES, st.integers(1, 4))
def test_pictures_of_one_shape_get_one_size(geometry: Geometry, size: Any, times: int) -> None:
    larger = (size[0] * times, size[1] * times)
    for target, source in ((size, larger), (larger, size)):
        try:
            bucket = geometry.fit(target, [source])
        except BadSample:
            continue
        assert bucket.sources == (bucket.target,)


@given(SIZES, st.integers(-3, 3), st.integers(-3, 3))
def test_a_target_with_nearly_its_sources_shape_gets_its_size(size: Any, more: int, wider: int) -> None:
    """Editors round sides; a pair must not be pulled apart where this crosses the border between two sizes."""
    source = (size[0] + 400, size[1] + 400)
    target = (source[0] + more, source[1] + wider)
    try:
        bucket = Geometry().fit(target, [source])
    except BadSample:
        return
    assert bucket.sources == (bucket.target,)


def test_a_target_of_another_shape_keeps_its_own() -> None:
    assert Geometry().fit((1024, 1024), [(1080, 1920)]) == ((1024, 1024), ((768, 1376),))
    assert Geometry().fit((1024, 1024), [(1080, 1920), (800, 800)]).target == (1024, 1024)
    assert Geometry().fit((1080, 1920)) == ((768, 1376), ())


def test_sources_may_have_an_area_of_their_own() -> None:
    assert Geometry(area=512 * 512, source_area=1024 * 1024).fit((900, 900), [(900, 900)]) == (
        (512, 512),
        ((1024, 1024),),
    )


@pytest.mark.parametrize(("size", "geometry"), [((100, 9000), Geometry()), ((600, 900), Geometry(area=64 * 64))])
def test_what_would_be_stretched_is_refused(size: Any, geometry: Geometry) -> None:
    said = rf"a\.png: {size[1]} x {size[0]} pixels would become \d+ x \d+, .* more than 7%; crop it"
    with pytest.raises(BadSample, match=said) as error:
        geometry.fit(size, [], "a.png")
    assert error.value.reason in REASONS
    with pytest.raises(BadSample, match=said):
        geometry.fit((512, 512), [size], "a.png")


def test_what_would_vanish_is_refused() -> None:
    with pytest.raises(BadSample, match="would become"):
        Geometry(vl_area=384 * 384).vl((10, 9000))
    with pytest.raises(BadInput, match="height: 8 pixels are less than one token; ask for 16 or more"):
        Geometry().output((500, 500), height=8)


@given(SIZES)
def test_what_is_drawn_has_the_size_that_the_pipeline_draws(size: Any) -> None:
    width, height = plus.calculate_dimensions(1024 * 1024, size[1] / size[0])
    if min(width, height) > 0:
        assert Geometry().output(size) == (height // 16 * 16, width // 16 * 16)


def test_a_size_that_is_asked_for_is_floored() -> None:
    assert Geometry().output((500, 500), height=527, width=1000) == (512, 992)
    assert Geometry().output((500, 500), width=1000) == (1024, 992)


@pytest.mark.parametrize(
    ("side", "worst", "three_by_four"), [(256, 0.141, 0.036), (512, 0.066, 0.036), (1024, 0.038, 0.009)]
)
def test_the_figures_of_the_docstring(side: int, worst: float, three_by_four: float) -> None:
    ratios = np.exp(np.linspace(-np.log(4), np.log(4), 4001))
    errors = [stretched((1.0, ratio), sides(side * side, ratio)) for ratio in ratios]  # type: ignore[arg-type]
    assert max(np.abs(errors)) == pytest.approx(worst, abs=0.001)
    assert abs(stretched((3, 4), sides(side * side, 4 / 3))) == pytest.approx(three_by_four, abs=0.001)
    written = {figure for line in (module.__doc__ or "").splitlines() if "1:4" in line for figure in line.split()}
    assert f"{worst:.3f}" in written


@pytest.mark.parametrize("size", [(64, 96), (96, 32), (33, 77)])
def test_pixels_are_those_of_diffusers(pipeline: Callable[[str], Any], noise: Any, size: Any) -> None:
    picture, own = noise(101, 67), pipeline("edit-plus").image_processor
    assert own.resize(picture, *size).tobytes() == resized(picture, size).tobytes()
    size = (64, 96)
    expected = own.preprocess(picture, *size)[0].numpy()
    np.testing.assert_array_equal(numbers(resized(picture, size)), expected)


@pytest.mark.parametrize("size", [(300, 400), (333, 512), (512, 257), (400, 400)])
@pytest.mark.parametrize("times", [1, 2])
def test_a_pair_of_one_picture_is_not_shifted(photo: Any, size: Any, times: int) -> None:
    source = photo.resize((size[1], size[0]))
    target = source.resize((size[1] * times, size[0] * times))
    bucket = Geometry(area=256 * 256, stretch=0.2).fit((target.height, target.width), [size])
    found = shift(*(np.asarray(resized(one, bucket.target)) for one in (source, target)))
    assert (found.down, found.right, found.sure) == (0, 0, True)
    assert bucket.target == bucket.sources[0]


@pytest.fixture
def noise() -> Callable[[int, int], Image.Image]:
    def make(width: int, height: int) -> Image.Image:
        values = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        return Image.fromarray(values)

    return make
