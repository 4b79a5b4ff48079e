import contextlib
import json
import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from qvl_core.errors import BadInput
from qvl_data.chat import encode, length, prompt
from qvl_data.errors import REASONS, BadSample
from qvl_data.grounding import (
    SPACES,
    Space,
    area,
    as_text,
    check,
    clip,
    coord_space,
    parse,
    render,
    space_of,
    states_coordinates,
    stored,
    upright,
    xywh,
    xyxy,
)
from qvl_data.media import open_image
from qvl_data.sample import Media, Region, Sample

from .chats import build, file_of, picture

QWEN3, QWEN25, PIXEL = (SPACES[name] for name in ("qwen3vl", "qwen2.5vl", "pixel"))


def box(*xy, label=None, media=0):
    return Region(media=media, kind="box", xy=tuple(map(float, xy)), label=label)


def point(x, y, label=None):
    return Region(media=0, kind="point", xy=(float(x), float(y)), label=label)


def polygon(*xy):
    return Region(media=0, kind="polygon", xy=tuple(map(float, xy)))


def grounded(*regions, size=(640, 480), shown=None, template=None, **fields):
    """A chat whose answer is a part of type regions."""
    shown = list(range(len(regions)) if shown is None else shown)
    answer = {"type": "regions", "regions": shown, **({"template": template} if template else {})}
    return Sample.model_validate(
        {
            "id": "g",
            "task": "chat",
            "media": [{"kind": "image", "bytes": file_of(picture(*size))}],
            "messages": [
                {"role": "user", "parts": [{"type": "image", "media": 0}, {"type": "text", "text": "Find all."}]},
                {"role": "assistant", "parts": [answer]},
            ],
            "regions": [region.model_dump() for region in regions],
            **fields,
        }
    )


# Text


def test_one_region_is_an_object_and_several_are_a_list_as_qwen_writes_them():
    def size(_):
        return 640, 480

    house = box(86.4, 54.72, 640, 322.56, label="house")
    people = [point(221.44, 157.44, "person"), point(152.32, 75.84)]
    assert render([house], size) == '{"bbox_2d": [135, 114, 1000, 672], "label": "house"}'
    assert render(people, size) == '[{"point_2d": [346, 328], "label": "person"}, {"point_2d": [238, 158]}]'
    assert render([], size) == "[]"
    fenced = '```json\n[\n\t{"bbox_2d": [135, 114, 1000, 672], "label": "house"}\n]\n```'
    assert render([house], size, layout="fenced") == fenced
    assert render([house, *people], size, layout="plain") == "[135, 114, 1000, 672], [346, 328], [238, 158]"
    named = render([box(0, 0, 9, 9, label='家 "a" <b>')], size)
    assert named == '{"bbox_2d": [0, 0, 14, 19], "label": "家 \\"a\\" <b>"}'
    with pytest.raises(BadSample, match='no layout "xml" of regions; use json, fenced, plain'):
        render([house], size, layout="xml")


sizes = st.tuples(st.integers(1, 9000), st.integers(1, 9000))
spaces = st.sampled_from([QWEN3, QWEN25, PIXEL, Space("qwen2.5vl", 256 * 784, 1280 * 784)])
units = st.floats(0, 1, allow_subnormal=False)


@given(sizes, spaces, units, units, units, units)
def test_what_is_read_back_is_half_a_step_off_at_most(size, space, x1, y1, x2, y2):
    width, height = size
    wide, high = space.extent(width, height)
    xs, ys = sorted((x1 * width, x2 * width)), sorted((y1 * height, y2 * height))
    if xs[1] - xs[0] < width / wide or ys[1] - ys[0] < height / high or (xs[1] * wide / width <= 2):
        return  # thinner than a step, or in the corner of fractions
    region = Region(media=0, kind="box", xy=(xs[0], ys[0], xs[1], ys[1]), label="a")
    (again,) = parse(render([region], lambda _: size, space), width, height, space)
    bounds = (width / wide / 2, height / high / 2) * 2
    for value, back, bound in zip(region.xy, again.xy, bounds, strict=True):
        assert abs(value - back) <= bound * (1 + 1e-9)
    assert again.label == "a"
    if space is QWEN3:
        assert bounds[0] == width / 2000


@given(sizes, spaces, st.floats(0, 1), st.floats(0, 1), st.floats(1e-9, 1))
def test_a_box_thinner_than_a_step_stays_a_box(size, space, x, y, thin):
    width, height = size
    wide, high = space.extent(width, height)
    x1, y1 = x * width, y * height
    x2, y2 = x1 + thin * width / wide, y1 + thin * height / high
    if x1 >= x2 or y1 >= y2:
        return
    text = render([box(x1, y1, x2, y2)], lambda _: size, space)
    left, top, right, bottom = json.loads(text)["bbox_2d"]
    assert 0 <= left < right <= wide
    assert 0 <= top < bottom <= high
    assert abs(left * width / wide - x1) <= width / wide * (1 + 1e-9)
    assert abs(min(x2, width) - right * width / wide) <= width / wide * (1 + 1e-9)


@pytest.mark.parametrize("space", [QWEN3, QWEN25, PIXEL])
@pytest.mark.parametrize("size", [(640, 480), (333, 1777), (4032, 3024), (7, 9)])
def test_borders_are_exact(space, size):
    wide, high = space.extent(*size)
    whole = box(0, 0, *size)
    text = render([whole], lambda _: size, space)
    assert json.loads(text)["bbox_2d"] == [0, 0, wide, high]
    assert parse(text, *size, space) == [whole]
    if space is QWEN3:
        assert (wide, high) == (1000, 1000)
        corners = parse('[{"point_2d": [0, 0]}, {"point_2d": [1000, 1000]}]', *size)
        assert [corner.xy for corner in corners] == [(0, 0), size]


def test_what_reaches_beyond_the_picture_is_clamped():
    text = render([box(-5, -1e308, 1e308, 500), point(-1, 9e99)], lambda _: (640, 480))
    assert json.loads(text) == [{"bbox_2d": [0, 0, 1000, 1000]}, {"point_2d": [0, 1000]}]


def test_qwen25_counts_pixels_as_its_processor_resizes_them():
    pytest.importorskip("torch", reason="the reference needs qvl-core[train]")
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    numbers = np.random.default_rng(0)
    limits = [(56 * 56, 3584 * 3584), (256 * 784, 1280 * 784), (4 * 784, 8 * 784)]
    for width, height in numbers.integers(1, 4000, (500, 2)).tolist():
        if max(width, height) / min(width, height) > 200:
            continue
        for least, most in limits:
            expected = smart_resize(height, width, 28, least, most)
            assert Space("qwen2.5vl", least, most).extent(width, height) == expected[::-1]
    assert render([box(0, 0, 500, 375)], lambda _: (1000, 750), QWEN25) == '{"bbox_2d": [0, 0, 504, 378]}'


def test_the_space_is_that_of_the_processor(processor):
    assert space_of(processor) == QWEN3
    size = {"shortest_edge": 3136, "longest_edge": 100_000}
    images = type("Images", (), {"size": size})()
    other = type("Qwen2_5_VLProcessor", (), {"image_processor": images})()
    assert space_of(other) == Space("qwen2.5vl", 3136, 100_000)


@pytest.mark.parametrize(
    "text",
    [
        '{"bbox_2d": [100, 200, 300, 400], "label": "cat"}',
        '[{"bbox_2d": [100, 200, 300, 400], "label": "cat"}]',
        '```json\n[\n\t{"bbox_2d": [100, 200, 300, 400], "label": "cat"}\n]\n```',
        '```\n{"label": "cat", "bbox_2d": [100.0, 200.0, 300.0, 400.0]}',
        'Here it is: {"bbox_2d": [100, 200, 300, 400], "label": "cat", "role": "pet"}. Anything else {x}?',
        '{"objects": [{"bbox_2d": [100, 200, 300, 400], "text_content": "cat"}]}',
    ],
)
def test_texts_that_state_a_box(text):
    assert parse(text, 640, 480) == [box(64, 96, 192, 192, label="cat")]


def test_values_may_be_fractional_and_end_at_999():
    assert parse('{"bbox_2d": [99.5, 0, 999, 999]}', 1000, 2000) == [box(99.5, 0, 999, 1998)]
    assert parse("nothing [here] {}", 10, 10) == []
    kinds = parse('[{"point_2d": [5, 6]}, {"polygon_2d": [0, 0, 500, 0, 500, 500]}]', 1000, 1000)
    assert kinds == [point(5, 6), polygon(0, 0, 500, 0, 500, 500)]


@pytest.mark.parametrize(
    ("text", "space", "problem"),
    [
        (
            '{"bbox_2d": [135, 114, 1016, 672]}',
            QWEN3,
            r"\[135, 114, 1016, 672\] leaves 0..1000; is it in another space",
        ),
        ('{"bbox_2d": [-3, 114, 16, 672]}', QWEN3, "leaves 0..1000"),
        ('{"bbox_2d": [0.1, 0.2, 0.3, 0.4]}', QWEN3, "looks like fractions of the picture; multiply by 1000"),
        ('{"bbox_2d": [0, 0, 1, 1]}', QWEN3, "looks like fractions"),
        ('{"bbox_2d": [0.1, 0.2, 0.3, 0.4]}', PIXEL, "multiply by its size"),
        ('{"bbox_2d": [1, 2, 641, 4]}', PIXEL, "leaves 0..640"),
        ('{"bbox_2d": [300, 2, 100, 400]}', QWEN3, "is no box: empty, inverted, or of a wrong count"),
        ('{"bbox_2d": [300, 2, 300, 400]}', QWEN3, "is no box"),
        ('{"bbox_2d": [300, 2, 400]}', QWEN3, "is no box"),
        ('{"point_2d": [1, 2, 300, 400]}', QWEN3, "is no point"),
        ('{"polygon_2d": [1, 2, 300, 400]}', QWEN3, "is no polygon"),
        ('{"bbox_2d": [NaN, 2, 300, 400]}', QWEN3, "leaves 0..1000"),
        ('{"bbox_2d": [1, 2, 1e999, 400]}', QWEN3, "leaves 0..1000"),
        ('{"bbox_2d": [1, 2, %s, 400]}' % ("9" * 400), QWEN3, "leaves 0..1000"),
        ('{"bbox_2d": [1, 2, %s, 400]}' % ("9" * 9000), QWEN3, "1 of 1 regions in the text are no sound JSON"),
        ('[{"bbox_2d": [10, 20, 30, 40]}, {"bbox_2d": [10, 2', QWEN3, "1 of 2 regions in the text are no sound JSON"),
        ("{'bbox_2d': [10, 20, 30, 40]}", QWEN3, "1 of 1 regions"),
        ('{"bbox_2d": ["10", 20, 30, 40]}', QWEN3, "1 of 1 regions"),
        ('{"bbox_2d": [true, 20, 30, 40]}', QWEN3, "1 of 1 regions"),
        ("[" * 100_001, QWEN3, "in a text of 100001 characters, over 100000"),
    ],
)
def test_coordinates_that_cannot_be_read_are_refused(text, space, problem):
    with pytest.raises(BadSample, match=problem) as caught:
        parse(text, 640, 480, space)
    assert caught.value.reason == "coordinates"


def test_a_models_text_is_read_as_far_as_it_goes():
    text = (
        '```json\n[{"bbox_2d": [900, 500, 1016, 700]}, {"bbox_2d": [5, 5, 2, 2]}, {"bbox_2d": [10, 20, 30, 40]}, {"bb'
    )
    assert parse(text, 1000, 1000, lenient=True) == [box(900, 500, 1000, 700), box(10, 20, 30, 40)]


@given(st.text(st.sampled_from('{}[]",:bbox_2dpoint 019.-eN\\'), max_size=60) | st.text(max_size=40), st.booleans())
def test_no_text_crashes(text, lenient):
    for written, space in (('{"bbox_2d": [' + text, QWEN3), (text, QWEN25)):
        with contextlib.suppress(BadSample):
            parse(written, 640, 480, space, lenient=lenient)
    states_coordinates(text)


@pytest.mark.parametrize("start", ["[", "{", '{"', '{"a":', '{"a":[', '{\\"', '"', "```json"])
def test_hostile_texts_are_read_in_bounded_time(start):
    text = (start * 100_000)[:100_000]
    before = time.process_time()
    assert parse(text, 10, 10, lenient=True) == []
    states_coordinates(text)
    assert time.process_time() - before < 5


# Samples


def test_regions_become_text_and_the_space_is_noted():
    sample = grounded(box(64, 48, 320, 240, label="cat"), extra='{"fields": {"a": 1}}')
    written = as_text(sample)
    assert written.messages[1].text == '{"bbox_2d": [100, 100, 500, 500], "label": "cat"}'
    assert (written.regions, coord_space(written), written.id) == ((), "qwen3vl", "g")
    assert json.loads(written.extra)["fields"] == {"a": 1}
    assert Sample.model_validate(written.to_dict()).messages == written.messages
    assert as_text(written) is written
    assert as_text(sample, "pixel").messages[1].text == '{"bbox_2d": [64, 48, 320, 240], "label": "cat"}'
    assert parse(written.messages[1].text, 640, 480) == list(sample.regions)
    with pytest.raises(BadInput, match='no coordinate space "qwen4"; use one of qwen3vl'):
        as_text(sample, "qwen4")


def test_a_space_that_is_no_name_is_unknown():
    spaces = {'{"coord_space": 7}': "unknown", '{"coord_space": null}': None, '{"fields": {"coord_space": 1}}': None}
    for extra, space in spaces.items():
        assert coord_space(grounded(box(0, 0, 9, 9), extra=extra)) == space


def test_regions_that_no_part_names_are_not_lost():
    sample = grounded(box(0, 0, 9, 9), box(3, 3, 9, 9), shown=[1])
    assert as_text(sample).regions == sample.regions


def test_an_unknown_layout_is_a_fault_of_the_sample(processor):
    sample = grounded(box(64, 48, 320, 240), template="xml")
    with pytest.raises(BadSample, match='no layout "xml"') as caught:
        encode(sample, processor)
    assert (caught.value.reason, caught.value.sample_id) == ("regions", "g")


def test_a_place_outside_the_picture_is_not_learned(processor):
    sample = grounded(box(8, 8, 16, 16), box(90, 10, 120, 40), size=(80, 60))
    said = r"regions\[1\]: box \[90, 10, 120, 40\] lies outside its picture of 80 x 60 pixels; is it in another space"
    for ask in (encode, length):
        with pytest.raises(BadSample, match=said) as caught:
            ask(sample, processor)
        assert (caught.value.reason, caught.value.sample_id) == ("region_outside", "g")
    encode(grounded(box(8, 8, 16, 16), box(90, 10, 120, 40), size=(80, 60), shown=[0]), processor)


@pytest.mark.parametrize("template", [None, "fenced", "plain"])
def test_grounding_answers_are_learned_token_for_token(template, processor):
    sample = grounded(box(16, 12, 64, 48, label="a cat"), point(32, 24, "nose"), size=(80, 60), template=template)
    encoded = encode(sample, processor)
    assert length(sample, processor) == len(encoded)
    written = as_text(sample).messages[1].text
    learned = processor.tokenizer.decode(encoded.ids[encoded.labels >= 0])
    assert learned == f"{written}<|im_end|>"
    plain = build(("user", open_image(sample.media[0]), "Find all."), ("assistant", written))
    np.testing.assert_array_equal(encode(plain, processor).ids, encoded.ids)
    question, answer = prompt(sample, processor)
    assert answer == written
    np.testing.assert_array_equal(question.ids, encoded.ids[: len(question.ids)])


def test_regions_in_a_question_are_shown_and_not_learned(processor):
    sample = grounded(box(16, 12, 64, 48), size=(80, 60))
    ask = {"type": "regions", "regions": [0], "template": "plain"}
    turns = [
        {"role": "user", "parts": [{"type": "image", "media": 0}, {"type": "text", "text": "What is at "}, ask]},
        {"role": "assistant", "parts": [{"type": "text", "text": "a cat"}]},
    ]
    sample = Sample.model_validate({**sample.to_dict(), "messages": turns})
    encoded = encode(sample, processor)
    assert "What is at [200, 200, 800, 800]<|im_end|>" in processor.tokenizer.decode(encoded.ids)
    assert processor.tokenizer.decode(encoded.ids[encoded.labels >= 0]) == "a cat<|im_end|>"


def test_special_tokens_in_a_label_stay_text(processor):
    sample = grounded(box(16, 12, 64, 48, label="<|im_end|><|image_pad|>"), size=(80, 60))
    encoded = encode(sample, processor)
    ends = (encoded.ids == processor.tokenizer.convert_tokens_to_ids("<|im_end|>")).sum()
    assert ends == 2
    assert length(sample, processor) == len(encoded)


# Frames and shapes


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_of_stored_pictures_stand_upright_where_their_pixels_do(orientation):
    size, drawn = (60, 40), (9, 5, 30, 15)
    image = Image.new("RGB", size)
    ImageDraw.Draw(image).rectangle((9, 5, 29, 14), "white")
    exif = Image.Exif()
    exif[0x0112] = orientation
    for format in ("PNG", "JPEG"):
        opened = open_image(Media(kind="image", bytes=file_of(image, format, exif=exif)))
        assert opened.size == (size if orientation < 5 else size[::-1])
        ys, xs = np.nonzero(np.asarray(opened)[..., 0] > 127)
        found = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1
        assert upright(drawn, orientation, *size) == found
    assert stored(found, orientation, *size) == drawn


@given(st.integers(1, 8), st.lists(st.integers(0, 40), min_size=2, max_size=12).filter(lambda xy: len(xy) % 2 == 0))
def test_stored_undoes_upright(orientation, xy):
    if len(xy) == 4:
        xy = [min(xy[0], xy[2]), min(xy[1], xy[3]), max(xy[0], xy[2]), max(xy[1], xy[3])]
    assert list(stored(upright(xy, orientation, 60, 40), orientation, 60, 40)) == xy


def test_coco_boxes():
    assert xyxy((10, 20, 30, 40)) == (10, 20, 40, 60)
    assert xywh((10, 20, 40, 60)) == (10, 20, 30, 40)


def test_clipping():
    assert clip(box(-5, 10, 50, 90), 40, 60) == box(0, 10, 40, 60)
    assert clip(box(40, 0, 50, 9), 40, 60) is None
    assert clip(point(40, 60), 40, 60) == point(40, 60)
    assert clip(point(41, 0), 40, 60) is None
    assert clip(polygon(10, 10, 20, 10, 20, 20), 40, 60) == polygon(10, 10, 20, 10, 20, 20)
    half = clip(polygon(-10, 0, 10, 0, 10, 20, -10, 20), 40, 60)
    assert area(half) == 200
    assert set(zip(half.xy[::2], half.xy[1::2], strict=True)) == {(0, 0), (10, 0), (10, 20), (0, 20)}
    assert clip(polygon(-10, 0, -5, 0, -5, 20), 40, 60) is None
    assert clip(polygon(0, 0, 5, 5, 9, 9), 40, 60) is None
    assert area(clip(polygon(-1e308, -1e308, 1e308, -1e308, 1e308, 1e308, -1e308, 1e308), 40, 60)) == 2400


@given(st.lists(st.integers(-30, 90), min_size=6, max_size=6), st.integers(5, 60), st.integers(5, 60))
def test_a_clipped_triangle_is_the_pixels_it_covers(xy, width, height):
    left = clip(polygon(*xy), width, height)
    step = 4  # samples per pixel and axis
    ys, xs = np.mgrid[0 : height * step, 0 : width * step] / step + 0.5 / step
    x, y = xy[::2], xy[1::2]
    turns = np.stack([(x[i - 1] - xs) * (y[i] - ys) - (x[i] - xs) * (y[i - 1] - ys) for i in range(3)])
    covered = ((turns > 0).all(0) | (turns < 0).all(0)).sum() / step**2
    rim = 3 * (width + height) / step  # samples that an edge of the triangle may miss
    assert math.isclose(area(left) if left else 0, covered, abs_tol=rim)
    if left:
        assert min(left.xy) >= 0
        assert max(left.xy[::2]) <= width
        assert max(left.xy[1::2]) <= height


# Check


@pytest.mark.parametrize(
    ("region", "reason", "problem"),
    [
        (
            box(700, 0, 710, 9),
            "region_outside",
            "regions[0]: box [700, 0, 710, 9] lies outside its picture of 640 x 480",
        ),
        (box(600, 0, 641, 9), "region_beyond", "reaches beyond its picture of 640 x 480 pixels; clip it"),
        (point(-1, 5), "region_outside", "point"),
        (polygon(0, 0, 5, 5, 9, 9), "region_empty", "has no area"),
        (polygon(0, 0, 50, 0, 50, 500), "region_beyond", "polygon"),
        (box(0, 0, 640, 480), None, None),
    ],
)
def test_regions_are_checked_against_their_pictures(region, reason, problem):
    found = check(grounded(region))
    if reason is None:
        assert found == []
        return
    (error,) = found
    assert (error.reason, error.sample_id) == (reason, "g")
    assert reason in REASONS
    assert problem in str(error)


def test_declared_coordinates_in_text_are_checked():
    answer = '{"bbox_2d": [135, 114, 1016, 672], "label": "house"}'
    declared = {'{"coord_space": "qwen3vl"}': ["coordinates"], '{"coord_space": "unknown"}': [], None: []}
    for extra, reasons in declared.items():
        sample = build(("user", picture(640, 480), "Where?"), ("assistant", answer), extra=extra)
        assert [error.reason for error in check(sample)] == reasons
    sample = build(("user", picture(1100, 700), "Where?"), ("assistant", answer), extra='{"coord_space": "pixel"}')
    assert check(sample) == []
    missing = Sample.model_validate(
        {
            **grounded(box(0, 0, 9, 9)).to_dict(),
            "media": [{"kind": "image", "path": "gone.png"}],
            "extra": '{"coord_space": "pixel"}',
        }
    )
    assert check(missing) == []  # the picture itself is reported elsewhere
