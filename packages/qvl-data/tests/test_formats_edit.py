"""The format edit: every row comes back as it was, null, missing and "" kept apart; misnamed columns are told."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvl_core.errors import BadInput
from qvl_data.dataset import Dataset
from qvl_data.errors import BadSample
from qvl_data.formats import edit, get_format, recognise
from qvl_data.sample import read_sample

from .chats import build, file_of, picture
from .rows import anything, cells, check_anything, identity, missing, texts, unknown

EDIT, QVL = get_format("edit"), get_format("qvl")
PLACE = "data/edits.jsonl:3"
EMPTY = [None, "", [], {"bytes": None, "path": None}]
said = st.none() | texts
rows = st.builds(
    lambda target, *parts: {k: v for part in ({**target}, *parts) for k, v in part.items()},
    st.builds(lambda name, cell: {name: cell}, st.sampled_from(["target_image", "edit_image"]), cells),
    missing("source_image", st.sampled_from(EMPTY) | cells | st.lists(cells, min_size=1, max_size=3)),
    missing("instruction", said),
    missing("instruction_cn", said),
    missing("inverse_instruction", said),
    missing("inverse_instruction_cn", said),
    unknown,
    identity,
).filter(lambda row: "instruction" in row or not {"origin", "quality", "layout"} & row.keys())


@settings(max_examples=150, deadline=None)
@given(rows)
def test_round_trip(row):
    sample = EDIT.read(row, PLACE)
    assert EDIT.write(sample) == row
    assert EDIT.write(read_sample(QVL.write(sample))) == row  # also after a stay in qvl
    assert EDIT.matches(row) or not {"source_image", "instruction"} & row.keys()
    assert (sample.task == "t2i") == (row.get("source_image") in EMPTY)


@settings(max_examples=100, deadline=None)
@given(rows)
def test_round_trip_with_renamed_columns(row):
    named = {"source_image": "src", "instruction": "caption", "id": "uid", "target_image": "out"}
    row = {named.get(key, key): value for key, value in row.items() if key != "edit_image"}
    row = {"out": "z.png", "src": None, "id": "another", **row}
    form = get_format("edit", named)
    sample = form.read(row, PLACE)
    assert form.write(sample) == row
    assert sample.id == str(row["uid"]) if row.get("uid") else sample.id.startswith("sha256:")


@settings(max_examples=150, deadline=None)
@given(anything(edit.FIELDS))
def test_anything_else_is_a_bad_sample(row):
    check_anything(EDIT, row, PLACE)


def test_the_rows_of_the_training_scripts():
    sample = EDIT.read(
        {
            "source_image": ["/data/ref1.png", "/data/ref2.png"],
            "target_image": "/data/out.png",
            "instruction": "Merge the two characters into one scene.",
            "instruction_cn": "把两个角色合成到一个场景里。",
            "inverse_instruction": "Take them apart.",
        },
        PLACE,
    )
    assert [media.path for media in sample.media] == ["/data/ref1.png", "/data/ref2.png", "/data/out.png"]
    assert (sample.task, sample.edit.sources, sample.edit.target) == ("edit", (0, 1), 2)
    assert sample.edit.instruction == {
        "en": "Merge the two characters into one scene.",
        "zh": "把两个角色合成到一个场景里。",
    }
    assert sample.edit.inverse == {"en": "Take them apart."}
    assert edit.texts(sample) == sample.edit.instruction
    assert (sample.meta.format, sample.meta.locator) == ("edit", "edits.jsonl:3")


def test_without_a_source_it_is_text_to_image():
    row = {"source_image": None, "target_image": "g.png", "instruction": "", "instruction_cn": "窗台上的猫。"}
    sample = EDIT.read(row, PLACE)
    assert sample.task == "t2i"
    assert sample.edit is None
    assert [(turn.role, turn.text) for turn in sample.messages] == [("user", "窗台上的猫。"), ("assistant", "")]
    assert sample.messages[1].parts[0].media == 0
    assert edit.texts(sample) == {"en": "", "zh": "窗台上的猫。"}


def test_a_changed_text_is_written():
    for row in (
        {"source_image": None, "target_image": "g.png", "instruction_cn": "猫"},
        {"source_image": None, "target_image": "g.png"},
    ):
        data = EDIT.read(row, PLACE).to_dict()
        data["messages"][0]["parts"][0]["text"] = "a dog"
        assert "a dog" in EDIT.write(read_sample(data)).values()


@pytest.mark.parametrize(
    ("row", "reason", "sentence"),
    [
        ([], "edit", "expected an object with columns by name, found list."),
        ({"source_image": "a.png"}, "column", 'no column "target_image" (there are no others); name it with --map'),
        (
            {"source_image": "a.png", "targt_image": "b.png", "instruction": "x"},
            "column",
            'no column "target_image" (did you mean "targt_image"?); name it with --map target_image=COLUMN.',
        ),
        ({"source_image": "a.png", "target_image": "", "instruction": "x"}, "edit", '"target_image" is empty'),
        ({"source_image": "a.png", "target_image": None, "instruction": "x"}, "edit", '"target_image" is empty'),
        (
            {"source_image": "a.png", "target_image": "b.png", "edit_image": "c.png", "instruction": "x"},
            "edit",
            '"target_image" and "edit_image" are both there; name one with --map target_image=...',
        ),
        (
            {"source_images": ["a.png"], "target_image": "b.png", "instruction": "x"},
            "column",
            'no column "source_image" (did you mean "source_images"?)',
        ),
        (
            {"source_image": "a.png", "target_image": "b.png", "prompt": "Make it red."},
            "column",
            'no column "instruction" (there are prompt); name it with --map instruction=COLUMN.',
        ),
        ({"source_image": "a", "target_image": "b", "instruction": 3}, "edit", '"instruction" is int; write a text'),
        ({"source_image": 3, "target_image": "b", "instruction": "x"}, "media_value", "source_image[0] is int"),
        ({"source_image": ["a", None], "target_image": "b"}, "media_value", "source_image[1] is NoneType"),
        ({"source_image": {"bytes": None}, "target_image": "b"}, "media_value", "holds neither bytes nor a path"),
        ({"source_image": "../a", "target_image": "b"}, "media_path", "leaves its folder"),
    ],
)
def test_refusals_name_the_place_and_the_fix(row, reason, sentence):
    with pytest.raises(BadSample) as caught:
        EDIT.read(row, PLACE)
    assert caught.value.reason == reason
    assert sentence in str(caught.value)
    assert str(caught.value).startswith(f"{PLACE}: ")


def test_a_wrong_map_is_told():
    with pytest.raises(BadInput, match=r'has no field "source"; did you mean "source_image"\?'):
        get_format("edit", {"source": "a"})
    with pytest.raises(BadInput, match='column "a" stands for two fields'):
        get_format("edit", {"source_image": "a", "target_image": "a"})
    form = get_format("edit", {"source_image": "src", "instruction": "captoin"})
    with pytest.raises(BadSample, match=r'no column "captoin" \(did you mean "caption"\?\)'):
        form.read({"src": "a.png", "target_image": "b.png", "caption": "x", "instruction_cn": "y"}, PLACE)
    with pytest.raises(BadSample, match='no column "src"'):
        form.read({"before": "a.png", "target_image": "b.png", "captoin": "x"}, PLACE)


def test_what_it_cannot_say_is_refused():
    chat = build(("user", "a"), ("assistant", "b"))
    with pytest.raises(BadSample, match="edit cannot say the task chat; keep it as qvl"):
        EDIT.write(chat)
    data = EDIT.read({"source_image": "a.png", "target_image": "b.png", "instruction": "x"}, PLACE).to_dict()
    data["edit"]["instruction"]["ko"] = "빨갛게"
    with pytest.raises(BadSample, match="an instruction in the language ko") as caught:
        EDIT.write(read_sample(data))
    assert caught.value.reason == "not_expressible"


def test_hostile_extra_is_no_crash():
    data = EDIT.read({"source_image": "a.png", "target_image": "b.png", "instruction": "x"}, PLACE).to_dict()
    for extra in ("[]", "{", '{"fields": 3}', '{"layout": {"$bytes": "?"}}', "1", '{"fields": [1]}'):
        with pytest.raises(BadSample, match="extra"):
            EDIT.write(read_sample({**data, "extra": extra}))


def test_a_file_is_recognised_and_read(tmp_path):
    (tmp_path / "a.png").write_bytes(file_of(picture(8, 8)))
    (tmp_path / "b.png").write_bytes(file_of(picture(8, 8, seed=1)))
    lines = [
        {"source_image": "a.png", "target_image": "b.png", "instruction": "Invert it."},
        {"source_image": None, "edit_image": "b.png", "instruction": "Noise."},
    ]
    (tmp_path / "edits.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    data = Dataset(tmp_path / "edits.jsonl")
    assert [sample.task for sample in data] == ["edit", "t2i"]
    assert data[0].opener.open(data[0].media[1]).size == (8, 8)
    assert type(recognise(lines[1], PLACE)) is edit.EditLines
