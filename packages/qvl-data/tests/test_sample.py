import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from qvl_data.errors import BadSample
from qvl_data.sample import Sample, content_id, read_sample

CHAT = {
    "schema": "qvl.sample/1",
    "id": "a",
    "task": "chat",
    "media": [{"kind": "image", "path": "cats/1.jpg"}],
    "messages": [
        {"role": "user", "parts": [{"type": "image", "media": 0}, {"type": "text", "text": " What? \n"}]},
        {"role": "assistant", "parts": [{"type": "text", "text": "A cat."}]},
    ],
}
EDIT = {
    "task": "edit",
    "media": [{"kind": "image", "path": "a.png"}, {"kind": "image", "path": "b.png"}],
    "edit": {"sources": [0], "target": 1, "instruction": {"en": "make it blue", "zh": "变蓝"}},
}


def changed(data, path, value):
    """A deep copy of `data` with one field replaced, added, or (value ...) removed."""
    data = json.loads(json.dumps(data))
    *parents, last = path
    here = data
    for key in parents:
        here = here[key]
    if value is ...:
        del here[last]
    else:
        here[last] = value
    return data


def test_a_sample_is_read_and_written_back():
    sample = read_sample(CHAT)
    assert sample.messages[0].parts[1].text == " What? \n"
    assert sample.messages[1].trained
    assert not sample.messages[0].trained
    assert read_sample(sample.to_dict()) == sample
    assert json.loads(json.dumps(sample.to_dict())) == sample.to_dict()


def test_bytes_are_base64_in_json():
    sample = read_sample(changed(CHAT, ["media", 0], {"kind": "image", "bytes": "AAEC/w=="}))
    assert sample.media[0].bytes == b"\x00\x01\x02\xff"
    assert sample.to_dict()["media"][0]["bytes"] == "AAEC/w=="
    with pytest.raises(BadSample, match=r"media\[0\]\.bytes: not valid base64"):
        read_sample(changed(CHAT, ["media", 0], {"kind": "image", "bytes": "AA*="}))


def test_a_sample_cannot_be_changed():
    sample = read_sample(CHAT)
    with pytest.raises(ValidationError):
        sample.task = "text"
    with pytest.raises(ValidationError):
        sample.messages[0].role = "assistant"


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (["optimm"], 1, "optimm: Extra inputs are not permitted"),
        (["schema"], "qvl.sample/2", "schema: Input should be 'qvl.sample/1'"),
        (["task"], ..., "task: Field required"),
        (["task"], "text", "task `text` has no media"),
        (["task"], "t2i", "needs a picture in an assistant turn"),
        (["task"], "edit", "belong together"),
        (["messages"], [], "task `chat` needs messages"),
        (
            ["messages", 0, "role"],
            "human",
            r"messages\[0\]\.role: Input should be 'system', 'user'",
        ),
        (["messages", 0, "train"], True, "only assistant turns are learned from"),
        (["messages", 1, "train"], "yes", "should be a valid boolean"),
        (["messages", 0, "parts", 0, "media"], 1, r"messages\[0\]\.parts\[0\] names media 1, but there are 1"),
        (["messages", 0, "parts", 0, "media"], -1, "greater than or equal to 0"),
        (["messages", 0, "parts", 0, "media"], True, "should be a valid integer"),
        (["messages", 0, "parts", 0], {"type": "video", "media": 0}, "names media 0 as video, but it is image"),
        (["messages", 0, "parts", 0, "text"], "x", "a part of type image has no `text`"),
        (["messages", 0, "parts", 0], {"type": "image"}, "a part of type image needs `media`"),
        (["messages", 0, "parts", 0], {"type": "text", "text": "x"}, "media 0 is shown nowhere"),
        (["messages", 1, "parts", 0, "text"], 7, "should be a valid string"),
        (["media", 0, "url"], "http://x/y", "exactly one of `path`, `url`, `bytes` must be given, found 2"),
        (["media", 0], {"kind": "image"}, "found 0"),
        (["media", 0, "kind"], "audio", "Input should be 'image' or 'video'"),
        (["media", 0, "path"], "../x.png", "leaves its folder through .."),
        (["media", 0, "path"], "a\\b.png", "holds a backslash"),
        (["media", 0, "path"], "a\0.png", "holds a NUL"),
        (["media", 0, "path"], "", "is empty"),
        (["media", 0, "video"], {"fps": 1.0}, "belongs to media of kind"),
        (["media", 0, "width"], "64", "should be a valid integer"),
        (["regions"], [{"media": 0, "kind": "box", "xy": [5, 5, 5, 9]}], "is empty or inverted"),
        (["regions"], [{"media": 0, "kind": "box", "xy": [1, 2, 3]}], "a box has 4 coordinates, found 3"),
        (["regions"], [{"media": 1, "kind": "point", "xy": [1, 2]}], r"regions\[0\] names media 1"),
    ],
)
def test_what_is_refused(path, value, words):
    with pytest.raises(BadSample, match=words) as caught:
        read_sample(changed(CHAT, path, value), "data.jsonl:3")
    assert str(caught.value).startswith("data.jsonl:3: ")
    assert caught.value.reason == "schema"
    assert caught.value.sample_id == "a"


def test_infinite_numbers_are_refused():
    for bad in (float("nan"), float("inf")):
        with pytest.raises(BadSample, match="finite number"):
            read_sample(CHAT | {"regions": [{"media": 0, "kind": "point", "xy": [1.0, bad]}]})


def test_edits_and_videos_name_their_media():
    assert read_sample(EDIT).edit.target == 1
    with pytest.raises(BadSample, match=r"edit\.target names media 2"):
        read_sample(changed(EDIT, ["edit", "target"], 2))
    frames = {"kind": "video", "video": {"fps": 2.0, "frames": [0, 3]}}
    video = changed(CHAT, ["media"], [CHAT["media"][0], frames])
    with pytest.raises(BadSample, match=r"media\[1\]\.video\.frames names media 3"):
        read_sample(video)


def test_the_default_id_is_the_hash_of_the_content():
    data = changed(CHAT, ["id"], ...)
    first = read_sample(data, "a.jsonl:1")
    assert first.id.startswith("sha256:")
    assert len(first.id) == len("sha256:") + 32
    elsewhere = data | {"meta": {"dataset": "other", "locator": "b:2"}, "extra": "{}"}
    assert read_sample(elsewhere).id == first.id
    assert read_sample(changed(data, ["messages", 1, "parts", 0, "text"], "A dog.")).id != first.id
    assert read_sample(changed(data, ["media", 0, "path"], "cats/2.jpg")).id != first.id


def test_media_count_by_content_where_it_is_at_hand():
    import hashlib

    digest = hashlib.sha256(b"picture").hexdigest()
    embedded = read_sample(changed(CHAT, ["media", 0], {"kind": "image", "bytes": "cGljdHVyZQ=="}))
    named = read_sample(changed(CHAT, ["media", 0, "sha256"], digest))
    assert content_id(embedded) == content_id(named)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["system", "user", "assistant", "tool"]), st.text(max_size=20)), min_size=1))
def test_text_survives_json(turns):
    messages = [{"role": role, "parts": [{"type": "text", "text": text}]} for role, text in turns]
    sample = Sample.model_validate({"task": "chat", "messages": messages})
    assert [part.text for message in sample.messages for part in message.parts] == [text for _, text in turns]


@pytest.mark.parametrize("extra", ["", "[]", '{"a"', "null", "[" * 100_000])
def test_extra_is_a_json_object(extra):
    with pytest.raises(BadSample, match="extra: not a JSON object; correct or remove it") as caught:
        read_sample(CHAT | {"extra": extra})
    assert caught.value.reason == "schema"
