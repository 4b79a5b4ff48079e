"""The format omniedit: every row comes back as it was, all prompts and scores too."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvl_data.errors import BadSample
from qvl_data.formats import get_format, omniedit, recognise
from qvl_data.sample import read_sample

from .chats import build
from .rows import anything, cells, check_anything, identity, plain, texts, unknown

OMNIEDIT, QVL = get_format("omniedit"), get_format("qvl")
PLACE = "omniedit.parquet:3"


@st.composite
def rows(draw):
    prompts = [*draw(st.lists(st.none() | texts, max_size=2)), draw(texts.filter(bool))]
    row = {"src_img": draw(cells), "edited_img": draw(cells), "edited_prompt_list": prompts}
    named = identity.map(lambda one: {"omni_edit_id": one["id"]} if one else {})
    scores = st.dictionaries(st.sampled_from(["task", "width", "sc_score_1", "sc_reasoning", "o_score"]), plain)
    return row | {key: value for part in (named, scores, unknown, identity) for key, value in draw(part).items()}


@settings(max_examples=100, deadline=None)
@given(rows())
def test_round_trip(row):
    sample = OMNIEDIT.read(row, PLACE)
    assert OMNIEDIT.write(sample) == row
    assert OMNIEDIT.write(read_sample(QVL.write(sample))) == row
    assert type(recognise(row, PLACE)) is omniedit.OmniEdit


@settings(max_examples=50, deadline=None)
@given(rows())
def test_round_trip_with_renamed_columns(row):
    named = {"edited_prompt_list": "prompts", "src_img": "before", "omni_edit_id": "uid"}
    row = {"src_img": "another"} | {named.get(key, key): value for key, value in row.items()}
    form = get_format("omniedit", named)
    assert form.write(form.read(row, PLACE)) == row


@settings(max_examples=100, deadline=None)
@given(anything(omniedit.OmniEdit.fields))
def test_anything_else_is_a_bad_sample(row):
    check_anything(OMNIEDIT, row, PLACE)


ROW = {"src_img": "a.png", "edited_img": "b.png", "edited_prompt_list": ["Add a hat.", "Put a red hat on the cat."]}


def test_the_last_prompt_is_the_instruction():
    sample = OMNIEDIT.read({**ROW, "omni_edit_id": "add-1", "task": "addition", "o_score": 8.5}, PLACE)
    assert (sample.id, sample.task, sample.edit.sources, sample.edit.target) == ("add-1", "edit", (0,), 1)
    assert sample.edit.instruction == {"en": "Put a red hat on the cat."}
    assert [media.path for media in sample.media] == ["a.png", "b.png"]
    fields = {"task": "addition", "o_score": 8.5, "edited_prompt_list": ["Add a hat."]}
    assert json.loads(sample.extra)["fields"] == fields


@pytest.mark.parametrize(
    ("row", "reason", "sentence"),
    [
        (3, "omniedit", "expected an object with columns by name, found int"),
        (ROW | {"edited_prompt_list": []}, "omniedit", '"edited_prompt_list" is no list of prompts'),
        (ROW | {"edited_prompt_list": "x"}, "omniedit", '"edited_prompt_list" is no list of prompts'),
        (ROW | {"edited_prompt_list": ["x", ""]}, "omniedit", 'the last of "edited_prompt_list" is empty'),
        (ROW | {"edited_prompt_list": [None]}, "omniedit", 'the last of "edited_prompt_list" is empty'),
        (ROW | {"edited_img": None}, "media_value", "edited_img is NoneType"),
        ({"src_img": "a", "edit_img": "b", "edited_prompt_list": ["x"]}, "column", 'did you mean "edit_img"?'),
    ],
)
def test_refusals(row, reason, sentence):
    with pytest.raises(BadSample) as caught:
        OMNIEDIT.read(row, PLACE)
    assert caught.value.reason == reason
    assert sentence in str(caught.value)
    assert str(caught.value).startswith(f"{PLACE}: ")


def test_what_it_cannot_say_is_refused():
    edit = OMNIEDIT.read(ROW, PLACE).to_dict()
    for change in ({"instruction": {"en": "x", "zh": "y"}}, {"inverse": {"en": "x"}}, {"sources": [0, 0]}):
        with pytest.raises(BadSample, match="keep it as qvl"):
            OMNIEDIT.write(read_sample({**edit, "edit": {**edit["edit"], **change}}))
    with pytest.raises(BadSample, match="cannot say the task chat"):
        OMNIEDIT.write(build(("user", "a"), ("assistant", "b")))
    assert OMNIEDIT.write(get_format("edit").read({"source_image": "a", "target_image": "b", "instruction": "x"}, ""))
