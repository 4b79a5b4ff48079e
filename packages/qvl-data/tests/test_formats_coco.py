"""The format coco: boxes of the annotations become regions of the upright picture, and every annotation comes back."""

import json
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from qvl_core.errors import BadInput
from qvl_data.cli import app
from qvl_data.coco_rows import Rows, is_coco
from qvl_data.coco_writer import write_coco
from qvl_data.convert import convert
from qvl_data.dataset import Dataset
from qvl_data.errors import BadSample
from qvl_data.formats import coco, get_format, recognise
from qvl_data.grounding import check
from qvl_data.sample import read_sample

from .chats import build, file_of, picture
from .rows import anything, check_anything, odd, plain, read_or_refusal

COCO, CLIP, DROP, QVL = (
    get_format("coco"),
    get_format("coco", {"boxes": "clip"}),
    get_format("coco", {"boxes": "drop"}),
    get_format("qvl"),
)
PLACE = "instances.json (image 7)"
CATEGORIES = [{"id": 17, "name": "cat", "supercategory": "animal"}, {"id": "x", "name": "소파"}]
IMAGE = {"id": 7, "file_name": "cats/1.jpg", "width": 64, "height": 48}
number = st.integers(0, 30) | st.floats(0, 30)
length = st.integers(1, 15) | st.floats(0.01, 15)
polygon = st.lists(st.integers(-5, 70) | st.floats(-5, 70), max_size=8)
annotation = st.fixed_dictionaries(
    {"category_id": st.sampled_from([17, "x"]), "bbox": st.tuples(number, number, length, length).map(list)},
    optional={
        "id": st.integers(1, 99),
        "image_id": st.just(7),
        "iscrowd": st.sampled_from([0, 1, None, True]),
        "area": st.floats(0, 9),
        "score": st.floats(0, 1) | st.none(),
        "segmentation": st.lists(polygon, max_size=2) | st.just({"counts": "RLE", "size": [48, 64]}) | st.none(),
        "attributes": plain,
    },
)
odd_annotation = annotation.flatmap(
    lambda entry: st.sampled_from(
        [entry, entry | {"bbox": [1, 1, 0, 3]}, entry | {"bbox": [-9, 1, 20, 3]}, entry | {"bbox": [99, 99, 5, 5]}]
    )
)
rows = st.builds(
    lambda annotations, image, more: {
        "image": IMAGE | image,
        "annotations": [{"category_id": 17, "bbox": [1, 2, 3, 4.5], "id": 100}, *annotations],
        "categories": CATEGORIES,
        **more,
    },
    st.lists(annotation, max_size=4).map(lambda found: [entry | {"iscrowd": 0} for entry in found[:1]] + found[1:]),
    st.fixed_dictionaries({}, optional={"date_captured": plain, "license": st.just(3)}),
    st.fixed_dictionaries(
        {}, optional={"license": st.just({"id": 3, "name": "CC BY"}), "dataset": st.just({"info": {}}), "more": odd}
    ),
)


def asked(row, form=COCO):
    return form.read(row, PLACE)


@settings(max_examples=80, deadline=None)
@given(rows)
def test_round_trip(row):
    sample = read_or_refusal(COCO, row, PLACE)
    if isinstance(sample, BadSample):
        assert sample.reason == "no_regions"
        return
    assert COCO.write(sample) == row
    assert COCO.write(read_sample(QVL.write(sample))) == row
    assert type(recognise(row, PLACE)) is coco.Coco
    assert not check(sample)  # every region lies in its picture


@settings(max_examples=80, deadline=None)
@given(st.lists(odd_annotation, min_size=1, max_size=4), st.sampled_from([CLIP, DROP]))
def test_boxes_that_are_left_out_come_back(annotations, form):
    row = {"image": IMAGE, "annotations": annotations, "categories": CATEGORIES}
    sample = read_or_refusal(form, row, PLACE)
    if isinstance(sample, BadSample):
        assert sample.reason == "no_regions"
        return
    assert form.write(sample) == row
    assert not check(sample)


@settings(max_examples=80, deadline=None)
@given(
    anything(("image", "annotations", "categories", "license"))
    | st.fixed_dictionaries(
        {
            "image": st.dictionaries(st.sampled_from(list(IMAGE)), odd) | st.just(IMAGE),
            "annotations": st.lists(st.dictionaries(st.sampled_from(["bbox", "category_id", "segmentation"]), odd)),
            "categories": st.lists(st.dictionaries(st.sampled_from(["id", "name"]), odd), max_size=2),
        }
    )
)
def test_anything_else_is_a_bad_sample(row):
    check_anything(COCO, row, PLACE)


def row_of(*boxes, **image):
    annotations = [{"id": n, "image_id": 7, "category_id": 17, "bbox": list(box)} for n, box in enumerate(boxes)]
    return {"image": IMAGE | image, "annotations": annotations, "categories": CATEGORIES}


def test_boxes_become_regions_and_a_question():
    row = row_of([10, 20, 30, 5])
    row["annotations"].append({"category_id": "x", "bbox": [0, 0, 64, 48], "segmentation": [[0, 0, 9, 0, 9, 9]]})
    sample = asked(row)
    assert [(r.kind, r.xy, r.label) for r in sample.regions] == [
        ("box", (10, 20, 40, 25), "cat"),
        ("box", (0, 0, 64, 48), "소파"),
        ("polygon", (0, 0, 9, 0, 9, 9), "소파"),
    ]
    question, answer = sample.messages
    assert (question.parts[0].type, answer.parts[0].regions) == ("image", (0, 1))
    assert question.text in [template.replace("{labels}", "cat, 소파") for template in coco.TEMPLATES]
    assert (sample.id, sample.media[0].path, sample.media[0].width) == ("7", "cats/1.jpg", 64)


def test_questions_vary_with_the_picture_and_the_seed_only():
    def questions(form):
        return [form.read(row_of([1, 1, 2, 2], id=number), PLACE).messages[0].text for number in range(40)]

    assert len(set(questions(COCO))) == len(coco.TEMPLATES)
    assert questions(COCO) == questions(get_format("coco"))
    assert questions(COCO) != questions(get_format("coco", {"seed": "1"}))


def test_a_category_with_a_crowd_is_not_asked_about():
    row = row_of([1, 1, 5, 5], [2, 2, 9, 9])
    row["annotations"][1] |= {"iscrowd": 1, "segmentation": {"counts": [1], "size": [48, 64]}}
    row["annotations"].append({"category_id": "x", "bbox": [3, 3, 4, 4]})
    sample = asked(row)
    assert sample.messages[1].parts[0].regions == (2,)
    assert [region.crowd for region in sample.regions] == [None, True, None]
    assert "cat" not in sample.messages[0].text
    assert COCO.write(sample) == row


@pytest.mark.parametrize(
    ("box", "reason", "clipped"),
    [
        ([1, 1, 0, 5], "region_empty", None),
        ([1, 1, 5, -5], "region_empty", None),
        ([64, 0, 5, 5], "region_outside", None),
        ([-9, -9, 5, 5], "region_outside", None),
    ],
)
def test_boxes_outside_the_frame(box, reason, clipped):
    row = row_of([1, 1, 2, 2], box)
    with pytest.raises(BadSample, match=r"annotations\[1\]: box") as caught:
        asked(row)
    assert caught.value.reason == reason
    assert [region.xy for region in asked(row, CLIP).regions[1:]] == ([clipped] if clipped else [])
    assert len(asked(row, DROP).regions) == 1


@pytest.mark.parametrize(
    ("box", "kept", "clipped"),
    [([-4, 1, 10, 5], (-4, 1, 6, 6), (0, 1, 6, 6)), ([60, 40, 10, 10], (60, 40, 70, 50), (60, 40, 64, 48))],
)
def test_boxes_over_the_border_stay_unless_told(box, kept, clipped):
    row = row_of([1, 1, 2, 2], box)
    sample = asked(row)
    assert sample.regions[1].xy == kept
    assert [problem.reason for problem in check(sample)] == ["region_beyond"]
    assert asked(row, CLIP).regions[1].xy == clipped
    assert len(asked(row, DROP).regions) == 1
    for form in (COCO, CLIP, DROP):
        assert COCO.write(asked(row, form)) == row
    data = sample.to_dict()
    data["regions"][1]["xy"] = list(clipped)
    mended = COCO.write(read_sample(data))["annotations"][1]["bbox"]
    assert mended == [clipped[0], clipped[1], clipped[2] - clipped[0], clipped[3] - clipped[1]]


def test_rounding_at_the_border_is_cut():
    sample = asked(row_of([0, 0.5, 64.4, 47.9]))
    assert sample.regions[0].xy == (0, 0.5, 64, 48)
    assert COCO.write(sample) == row_of([0, 0.5, 64.4, 47.9])


@pytest.mark.parametrize(
    ("row", "reason", "sentence"),
    [
        ([], "coco", 'expected an object "image" and lists'),
        (row_of([1, 1, 2, 2], file_name=None), "coco", "lacks an id or a file_name"),
        (row_of([1, 1, 2, 2], width=0), "coco", "the image has width 0 and height 48"),
        (row_of([1, 1, 2]), "coco", "bbox [1, 1, 2] is no list of x, y, width and height"),
        (row_of([1, 1, 2, float("nan")]), "coco", "is no list of x, y, width and height"),
        (row_of([1, 1, 2, 10**99]), "coco", "is no list of x, y, width and height"),
        (row_of(), "no_regions", "no box to ask about"),
        (row_of([1, 1, 2, 2]) | {"categories": []}, "coco", "category_id 17 is none of the categories"),
        (row_of([1, 1, 2, 2], file_name="../a.jpg"), "media_path", "leaves its folder"),
    ],
)
def test_refusals(row, reason, sentence):
    with pytest.raises(BadSample) as caught:
        asked(row)
    assert caught.value.reason == reason
    assert sentence in str(caught.value)


def test_options_are_checked():
    with pytest.raises(BadInput, match="boxes=cut: use one of error, clip, drop"):
        get_format("coco", {"boxes": "cut"})
    with pytest.raises(BadInput, match="seed=x: write a whole number"):
        get_format("coco", {"seed": "x"})
    with pytest.raises(BadInput, match=r'no field "box"; did you mean "boxes"\?'):
        get_format("coco", {"box": "clip"})


def coco_file(tmp_path, **more):
    """Three pictures, 40 x 30 as stored: one upright, one that EXIF turns, one without boxes."""
    photos = tmp_path / "photos"
    photos.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    (photos / "a.jpg").write_bytes(file_of(picture(40, 30), "JPEG"))
    (photos / "b.jpg").write_bytes(file_of(picture(40, 30), "JPEG", exif=exif))
    (photos / "c.jpg").write_bytes(file_of(picture(40, 30), "JPEG"))
    data = {
        "info": {"year": 2017, "description": "사진 \u2028"},
        "licenses": [{"id": 1, "name": "CC BY 4.0", "url": "http://host"}],
        "images": [
            {"id": number, "file_name": f"{name}.jpg", "width": 40, "height": 30, "license": 1}
            for number, name in enumerate("abc")
        ],
        "annotations": [
            {"id": 5, "image_id": 1, "category_id": 3, "bbox": [1, 2, 10.1, 4], "iscrowd": 0, "segmentation": []},
            {"id": 6, "image_id": 0, "category_id": 1, "bbox": [0.1, 0.2, 39.9, 5], "area": 3.5},
            {"id": 7, "image_id": 1, "category_id": 1, "bbox": [5, 5, 7, 7], "segmentation": [[5, 5, 12.1, 5, 9, 12]]},
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 3, "name": "dog"}, {"id": 9, "name": "unused"}],
    } | more
    file = tmp_path / "instances.json"
    file.write_text(json.dumps(data, indent=more.get("indent"), ensure_ascii=False), "utf-8")
    return file, data


def by_id(data):
    return {
        **data,
        "images": {image["id"]: image for image in data["images"]},
        "annotations": {annotation["id"]: annotation for annotation in data["annotations"]},
    }


def test_a_file_goes_through_and_comes_back(tmp_path):
    file, data = coco_file(tmp_path)
    assert is_coco(file)
    source = Dataset(file, media_root=tmp_path / "photos")
    assert len(source) == 3
    upright, turned = source[0], source[1]
    assert upright.media[0].width == 40
    assert upright.meta.license == "CC BY 4.0"
    with pytest.raises(BadSample, match=r"instances.json \(image 2\): no box to ask about"):
        source[2]
    data["images"] = data["images"][:2]
    for samples in ([upright, turned], [read_sample(QVL.write(sample)) for sample in (upright, turned)]):
        assert write_coco(samples, tmp_path / "again.json") == 2
        assert by_id(json.loads((tmp_path / "again.json").read_text("utf-8"))) == by_id(data)
    assert [sample.id for sample in Dataset(tmp_path / "again.json", media_root=tmp_path / "photos")] == ["0", "1"]


def test_boxes_of_a_turned_picture_are_turned_with_it(tmp_path):
    file, _ = coco_file(tmp_path)
    turned = Dataset(file, media_root=tmp_path / "photos")[1]
    assert (turned.media[0].width, turned.media[0].height) == (30, 40)
    assert turned.opener.open(turned.media[0]).size == (30, 40)
    assert turned.regions[0].xy == pytest.approx((30 - 6, 1, 30 - 2, 11.1))  # a quarter turn clockwise
    assert not check(turned)
    for sample in (turned, read_sample(QVL.write(turned))):
        assert COCO.write(sample)["annotations"][0]["bbox"] == [1, 2, 10.1, 4]


def test_boxes_that_are_upright_already_stay(tmp_path):
    file, data = coco_file(tmp_path)
    data["images"][1] |= {"width": 30, "height": 40}
    file.write_text(json.dumps(data), "utf-8")
    sample = Dataset(file, media_root=tmp_path / "photos")[1]
    assert sample.regions[0].xy == (1, 2, 11.1, 6)
    data["images"][1] |= {"width": 31}
    file.write_text(json.dumps(data), "utf-8")
    with pytest.raises(BadSample, match="is 40 x 30 pixels, not 31 x 40 as the annotations say") as caught:
        Dataset(file, media_root=tmp_path / "photos")[1]
    assert caught.value.reason == "media_stated_size"


def test_a_moved_box_is_written(tmp_path):
    file, _ = coco_file(tmp_path)
    for number, box in ((0, [2, 2, 8, 4]), (1, [3, 26, 5, 2])):
        sample = Dataset(file, media_root=tmp_path / "photos")[number]
        data = sample.to_dict()
        data["regions"][0]["xy"] = [2, 2, 10, 6] if number == 0 else [2, 3, 4, 8]
        assert COCO.write(read_sample(data))["annotations"][0]["bbox"] == (box if number == 0 else [3, 26, 5, 2])


def test_options_come_by_map(tmp_path):
    file, data = coco_file(tmp_path)
    data["annotations"][0]["bbox"] = [-5, 2, 10, 4]
    file.write_text(json.dumps(data), "utf-8")
    assert Dataset(file)[1].regions[0].xy == (-5, 2, 5, 6)
    assert Dataset(file, columns={"boxes": "clip"})[1].regions[0].xy == (0, 2, 5, 6)


def test_every_verb_takes_a_box_over_the_border(tmp_path, capsys):
    file, data = coco_file(tmp_path)
    del data["images"][2]
    data["annotations"][1]["bbox"] = [-5, 2, 10, 4]
    file.write_text(json.dumps(data), "utf-8")
    given = ["--media-root", str(tmp_path / "photos")]
    assert app.run(["validate", str(file), *given, "--fix-to", str(tmp_path / "clean")]) == 0
    assert "warning region_beyond" in capsys.readouterr().out
    assert app.run(["view", str(file), "0", *given]) == 0
    assert app.run(["convert", str(file), str(tmp_path / "kept.parquet"), *given]) == 0
    assert Dataset(tmp_path / "kept.parquet")[0].regions[0].xy == (-5, 2, 5, 6)
    assert Dataset(tmp_path / "clean")[0].regions[0].xy == (0, 2, 5, 6)
    assert COCO.write(Dataset(tmp_path / "clean")[0])["annotations"][0]["bbox"] == [0, 2, 5, 4]


def test_other_samples_are_written_with_numbers(tmp_path):
    data = build(("user", picture(40, 30), "Where?"), ("assistant", "x"), id="s").to_dict()
    data["media"][0] |= {"origin": "a.png", "width": 40, "height": 30}
    data["regions"] = [
        {"media": 0, "kind": "box", "xy": [1, 2, 4, 8], "label": "dog", "score": 0.5},
        {"media": 0, "kind": "polygon", "xy": [0, 0, 4, 0, 4, 4], "label": "cat"},
    ]
    other = {**data, "id": "t", "regions": data["regions"][:1]}
    assert write_coco([read_sample(data), read_sample(other)], tmp_path / "out.json") == 2
    written = json.loads((tmp_path / "out.json").read_text("utf-8"))
    assert written["images"][1] == {"id": 2, "file_name": "a.png", "width": 40, "height": 30}
    assert [(a["id"], a["image_id"], a["bbox"]) for a in written["annotations"]] == [
        (1, 1, [1, 2, 3, 6]),
        (2, 1, [0, 0, 4, 4]),
        (3, 2, [1, 2, 3, 6]),
    ]
    assert written["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    assert [a["category_id"] for a in written["annotations"]] == [2, 1, 2]
    assert len(Dataset(tmp_path / "out.json")[0].regions) == 3
    with pytest.raises(BadSample, match="coco cannot say points and regions without a label"):
        COCO.write(read_sample({**data, "regions": [{"media": 0, "kind": "point", "xy": [1, 2]}]}))
    assert not (tmp_path / ".out.json.part").exists()


def test_no_two_pictures_have_the_same_place(tmp_path):
    images = [{"id": identity, "file_name": "a.jpg", "width": 9, "height": 9} for identity in (1, "1", "a/b")]
    file, _ = coco_file(tmp_path, images=images, annotations=[])
    rows = Rows(file)
    found = [rows.place(number).removeprefix(str(tmp_path)) for number in range(3)]
    assert [place[1:] for place in found] == [f"instances.json (image {name})" for name in ("1", '"1"', '"a%2Fb"')]


def test_convert_goes_there_and_back(tmp_path):
    file, data = coco_file(tmp_path)
    del data["images"][2]
    file.write_text(json.dumps(data), "utf-8")
    convert(file, tmp_path / "kept.parquet", media_root=tmp_path / "photos")
    convert(tmp_path / "kept.parquet", tmp_path / "back" / "instances.json", "coco")
    assert by_id(json.loads((tmp_path / "back" / "instances.json").read_text("utf-8"))) == by_id(data)
    again = Dataset(tmp_path / "back" / "instances.json")  # its pictures lie beside it
    assert again[1].opener.open(again[1].media[0]).size == (30, 40)


def test_an_empty_file_and_doubled_ids(tmp_path):
    assert write_coco([], tmp_path / "none.json") == 0
    empty = {"images": [], "annotations": [], "categories": []}
    assert json.loads((tmp_path / "none.json").read_text("utf-8")) == empty
    sample = asked(row_of([1, 1, 2, 2]))
    with pytest.raises(BadInput, match=r"twice\.json: two pictures with the id 7"):
        write_coco([sample, sample], tmp_path / "twice.json")
    other = row_of([1, 1, 2, 2], id=8) | {"categories": [{"id": 17, "name": "dog"}]}
    with pytest.raises(BadInput, match="two categories with the id 17"):
        write_coco([sample, asked(other)], tmp_path / "twice.json")
    with pytest.raises(BadInput, match="two annotations with the id 0"):
        write_coco([sample, asked(row_of([1, 1, 2, 2], id=8))], tmp_path / "twice.json")
    assert [path.name for path in tmp_path.iterdir()] == ["none.json"]


@pytest.mark.parametrize("size", [1, 7, 64, 1 << 20])
@pytest.mark.parametrize("indent", [None, 4])
def test_a_file_is_scanned_in_pieces_of_any_size(tmp_path, monkeypatch, size, indent):
    monkeypatch.setattr("qvl_data.coco_rows._PIECE", size)
    file, data = coco_file(tmp_path, indent=indent, version=12, last=3.5)
    rows = pickle.loads(pickle.dumps(Rows(file)))
    assert [row["image"] for row in rows] == data["images"]
    assert [[a["id"] for a in row["annotations"]] for row in rows] == [[6], [5, 7], []]
    assert rows[0]["dataset"] == {key: data[key] for key in data if key not in ("images", "annotations")}
    assert rows[1]["categories"] == [data["categories"][1], data["categories"][0]]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"images": [], "annotations": []}', 'no "categories"'),
        ('{"images": [], "annotations": [], "categories": [], "images": []}', '"images" twice'),
        ('{"images": [1], "annotations": [], "categories": []}', 'an entry of "images" without "id"'),
        ('{"images": [{"id": 1} {"id": 2}], "annotations": []}', "a missing comma or bracket"),
        ('{"images": [{"id": 1', "no sound JSON"),
        ('{"images": {}}', "no '[' where one is needed"),
        ('{"images": [], "annotations": [], "categories": []} x', "something behind its end"),
        ('{"images": [{"id": 1}, {"id": 1}], "annotations": [], "categories": []}', "two images have the id 1"),
        ('{"images": [], "annotations": [{"image_id": 3}], "categories": []}', "images that are not there, such as 3"),
        ('{"images": [], "annotations": [], "categories": [{}]}', 'each of the "categories" needs an id'),
        ('{"images": [], "annotations": [], "categories": {}}', '"categories" is no list of objects'),
        ('{"images": [' + "[" * 100000, "nested too deep"),
    ],
)
def test_broken_files_are_refused(tmp_path, text, sentence):
    file = tmp_path / "instances.json"
    file.write_text(text, "utf-8")
    with pytest.raises(BadInput) as caught:
        Rows(file)
    assert sentence in str(caught.value)
    assert str(file) in str(caught.value)
