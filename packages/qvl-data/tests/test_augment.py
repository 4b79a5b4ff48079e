import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from pydantic import ValidationError

from qvl_core.recipe.blocks import Augment, Data, Source
from qvl_data.augment import Augmentation, augmented, draw, names_a_side
from qvl_data.chat import encode
from qvl_data.convert import write_samples
from qvl_data.grounding import clip
from qvl_data.sample import Media, Region, Sample
from qvl_data.sources import Mixture
from qvl_data.stream import ChatSamples

from .chats import build, file_of, picture

RED = (255, 0, 0)
JITTER = {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3}


def with_box(size, box, answer="a cat", **fields):
    """A chat about a black picture with a red rectangle, which is named in the answer by a part of type regions."""
    image = Image.new("RGB", size)
    x1, y1, x2, y2 = box
    ImageDraw.Draw(image).rectangle((x1, y1, x2 - 1, y2 - 1), RED)
    return Sample.model_validate(
        {
            "id": "box",
            "task": "chat",
            "media": [{"kind": "image", "bytes": file_of(image)}],
            "messages": [
                {"role": "user", "parts": [{"type": "image", "media": 0}, {"type": "text", "text": "Where is it?"}]},
                {"role": "assistant", "parts": [{"type": "regions", "regions": [0]}]},
            ],
            "regions": [{"media": 0, "kind": "box", "xy": [float(value) for value in box], "label": answer}],
            **fields,
        }
    )


def found(image):
    """The box of the red pixels, as x1, y1, x2, y2."""
    red = np.asarray(image)[..., 0].astype(int) > 127
    ys, xs = np.nonzero(red)
    return xs.min(), ys.min(), xs.max() + 1, ys.max() + 1


def opened(sample, index=0):
    return sample.opener.open(sample.media[index])


@st.composite
def rectangles(draw, least=1, margin=0):
    """Size of a picture and a box in it, `margin` from its borders."""
    width, height = draw(st.integers(16, 90)), draw(st.integers(16, 90))
    right, bottom = width - margin, height - margin
    x1, y1 = draw(st.integers(margin, right - least)), draw(st.integers(margin, bottom - least))
    return (width, height), (x1, y1, draw(st.integers(x1 + least, right)), draw(st.integers(y1 + least, bottom)))


units = st.floats(0, 1)
windows = st.tuples(units, units, st.floats(0.3, 1))


@given(rectangles(), windows, st.booleans())
def test_boxes_move_exactly_as_the_pixels_do_under_crop_and_flip(rectangle, window, flip):
    size, box = rectangle
    sample = with_box(size, box)
    change = Augmentation(window=window, flip=flip)
    image = change.picture(opened(sample))
    assert image.size == change.size(size)
    moved = clip(change.region(sample.regions[0], size), *image.size)
    if moved is None:
        assert np.asarray(image).max() == 0
    else:
        assert moved.xy == found(image)


@given(rectangles(least=8), windows, st.booleans(), st.floats(0.5, 2.5))
def test_boxes_move_with_the_pixels_within_one_when_resized(rectangle, window, flip, factor):
    size, box = rectangle
    sample = with_box(size, box)
    change = Augmentation(window=window, flip=flip, resize=factor)
    image = change.picture(opened(sample))
    assert image.size == change.size(size)
    moved = clip(change.region(sample.regions[0], size), *image.size)
    assume(moved is not None and min(moved.xy[2] - moved.xy[0], moved.xy[3] - moved.xy[1]) >= 2)
    np.testing.assert_allclose(found(image), moved.xy, atol=1)


@given(rectangles(margin=7), st.booleans(), st.integers(-6, 6), st.integers(-6, 6))  # the border is repeated
def test_boxes_move_exactly_as_the_pixels_do_under_shift(rectangle, flip, dx, dy):
    size, box = rectangle
    sample = with_box(size, box)
    change = Augmentation(flip=flip, shift=(dx, dy))
    assert change.region(sample.regions[0], size).xy == found(change.picture(opened(sample)))


def test_points_and_polygons_move_as_boxes_do():
    change = Augmentation(window=(1, 0, 0.5), flip=True, resize=2, shift=(3, -1))
    assert change.size((100, 60)) == (100, 60)  # the right half of the top, twice as large
    point = Region(media=0, kind="point", xy=(60.0, 5.0))
    assert change.region(point, (100, 60)).xy == (100 - 20 + 3, 10 - 1)
    polygon = Region(media=0, kind="polygon", xy=(60.0, 5.0, 90.0, 5.0, 90.0, 25.0))
    assert change.region(polygon, (100, 60)).xy == (83, 9, 23, 9, 23, 49)
    box = Region(media=0, kind="box", xy=(60.0, 5.0, 90.0, 25.0))
    assert change.region(box, (100, 60)).xy == (23, 9, 83, 49)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_of_pictures_that_a_camera_turned(orientation):
    upright = Image.new("RGB", (60, 40))
    ImageDraw.Draw(upright).rectangle((9, 5, 29, 14), RED)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose that stores it that way
    image = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    sample = with_box((60, 40), (9, 5, 30, 15))
    turned = Media(kind="image", bytes=file_of(image, "PNG", exif=exif))
    sample = sample.model_copy(update={"media": (turned,)})
    for key in range(10):
        changed = augmented(sample, Augment(crop=0.4, flip=0.5), key)
        assert changed.regions[0].xy == found(opened(changed))


@given(st.integers(), rectangles(least=2), st.floats(0.1, 1), st.integers(0, 30))
def test_no_region_is_cut_away(key, rectangle, crop, shift):
    size, box = rectangle
    sample = with_box(size, box)
    changed = augmented(sample, Augment(crop=crop, shift=shift, flip=0.5, visible=0.6), key)
    change = changed.opener.augmentation
    whole = change.region(sample.regions[0], size).xy
    left = changed.regions[0].xy
    assert (left[2] - left[0]) * (left[3] - left[1]) >= 0.6 * (whole[2] - whole[0]) * (whole[3] - whole[1]) - 1e-6
    width, height = change.size(size)
    assert 0 <= left[0] < left[2] <= width
    assert 0 <= left[1] < left[3] <= height


def test_a_crop_that_cannot_keep_the_regions_is_left_out():
    sample = with_box((50, 40), (0, 0, 50, 40))
    changes = [augmented(sample, Augment(crop=0.3, visible=1, flip=0.5), key).opener.augmentation for key in range(50)]
    assert {change.size((50, 40)) for change in changes} == {(50, 40)}
    assert {change.flip for change in changes} == {True, False}


def test_a_point_stays_in_the_picture():
    sample = with_box((50, 40), (0, 0, 50, 40))
    corner = Region(media=0, kind="point", xy=(1.0, 1.0))
    sample = sample.model_copy(update={"regions": (corner,)})
    crops = 0
    for key in range(200):
        changed = augmented(sample, Augment(crop=0.5), key)
        assert min(changed.regions[0].xy) >= 0
        crops += changed.opener.augmentation.window != (0, 0, 1)
    assert crops > 20


def test_a_region_that_lay_outside_before_neither_crashes_nor_is_cut():
    sample = with_box((50, 40), (0, 0, 50, 40))
    for xy in ((60.0, 0.0, 70.0, 5.0), (-1e308, 0.0, 1e308, 1.0), (0.0, 0.0, 1e-300, 1e-300)):
        outside = sample.model_copy(update={"regions": (Region(media=0, kind="box", xy=xy),)})
        augmented(outside, Augment(crop=0.5, shift=3, flip=0.5, resize=(0.5, 2)), 1)


def test_the_same_key_gives_the_same_bytes_and_other_keys_others():
    sample = build(("user", picture(40, 30), "?"), ("assistant", "!"))
    rules = Augment(crop=0.5, flip=0.5, resize=(0.5, 2), shift=3, **JITTER)
    first = augmented(sample, rules, 1, 2, 3)
    again = pickle.loads(pickle.dumps(augmented(sample, rules, 1, 2, 3)))
    assert opened(first).tobytes() == opened(again).tobytes()
    assert first.opener.augmentation == again.opener.augmentation
    others = [augmented(sample, rules, *key) for key in ((1, 2, 4), (1, 3, 3), (2, 2, 3), (2, 1, 3))]
    assert len({opened(other).tobytes() for other in (first, *others)}) == 5
    assert opened(sample).tobytes() != opened(first).tobytes()  # the sample itself is not changed
    assert opened(first).size == first.opener.size(first.media[0])


def test_what_is_drawn_follows_the_rules():
    sample = build(("user", picture(8, 8), "?"), ("assistant", "!"))
    rules = Augment(crop=0.5, flip=0.3, resize=(0.8, 1.2), shift=2, brightness=0.4)
    changes = [draw(rules, sample, key) for key in range(4000)]
    areas = np.array([change.window[2] ** 2 for change in changes])
    flips = np.array([change.flip for change in changes])
    factors = np.array([change.resize for change in changes])
    bright = np.array([change.brightness for change in changes])
    places = np.array([change.window[:2] for change in changes])
    for values, least, most in ((areas, 0.5, 1), (factors, 0.8, 1.2), (bright, 0.6, 1.4), (places, 0, 1)):
        assert least <= values.min() <= values.max() <= most
        parts = np.histogram(values, 5, (least, most))[0] / values.size
        np.testing.assert_allclose(parts, 0.2, atol=0.03)
    assert abs(flips.mean() - 0.3) < 0.03
    shifts = Counter(change.shift for change in changes)
    assert len(shifts) == 25
    assert min(shifts.values()) > 100
    series = np.stack([areas, flips, factors, bright, *places.T])
    assert np.abs(np.corrcoef(series) - np.eye(6)).max() < 0.06


def test_shift_moves_the_picture_and_repeats_the_border():
    image = picture(20, 12)
    pixels = np.asarray(image)
    for dx in (-3, 0, 2, 50):
        for dy in (-50, -1, 0, 3):
            moved = np.asarray(Augmentation(shift=(dx, dy)).picture(image))
            columns, rows = np.clip(np.arange(20) - dx, 0, 19), np.clip(np.arange(12) - dy, 0, 11)
            np.testing.assert_array_equal(moved, pixels[rows][:, columns])


def test_nothing_asked_is_nothing_done():
    image = picture()
    assert Augmentation().picture(image) is image
    sample = build(("user", image, "?"), ("assistant", "!"))
    assert augmented(sample, Augment(), 1).opener.augmentation == Augmentation()


def test_colours():
    grey = Image.new("RGB", (2, 2), (100, 100, 100))

    def first(image, **change):
        return Augmentation(**change).picture(image).getpixel((0, 0))

    assert first(grey, brightness=1.2) == (120, 120, 120)
    assert first(grey, brightness=3) == (255, 255, 255)
    assert first(grey, contrast=0.5) == (114, 114, 114)  # half way to 127.5
    assert first(grey, saturation=0.5) == (100, 100, 100)
    red = Image.new("RGB", (2, 2), (200, 100, 100))
    assert first(red, saturation=0) == (130, 130, 130)  # its luma
    assert first(red, saturation=1.5) == (235, 85, 85)


@pytest.mark.parametrize(
    "text",
    [
        "the cat on the left",
        "Right-hand side",
        "its LEFT_ARM",
        "leftShoulder",
        "the leftmost of two",
        "turn clockwise",
        "RLL opacity",
        "시계 방향으로",
        "ｌｅｆｔ",
        "左边的猫",
        "右側",
        "順時針",
        "みぎの犬",
        "왼쪽 고양이",
        "\u110b\u116c\u11ab\u1107\u1161\u11af",  # the same in decomposed letters
        "오른손",
        "우측 상단",
        "das linke Auge",
        "ganz rechts außen",
        "Linkshänder",
        "à gauche",
        "le bras droit",
        "a la izquierda",
        "mano derecha",
        "à direita",
        "a sinistra",
        "il braccio destro",
        "de linkerhand",
        "till vänster",
        "til høyre",
        "ho\u0308ger",
        "po lewej stronie",
        "справа от дома",
        "левый",
        "go → there",
    ],
)
def test_texts_that_tell_left_from_right_are_not_mirrored(text):
    assert names_a_side(text)
    sample = build(("user", picture(20, 10), text), ("assistant", "yes"))
    assert not any(draw(Augment(flip=1), sample, key).flip for key in range(5))
    assert draw(Augment(flip=1, flip_sides=True), sample, 0).flip


@pytest.mark.parametrize(
    "text",
    ["a bright, upright cat", "copyright", "cleft lip", "우리는 좌석에", "Was ist das?", "猫", "고양이"],
)
def test_other_texts_are_mirrored(text):
    assert not names_a_side(text)
    assert draw(Augment(flip=1), build(("user", picture(20, 10), text), ("assistant", "yes")), 0).flip


def test_labels_and_instructions_count_as_text():
    assert not draw(Augment(flip=1), with_box((20, 10), (1, 1, 9, 9), "left eye"), 0).flip
    assert draw(Augment(flip=1), with_box((20, 10), (1, 1, 9, 9), "eye"), 0).flip
    assert not draw(Augment(flip=1), edit_of((20, 10), (20, 10), ko="왼쪽을 지워"), 0).flip
    assert draw(Augment(flip=1), edit_of((20, 10), (20, 10), ko="고양이를 지워"), 0).flip


@pytest.mark.parametrize(
    ("text", "extra"),
    [
        ('{"bbox_2d": [10, 20, 30, 40], "label": "cat"}', None),
        ("It is at [10, 20, 30, 40].", None),
        ("<box>(10,20),(30,40)</box>", None),
        ("click (512, 30)", None),
        ("at ten, twenty", '{"coord_space": "unknown"}'),
    ],
)
def test_texts_that_state_coordinates_keep_their_geometry(text, extra):
    sample = build(("user", picture(40, 20), "Where?"), ("assistant", text), extra=extra)
    rules = Augment(crop=0.5, flip=1, resize=(0.5, 0.6), shift=3, brightness=0.5)
    change = draw(rules, sample, 1)
    assert change.brightness != 1
    assert change == Augmentation(brightness=change.brightness)
    told = draw(rules.model_copy(update={"coordinates": True}), sample, 1)
    assert (told.flip, told.resize < 1, told.window[2] < 1) == (True, True, True)


def edit_of(source, target, **instruction):
    media = [{"kind": "image", "bytes": file_of(picture(*size))} for size in (source, target)]
    edit = {"sources": [0], "target": 1, "instruction": instruction or {"en": "remove it"}}
    return Sample.model_validate({"id": "edit", "task": "edit", "media": media, "edit": edit})


def test_all_pictures_of_a_sample_are_changed_alike():
    rules = Augment(crop=0.5, flip=0.5, resize=(0.5, 1.5), shift=4, **JITTER)
    pair = edit_of((32, 24), (32, 24))
    clip_of = build(("user", (2.0, [picture(32, 24)] * 3), "?"), ("assistant", "!"))
    for key in range(10):
        changed = augmented(pair, rules, key)
        assert opened(changed, 0).tobytes() == opened(changed, 1).tobytes()
        changed = augmented(clip_of, rules, key)
        assert len({opened(changed, i).tobytes() for i in range(3)}) == 1


def test_an_edit_between_two_sizes_is_cropped_alike_and_not_shifted():
    pair = edit_of((64, 48), (128, 96))
    for key in range(20):
        changed = augmented(pair, Augment(crop=0.3, shift=9), key)
        assert changed.opener.augmentation.shift == (0, 0)
        small, large = (np.array(changed.opener.augmentation._window(size)) for size in ((64, 48), (128, 96)))
        np.testing.assert_allclose(small * 2, large, atol=2)


def mixture(folder, samples, **augment):
    write_samples(samples, folder / "train.parquet")
    return Mixture([Source(source=str(folder), augment=augment)])


def test_evaluations_are_never_augmented(tmp_path):
    mixed = mixture(tmp_path, [with_box((40, 30), (5, 5, 20, 20))] * 40, crop=0.3, flip=1, brightness=0.5)
    for item in list(mixed.items())[:3]:
        assert opened(mixed.sample(item)).tobytes() == opened(mixed.datasets[0][0]).tobytes()
        assert mixed.sample(item).regions == mixed.datasets[0][0].regions
    drawn = mixed.sample(mixed.locate(0, 0))
    assert opened(drawn).tobytes() != opened(mixed.datasets[0][0]).tobytes()
    for name in ("validation", "test"):
        with pytest.raises(ValidationError, match="`augment` belongs to `train`; evaluations are never augmented"):
            Data.model_validate({"train": "a", name: {"source": "b", "augment": {"flip": 0.5}}})


def test_lengths_are_those_of_the_augmented_pictures(tmp_path, processor):
    samples = [build(("user", picture(90, 60), "?"), ("assistant", "!"), id="a"), with_box((60, 90), (20, 20, 50, 60))]
    for name, rules in {"sizes": {"crop": 0.3, "resize": (0.5, 2)}, "places": {"shift": 20, "flip": 0.5}}.items():
        (tmp_path / name).mkdir()
        stream = ChatSamples(mixture(tmp_path / name, samples * 20, **rules), processor, seed=0, max_length=1000)
        lengths, plain = set(), set()
        for position in range(24):
            encoded = stream.encode(position)
            assert stream.length(position) == len(encoded)
            lengths.add((encoded.id, len(encoded)))
            if encoded.id == "a":
                plain.add((0, stream.mixture.locate(0, position).index))
        assert len(lengths) > (6 if name == "sizes" else 1)
        remembered = {(one, int(at)) for one, known in stream._lengths.items() for at in np.flatnonzero(known >= 0)}
        assert remembered == (plain if name == "places" else set())  # only what never changes


def test_the_answer_names_the_box_that_is_seen(tmp_path, processor):
    mixed = mixture(tmp_path, [with_box((80, 50), (20, 10, 60, 40))] * 40, crop=0.5, flip=0.5)
    for position in range(10):
        sample = mixed.sample(mixed.locate(0, position))
        image = opened(sample)
        x1, y1, x2, y2 = found(image)
        expected = [round(value / side * 1000) for value, side in zip((x1, y1, x2, y2), image.size * 2, strict=True)]
        encoded = encode(sample, processor)
        answer = processor.tokenizer.decode([token for token in encoded.labels if token >= 0])
        assert answer == f'{{"bbox_2d": {expected}, "label": "a cat"}}<|im_end|>'


@pytest.mark.parametrize(
    ("rules", "problem"),
    [
        ({"crop": 0}, "greater than 0"),
        ({"resize": [1.5, 0.5]}, "exchange them"),
        ({"flip": 2}, "less than or equal to 1"),
        ({"jitter": 1}, "Extra inputs"),
    ],
)
def test_rules_that_make_no_sense_are_refused(rules, problem):
    with pytest.raises(ValidationError, match=problem):
        Augment.model_validate(rules)
