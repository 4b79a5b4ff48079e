"""What the formats of tables share: values that JSON has no words for, pictures in cells, names of columns."""

import json
from datetime import date, datetime, time
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvl_data.errors import BadSample
from qvl_data.formats import formats, get_format, recognise
from qvl_data.formats.cells import cell_of, looks_like_media, media_in
from qvl_data.formats.kept import keep, plain, restore
from qvl_data.sample import read_sample

from .rows import PNG, anything, cells, odd, paths

keys = st.sampled_from(["a", "$bytes", "$object", "$float", "$", "$tuple", "b"])
moments = (st.datetimes() | st.times()).map(lambda at: at.replace(fold=0))
values = st.recursive(
    odd | moments | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=2) | st.tuples(inner, inner),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(values)
def test_what_is_kept_comes_back(value):
    kept = json.loads(json.dumps(keep(value), allow_nan=False))
    found = restore(kept)
    assert found == value
    assert repr(found) == repr(value)  # 1 and 1.0 and True are not the same


def test_nan_comes_back():
    assert repr(restore(keep([float("nan")]))) == "[nan]"


@pytest.mark.parametrize("value", [{1: 2}, object(), {"a": [{2.5: None}]}, 1j])
def test_what_cannot_be_kept_is_told(value):
    with pytest.raises(TypeError, match=r"a value of type|an object with keys"):
        keep(value)


def test_the_words_are_readable():
    value = {"at": datetime(2026, 1, 2, 3), "on": date(2026, 1, 2), "t": time(3), "price": Decimal("1.10"), "b": b"hi"}
    assert keep(value) == {
        "at": {"$datetime": "2026-01-02T03:00:00"},
        "on": {"$date": "2026-01-02"},
        "t": {"$time": "03:00:00"},
        "price": {"$decimal": "1.10"},
        "b": {"$bytes": "aGk="},
    }


def test_a_line_of_json_has_texts_for_them():
    value = {"at": (datetime(2026, 1, 2, 3), [Decimal("1.10")]), "score": float("nan"), "n": 1.5, "b": b"hi"}
    assert plain(value) == {"at": ["2026-01-02T03:00:00", ["1.10"]], "score": None, "n": 1.5, "b": b"hi"}


@settings(max_examples=100, deadline=None)
@given(cells)
def test_a_cell_comes_back(cell):
    media, hint = media_in(cell, "image", "t:1", "image")
    assert cell_of(media, hint) == cell
    assert (media.bytes == PNG) == (
        isinstance(cell, bytes) or (isinstance(cell, dict) and cell.get("bytes") is not None)
    )


@given(cells.filter(lambda cell: not isinstance(cell, str)), paths)
@settings(max_examples=30, deadline=None)
def test_a_picture_laid_beside_the_data_is_named_by_its_path(cell, path):
    media, hint = media_in(cell, "image", "t:1", "image")
    if media.bytes is not None:
        assert cell_of(media.model_copy(update={"bytes": None, "path": path}), hint) == path


def test_what_looks_like_a_picture():
    assert all(map(looks_like_media, ["a.JPG", "b/c.webp", b"", {"bytes": None, "path": "x"}, ["a.png"], "v.mp4"]))
    assert not any(map(looks_like_media, ["a cat", "", None, 3, [], {"a": 1}, ["x"]]))


ROWS = {
    "metaquery": {"source_images": ["a.png"], "prompt": "x", "target_image": "b.png"},
    "omniedit": {"src_img": "a.png", "edited_img": "b.png", "edited_prompt_list": ["y", "x"]},
    "edit": {"source_image": "a.png", "target_image": "b.png", "instruction": "x"},
    "flat": {"image": "a.png", "user": "What?", "assistant": "x", "system": "s"},
    "wds": {"__key__": "a", "jpg": PNG, "txt": b"x", "json": b'{"id": 1}', "npy": b""},
    "coco": {
        "image": {"id": 1, "file_name": "a.png", "width": 9, "height": 9},
        "annotations": [{"bbox": [1, 1, 5, 5], "category_id": 1, "segmentation": [[1, 1, 5, 1, 5, 5]]}],
        "categories": [{"id": 1, "name": "cat"}],
    },
    "mimic": {"study_id": 1, "images": [{"path": "a.png", "ViewPosition": "PA"}], "report": "FINDINGS: Ok."},
}


def test_each_is_recognised_among_all():
    for name, row in ROWS.items():
        matching = [other for other, kind in formats().items() if kind().matches(row)]
        assert matching == [name]
        assert type(recognise(row, "")) is type(get_format(name))


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from(list(ROWS)))
def test_hints_that_were_tampered_with_are_no_crash(data, name):
    form = get_format(name)
    sample = form.read(ROWS[name], "t:1").to_dict()
    extra = json.loads(sample.get("extra") or "{}")
    hints = extra.setdefault("layout", {})
    known = list(hints) or ["cells"]
    more = ["cells", "null", "texts", "spoken", "source", "target", "others", "names", "json", "members", "caption"]
    names = st.sampled_from([*known, *more, "numbers", "tags", "image", "id", "columns"])
    changed = data.draw(st.dictionaries(names, anything(("a", "0")).map(keep), min_size=1, max_size=3))
    text = json.dumps({**extra, "layout": {**hints, **changed}})
    try:
        form.write(read_sample({**sample, "extra": text}))
    except BadSample as error:
        assert error.reason in ("layout", "schema", "not_expressible", "json", "report_missing", "mimic")  # noqa: PT017
