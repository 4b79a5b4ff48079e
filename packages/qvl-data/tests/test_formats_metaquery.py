"""The format metaquery: every row comes back as it was, captions and embedded pictures too."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvl_data.errors import BadSample
from qvl_data.formats import get_format, metaquery, recognise
from qvl_data.sample import read_sample

from .chats import build
from .rows import anything, cells, check_anything, identity, missing, texts, unknown

METAQUERY, QVL = get_format("metaquery"), get_format("qvl")
PLACE = "instruct.parquet:3"
said = st.none() | texts


@st.composite
def rows(draw):
    sources = draw(st.lists(cells, min_size=1, max_size=3))
    captions = st.none() | st.lists(said, min_size=len(sources), max_size=len(sources))
    row = {"source_images": sources, "prompt": draw(texts.filter(bool)), "target_image": draw(cells)}
    more = (missing("source_captions", captions), missing("target_caption", said), unknown, identity)
    return row | {key: value for part in more for key, value in draw(part).items()}


@settings(max_examples=100, deadline=None)
@given(rows())
def test_round_trip(row):
    sample = METAQUERY.read(row, PLACE)
    assert METAQUERY.write(sample) == row
    assert METAQUERY.write(read_sample(QVL.write(sample))) == row
    assert type(recognise(row, PLACE)) is metaquery.MetaQuery


@settings(max_examples=50, deadline=None)
@given(rows())
def test_round_trip_with_renamed_columns(row):
    named = {"source_captions": "caps", "prompt": "text", "id": "uid"}
    row = {"id": "another", "source_captions": 3} | {named.get(key, key): value for key, value in row.items()}
    form = get_format("metaquery", named)
    assert form.write(form.read(row, PLACE)) == row


@settings(max_examples=100, deadline=None)
@given(anything(metaquery.MetaQuery.fields))
def test_anything_else_is_a_bad_sample(row):
    check_anything(METAQUERY, row, PLACE)


ROW = {"source_images": ["a.png", "b.png"], "prompt": "Both.", "target_image": "c.png"}


def test_becomes_an_edit():
    sample = METAQUERY.read({**ROW, "target_caption": "A cat."}, PLACE)
    assert (sample.task, sample.edit.sources, sample.edit.target) == ("edit", (0, 1), 2)
    assert sample.edit.instruction == {"en": "Both."}
    assert [media.path for media in sample.media] == ["a.png", "b.png", "c.png"]


@pytest.mark.parametrize(
    ("row", "reason", "sentence"),
    [
        (3, "metaquery", "expected an object with columns by name, found int"),
        (ROW | {"source_images": []}, "metaquery", '"source_images" is no list of pictures'),
        (ROW | {"source_images": "a.png"}, "metaquery", '"source_images" is no list of pictures'),
        (ROW | {"prompt": ""}, "metaquery", '"prompt" is empty'),
        (ROW | {"prompt": None}, "metaquery", '"prompt" is empty'),
        (ROW | {"target_image": None}, "media_value", "target_image is NoneType"),
        (ROW | {"source_captions": ["x"]}, "media_count", "1 captions of 2 source pictures"),
        ({"source_images": ["a"], "promt": "x", "target_image": "b"}, "column", 'did you mean "promt"?'),
    ],
)
def test_refusals(row, reason, sentence):
    with pytest.raises(BadSample) as caught:
        METAQUERY.read(row, PLACE)
    assert caught.value.reason == reason
    assert sentence in str(caught.value)
    assert str(caught.value).startswith(f"{PLACE}: ")


def test_what_it_cannot_say_is_refused():
    edit = METAQUERY.read(ROW, PLACE).to_dict()
    for change in ({"instruction": {"en": "x", "zh": "y"}}, {"inverse": {"en": "x"}}, {"sources": []}):
        changed = {**edit, "edit": {**edit["edit"], **change}}
        if change == {"sources": []}:
            changed |= {"media": edit["media"][:1], "edit": {**changed["edit"], "target": 0}}
        with pytest.raises(BadSample, match="keep it as qvl"):
            METAQUERY.write(read_sample(changed))
    with pytest.raises(BadSample, match="cannot say the task chat"):
        METAQUERY.write(build(("user", "a"), ("assistant", "b")))
