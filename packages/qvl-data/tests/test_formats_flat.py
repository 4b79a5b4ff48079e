"""The format flat: one question and answer per row of any table; a wrong column name is told, nothing is lost."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvl_core.errors import BadInput
from qvl_data.dataset import Dataset
from qvl_data.errors import BadSample
from qvl_data.formats import flat, get_format, recognise
from qvl_data.sample import read_sample

from .chats import build, picture
from .rows import anything, cells, check_anything, identity, missing, texts, unknown

FLAT, QVL = get_format("flat"), get_format("qvl")
PLACE = "vqa.jsonl:3"
NAMED = {"image": "image_path", "user": "question", "assistant": "answer", "id": "uid"}
MAPPED = get_format("flat", NAMED)
plain = texts.map(lambda text: text.replace("<image>", "").replace("<video>", ""))
none = st.sampled_from([None, "", [], {"bytes": None, "path": None}])


@st.composite
def rows(draw):
    """Rows in which the question names its media, or does not."""
    row = {"assistant": draw(plain.filter(bool) | st.integers() | st.floats(-9, 9))}
    count = 0
    for kind in ("image", "video"):
        names = draw(st.permutations([kind, f"{kind}s"]))
        shown = draw(st.just([]) | st.lists(cells, min_size=1, max_size=3))
        count += len(shown)
        row |= {names[0]: shown[0] if len(shown) == 1 and draw(st.booleans()) else shown} if shown else {}
        row |= draw(missing(names[1], none))
        if shown and draw(st.booleans()):
            row["user"] = row.get("user", "") + draw(plain) + f" <{kind}>" * len(shown)
        elif shown and "user" in row:
            row["user"] += f" <{kind}>" * len(shown)
    if "user" not in row or sum(row["user"].count(f"<{kind}>") for kind in ("image", "video")) != count:
        row["user"] = draw(plain if count else plain.filter(bool) | st.integers())
    return (
        row
        | draw(missing("system", none.filter(lambda value: value in (None, "")) | plain))
        | draw(unknown)
        | draw(identity)
    )


@settings(max_examples=150, deadline=None)
@given(rows())
def test_round_trip(row):
    sample = FLAT.read(row, PLACE)
    assert FLAT.write(sample) == row
    assert FLAT.write(read_sample(QVL.write(sample))) == row
    assert type(recognise(row, PLACE)) is flat.Flat


@settings(max_examples=100, deadline=None)
@given(rows().filter(lambda row: "image" in row), st.sampled_from([{}, {"id": 5}, {"user": "someone"}]))
def test_round_trip_with_renamed_columns(row, more):
    row = {"uid": 1} | {NAMED.get(key, key): value for key, value in row.items()} | more
    assert MAPPED.write(MAPPED.read(row, PLACE)) == row


@settings(max_examples=150, deadline=None)
@given(anything(flat.FIELDS))
def test_anything_else_is_a_bad_sample(row):
    check_anything(FLAT, row, PLACE)


@settings(max_examples=100, deadline=None)
@given(texts, texts.filter(bool), st.lists(st.sampled_from(["image", "video"]), max_size=3), st.integers(0, 3))
def test_any_chat_of_one_question_survives(asked, said, kinds, at):
    """Also text that looks like a tag, and media in the middle of the question."""
    media = [{"kind": kind, "path": f"{number}.bin"} for number, kind in enumerate(kinds)]
    parts = [{"type": kind, "media": number} for number, kind in enumerate(kinds)]
    parts[at:at] = [{"type": "text", "text": asked}] if asked or not parts else []
    messages = [{"role": "user", "parts": parts}, {"role": "assistant", "parts": [{"type": "text", "text": said}]}]
    sample = read_sample({"task": "chat", "id": "x", "media": media, "messages": messages})
    if not asked and not media:
        return
    again = FLAT.read(FLAT.write(sample), PLACE)
    assert said_and_shown(again) == said_and_shown(sample)


def said_and_shown(sample):
    return [
        [
            (part.type, part.text, None if part.media is None else sample.media[part.media].path)
            for part in message.parts
        ]
        for message in sample.messages
    ]


def test_pictures_stand_before_the_question():
    row = {"image_path": "a.png", "question": "What is this?", "answer": 7, "uid": 3, "split": "train"}
    sample = MAPPED.read(row, PLACE)
    assert [(part.type, part.text) for part in sample.messages[0].parts] == [("image", None), ("text", "What is this?")]
    assert (sample.id, sample.messages[1].text, sample.meta.format) == ("3", "7", "flat")


def test_tags_say_where_pictures_stand():
    row = {
        "images": ["a.png", "b.png"],
        "user": r"Is <image> like <image>? \<image>",
        "assistant": "Yes.",
        "system": "Hi",
    }
    sample = FLAT.read(row, PLACE)
    assert [part.text or part.media for part in sample.messages[1].parts] == ["Is ", 0, " like ", 1, "? <image>"]
    assert sample.messages[0].text == "Hi"


QUESTION = {"user": "What?", "assistant": "x"}


@pytest.mark.parametrize(
    ("row", "reason", "sentence"),
    [
        ("x", "flat", "expected an object with columns by name, found str"),
        ({"assistant": "x"}, "column", 'no column "user" (there are no others); name it with --map user=COLUMN'),
        ({"user": "x", "answer": "y"}, "column", 'no column "assistant" (there are answer); name it with --map assi'),
        (QUESTION | {"assistant": None}, "no_answer", '"assistant" is empty'),
        (QUESTION | {"assistant": ""}, "no_answer", '"assistant" is empty'),
        (QUESTION | {"assistant": True}, "flat", '"assistant" is bool, no text; write it out'),
        (QUESTION | {"assistant": ["x"]}, "flat", '"assistant" is list, no text'),
        (QUESTION | {"assistant": float("nan")}, "flat", '"assistant" is float, no text'),
        (QUESTION | {"user": None}, "flat", '"user" is NoneType'),
        (QUESTION | {"user": ""}, "flat", '"user" is empty; write a question'),
        (QUESTION | {"image": 5}, "media_value", "image[0] is int; expected a path"),
        (QUESTION | {"image": "a", "images": ["b"]}, "flat", '"image" and "images" are both there; keep one'),
        (QUESTION | {"user": "<image>?"}, "media_count", '1 <image> tags in "user" but 0 images; write one tag'),
        ({"user": "<image>?", "video": "a.mp4", "image": "a", "assistant": "x"}, "media_count", "0 <video> tags"),
        (QUESTION | {"assistant": "<image>"}, "media_tag_in_answer", '"assistant" holds a tag'),
        (QUESTION | {"system": "<image>"}, "flat", '"system" holds a tag'),
    ],
)
def test_refusals(row, reason, sentence):
    with pytest.raises(BadSample) as caught:
        FLAT.read(row, PLACE)
    assert caught.value.reason == reason
    assert sentence in str(caught.value)
    assert str(caught.value).startswith(f"{PLACE}: ")


def test_a_wrong_column_is_told():
    with pytest.raises(BadSample, match=r'vqa\.jsonl:3: no column "question" \(did you mean "questions"\?\)') as caught:
        MAPPED.read({"uid": 1, "image_path": "a.png", "questions": "x", "answer": "y"}, PLACE)
    assert caught.value.reason == "column"
    with pytest.raises(
        BadSample, match=r'no column "image_path" \(there are pic\); name it with --map image=COLUMN, or write null'
    ):
        MAPPED.read({"uid": 1, "pic": "a.png", "question": "x", "answer": "y"}, PLACE)
    with pytest.raises(BadInput, match=r'format "flat" has no field "picture"; it has id, image, images'):
        get_format("flat", {"picture": "a"})


def test_what_it_cannot_say_is_refused():
    for sample in (
        build(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")),
        build(("user", "a")),
        build(("user", (2.0, [picture(8, 8)])), ("assistant", "b")),
        build(("system", picture(8, 8)), ("user", "a"), ("assistant", "b")),
        build(("system", ""), ("user", "a"), ("assistant", "b")),
        build(("user", ""), ("assistant", "b")),
        build(("user", picture(8, 8)), ("assistant", "")),
    ):
        with pytest.raises(BadSample, match="flat cannot say"):
            FLAT.write(sample)


def test_edits_by_map(tmp_path):
    lines = [{"before": "a.png", "after": "b.png", "request": "Invert it.", "id": 3}]
    (tmp_path / "edits.jsonl").write_text(json.dumps(lines[0]), "utf-8")
    columns = {"source_image": "before", "target_image": "after", "instruction": "request"}
    (sample,) = Dataset(tmp_path / "edits.jsonl", columns=columns)
    assert (sample.task, sample.edit.instruction) == ("edit", {"en": "Invert it."})
    assert get_format("flat", columns).write(sample) == lines[0]


def test_only_its_own_names_are_recognised(tmp_path):
    for row in ({"question": "x", "answer": "y"}, {"user": "x", "answer": "y"}, {"assistant": "y", "text": "x"}):
        with pytest.raises(BadSample, match="no known format"):
            recognise(row, PLACE)
    (tmp_path / "a.csv").write_text("image,user,assistant\na.png,What?,A cat.\n", "utf-8")
    assert Dataset(tmp_path / "a.csv")[0].meta.format == "flat"
    with pytest.raises(BadSample, match='no column "user"'):
        recognise({"image": "a.png", "assistant": "y"}, PLACE).read({"image": "a.png", "assistant": "y"}, PLACE)
