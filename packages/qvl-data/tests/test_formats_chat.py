"""Formats of chats beside each other: recognised for what they are, written back as they were, read into the same."""

import base64
import io
import json
import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from qvl_core.errors import BadInput
from qvl_data.chat import encode
from qvl_data.errors import REASONS, BadSample
from qvl_data.formats import formats, get_format, recognise
from qvl_data.formats.common import source_of
from qvl_data.formats.tags import join, split
from qvl_data.formats.tools import tools_text
from qvl_data.sample import Sample, read_sample

from .chats import build, file_of, picture

CHATS = ("openai", "qwenvl", "llava", "sharegpt", "hf", "kodoc", "alpaca")
PNG = file_of(picture(8, 8))
URL = "data:image/png;base64," + base64.b64encode(PNG).decode()

characters = st.characters(exclude_categories=["Cs"])
text = st.one_of(
    st.text(characters, max_size=12),
    st.lists(st.sampled_from(["\\", r"\<image>", "<", "image>", "\n", " ", "猫", "한글", "[{", '"}]']), max_size=6).map(
        "".join
    ),
)
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(characters, max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["p", "$bytes", "한"]), inner, max_size=2)
    ),
    max_leaves=4,
)
unknown = st.dictionaries(
    st.sampled_from(["source", "score", "layout", "fields", "metadata", "form", "texts_"]), plain, max_size=3
)
identity = st.sampled_from([{}, {"id": "x-1"}, {"id": 17}, {"id": None}, {"id": ""}, {"id": 1.5}, {"id": [1]}])
path = st.sampled_from(["a.png", "b/c.jpg", "/abs/d.png", "file:///abs/e.png", "http://host/f.png", URL, "猫 1.webp"])
cell = st.one_of(
    path,
    st.builds(lambda path: {"bytes": PNG, "path": path}, st.none() | st.sampled_from(["x.jpg", "C:\\y.jpg", ""])),
    st.builds(lambda path: {"bytes": None, "path": path}, path),
    st.just({"bytes": PNG}),
    st.just({"path": "a.png", "width": 8}),
    st.just(PNG),
)
empty = st.sampled_from(
    [
        {},
        {"images": None},
        {"images": []},
        {"image": None, "images": None},
        {"image": "", "videos": []},
        {"image": {"bytes": None, "path": None}},
    ]
)
lost = st.sampled_from(
    [
        {},
        {"loss": False},
        {"loss": True},
        {"train": False},
        {"train": 0, "loss": None},
        {"weight": 0},
        {"weight": 0.5, "name": "x"},
        {"weight": None},
    ]
)
functions = st.lists(
    st.sampled_from([{"name": "f"}, {"type": "function", "function": {"name": "거", "parameters": {}}}]), max_size=2
)
calls = st.lists(
    st.sampled_from(
        [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x":  1}'}},
            {"function": {"name": "f", "arguments": {"x": "猫"}}},
            {"name": "g", "arguments": {}},
        ]
    ),
    max_size=2,
)


def tagged(draw, kinds, amount):
    """A text in which so many tags stand."""
    words = [draw(text) for _ in range(amount + 1)]
    made = words[0]
    for word in words[1:]:
        made += "\\" * ((len(made) - len(made.rstrip("\\"))) % 2) + f"<{draw(st.sampled_from(kinds))}>" + word
    return made


def counted(texts):
    """How many tags of each kind the texts hold."""
    kinds = [kind for said in texts for kind, _ in split(said)]
    return {kind: kinds.count(kind) for kind in ("image", "video")}


def columns(draw, counts, image="images", video="videos", cells=cell):
    row = {}
    for kind, key, values in (("image", image, cells), ("video", video, st.just("clip.mp4"))):
        if counts[kind]:
            row[key] = [draw(values) for _ in range(counts[kind])]
            if counts[kind] == 1 and draw(st.booleans()):
                row[key] = row[key][0]
    if counts["video"] and draw(st.booleans()):
        row |= {"fps": 2, "video_start": 0.5, "video_end": 3}
    return row


@st.composite
def conversations(draw, image="images", video="videos"):
    """from/value or role/content, tags in texts, calls of functions, system and tools beside them."""
    chat, role, content = draw(st.sampled_from([("conversations", "from", "value"), ("messages", "role", "content")]))
    names = st.sampled_from(["human", "user", "gpt", "assistant", "system", "observation", "tool", "function_call"])
    turns, shown = [], []
    for name in draw(st.lists(names, min_size=1, max_size=4)):
        if name == "function_call":
            said = draw(
                st.sampled_from(
                    ['{"name": "f", "arguments": {}}', "<tool_call>\nx\n</tool_call>", '[{"name":"f","arguments":{}}]']
                )
            )
        elif name in ("gpt", "assistant"):
            said = draw(text)
        else:
            said = tagged(draw, ["image", "video"], draw(st.integers(0, 2)))
            shown.append(said)
        turns.append({role: name, content: said, **draw(lost)})
    row = {chat: turns, **draw(unknown), **draw(identity), **columns(draw, counted(shown), image, video)}
    if all(turn[role] != "system" for turn in turns[:1]) and draw(st.booleans()):
        row["system"] = draw(st.sampled_from(["", "Be brief.", r"\<image>", None]))
    if draw(st.booleans()):
        tools = draw(functions)
        row["tools"] = draw(st.sampled_from([tools, json.dumps(tools), None, ""]))
    return row


def parts_of(draw, columns):
    """A list of parts; returns it and how many pictures of the column it shows."""
    values = st.sampled_from(
        [
            {"type": "text", "text": "x"},
            {"type": "text", "text": r"\<image> 猫", "image": None},
            {"type": "text", "text": ""},
            {"text": "b", "type": None},
            {"type": "image", "image": "a.png"},
            {"type": "image", "image": {"bytes": PNG, "path": None}, "text": None},
            {"type": "image_url", "image_url": {"url": URL, "detail": "low"}},
            {"type": "video", "video": ["f1.png", "f2.png"], "fps": 2},
            {"type": "video", "video": "c.mp4", "video_start": 1, "video_end": 2.5},
        ]
    )
    empties = st.sampled_from(
        [{"type": "image"}, {"type": "image", "image": None, "text": None}, {"type": "text", "text": "a<image>b"}]
    )
    made = draw(st.lists(values | empties if columns else values, max_size=4))
    texts = counted([part["text"] for part in made if isinstance(part.get("text"), str)])["image"]
    return made, texts + sum(
        part in ({"type": "image"}, {"type": "image", "image": None, "text": None}) for part in made
    )


@st.composite
def hub_rows(draw, messages="messages", place_first=True):
    turns, shown = [], 0
    for role in draw(st.lists(st.sampled_from(["system", "user", "assistant", "tool"]), min_size=1, max_size=4)):
        if role == "assistant":
            content = draw(st.one_of(text, st.just([{"type": "text", "text": "x"}]), st.just([])))
        elif draw(st.booleans()):
            content, amount = parts_of(draw, True)
            shown += amount
        else:
            content = tagged(draw, ["image"], draw(st.integers(0, 2)))
            shown += counted([content])["image"]
        turn = {"role": role, "content": content, **draw(lost)}
        if role == "assistant" and draw(st.booleans()):
            turn |= draw(st.fixed_dictionaries({}, optional={"tool_calls": calls, "reasoning_content": text}))
            if turn.get("tool_calls") and draw(st.booleans()):
                turn["content"] = None
        turns.append(turn)
    own = any(
        isinstance(part, dict) and "image" in str(part.get("type")) for turn in turns for part in turn["content"] or ()
    )
    if not shown and not own and any(turn["role"] == "user" for turn in turns):
        shown = draw(st.integers(0, 2))
    row = {messages: turns, **draw(unknown), **draw(identity)}
    return {**row, **(columns(draw, {"image": shown, "video": 0}) if shown else draw(empty))}


@st.composite
def pair_rows(draw):
    pairs = [
        {"user": draw(text), "assistant": draw(text), **draw(st.sampled_from([{}, {"source": "vqa"}]))}
        for _ in range(draw(st.integers(1, 3)))
    ]
    return {"texts": pairs, **columns(draw, {"image": draw(st.integers(0, 2)), "video": 0}), **draw(unknown)}


@st.composite
def alpaca_rows(draw):
    asked = tagged(draw, ["image"], draw(st.integers(0, 2)))
    row = {"instruction": asked, "output": draw(text), **draw(unknown), **draw(identity)}
    more = draw(
        st.fixed_dictionaries({}, optional={"input": text | st.none(), "system": st.sampled_from(["", "s", None])})
    )
    pairs = st.lists(st.lists(text, min_size=2, max_size=2), max_size=2)
    more |= draw(st.fixed_dictionaries({}, optional={"history": st.none() | pairs, "tools": functions}))
    return {**row, **more, **columns(draw, counted([asked]))}


@st.composite
def kodoc_rows(draw):
    row = draw(hub_rows("conversations"))
    style = draw(st.sampled_from([{"ensure_ascii": False}, {"indent": 1}, {"separators": (",", ":")}, {}]))
    for turn in row["conversations"]:
        if isinstance(turn["content"], list):
            parts = [part for part in turn["content"] if not isinstance(part.get("image"), dict)]  # bytes are no JSON
            turn["content"] = json.dumps(parts, **style)
    return row


def check_round_trip(name, row):
    form = get_format(name)
    sample = form.read(row, "data.jsonl:1")
    assert form.write(sample) == row
    assert form.write(read_sample(get_format("qvl").write(sample))) == row  # also after a stay in qvl
    return sample


def attempt(call, *arguments):
    """What a call gives, or the BadSample that it raises."""
    try:
        return call(*arguments), None
    except BadSample as error:
        return None, error


def readable(name, row):
    """Whether the drawn row is sound: no tag formed by accident where texts met, no count that is off."""
    _, error = attempt(get_format(name).read, row, "")
    assert error is None or error.reason in ("media_count", "media_tag_in_answer")
    return error is None


@settings(max_examples=250, deadline=None)
@given(conversations())
def test_sharegpt_round_trip(row):
    if readable("sharegpt", row):
        check_round_trip("sharegpt", row)


@settings(max_examples=150, deadline=None)
@given(conversations("image", "video").filter(lambda row: "conversations" in row))
def test_qwenvl_round_trip_with_cells_and_tools(row):
    if readable("qwenvl", row):
        check_round_trip("qwenvl", row)


@settings(max_examples=250, deadline=None)
@given(hub_rows())
def test_hf_round_trip(row):
    if readable("hf", row):
        check_round_trip("hf", row)


@settings(max_examples=100, deadline=None)
@given(pair_rows())
def test_hf_round_trip_of_pairs(row):
    if readable("hf", row):
        check_round_trip("hf", row)
        assert type(recognise(row, "")) is type(get_format("hf"))


@settings(max_examples=200, deadline=None)
@given(kodoc_rows())
def test_kodoc_round_trip(row):
    if readable("kodoc", row):
        check_round_trip("kodoc", row)


@settings(max_examples=100, deadline=None)
@given(alpaca_rows())
def test_alpaca_round_trip(row):
    if readable("alpaca", row):
        sample = check_round_trip("alpaca", row)
        assert sample.messages[-1].text == row["output"].replace(r"\<image>", "<image>") or "\\" in row["output"]


@settings(max_examples=200, deadline=None)
@given(st.lists(text | st.sampled_from(["image", "video"]).map(lambda kind: (kind, None)), max_size=6))
def test_tags(pieces):
    written = join(piece if isinstance(piece, tuple) else ("text", piece) for piece in pieces)
    said = [piece if isinstance(piece, tuple) else ("text", piece) for piece in pieces]
    assert join(split(written)) == written
    assert [kind for kind, _ in split(written) if kind != "text"] == [kind for kind, _ in said if kind != "text"]
    assert "".join(t or "" for _, t in split(written)) == "".join(t or "" for _, t in said)


# what is read


def test_llava_takes_one_picture():
    row = {"id": "1", "image": "a.png", "conversations": [{"from": "human", "value": "What<image>?"}]}
    check_round_trip("llava", row)
    check_round_trip("llava", {"id": "2", "conversations": [{"from": "human", "value": "Hi"}]})
    two = {"image": ["a.png", "b.png"], "conversations": [{"from": "human", "value": "<image><image>"}]}
    with pytest.raises(BadSample, match="one picture, not 2; name the format qwenvl"):
        get_format("llava").read(two, "d.json:3")
    with pytest.raises(BadSample, match="one picture, not 2 in llava; write it as qwenvl"):
        get_format("llava").write(get_format("qwenvl").read(two, "d.json:3"))


def test_paths_start_from_data_path():
    row = {
        "data_path": "photos/",
        "image": ["a.png", "/abs/b.png", "http://host/c.png"],
        "conversations": [{"from": "human", "value": "<image><image><image>"}],
    }
    sample = check_round_trip("qwenvl", row)
    assert [media.path or media.url for media in sample.media] == ["photos/a.png", "/abs/b.png", "http://host/c.png"]
    under = {
        "data_path": "/abs",
        "image": "/abs/b.png",
        "conversations": [{"from": "human", "value": "<image>"}],
    }
    check_round_trip("qwenvl", under)
    check_round_trip("qwenvl", {**under, "data_path": 5})
    moved = sample.model_copy(
        update={"media": (sample.media[0].model_copy(update={"path": "media/1.png"}), *sample.media[1:])}
    )
    written = get_format("qwenvl").write(moved)
    assert written["image"][0] == "media/1.png"
    assert "data_path" not in written


def test_videos_are_cut_as_the_row_says():
    row = {"video": "c.mp4", "fps": 2, "video_end": 5, "conversations": [{"from": "human", "value": "<video>?"}]}
    sample = check_round_trip("qwenvl", row)
    assert (sample.media[0].video.fps, sample.media[0].video.start, sample.media[0].video.end) == (2, None, 5)
    written = get_format("openai").write(sample)
    assert get_format("openai").read(written, "").media == sample.media
    back = get_format("qwenvl").write(get_format("openai").read(written, ""))
    assert {key: back[key] for key in ("video", "fps", "video_end")} == {"video": "c.mp4", "fps": 2, "video_end": 5}
    for wrong in ({"fps": 0}, {"fps": "2"}, {"video_start": 5}, {"video_start": -1}):
        with pytest.raises(BadSample) as caught:
            get_format("qwenvl").read({**row, **wrong}, "")
        assert caught.value.reason == "video_cut"


def test_coordinates_stay_text_and_are_marked():
    boxed = {"conversations": [{"from": "gpt", "value": '{"bbox_2d": [1, 2, 3, 4]}'}]}
    sample = check_round_trip("qwenvl", boxed)
    assert json.loads(sample.extra)["coord_space"] == "unknown"
    told = check_round_trip("qwenvl", {**boxed, "coord_space": "qwen3vl"})
    assert json.loads(told.extra)["coord_space"] == "qwen3vl"


def test_pictures_that_nothing_shows_come_first():
    row = {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "?"}], "image": PNG}
    sample = check_round_trip("hf", row)
    assert [part.type for part in sample.messages[1].parts] == ["image", "text"]
    with pytest.raises(BadSample, match="no user turn that could show"):
        get_format("hf").read({"messages": row["messages"][:1], "image": PNG}, "")
    own = {"role": "user", "content": [{"type": "image", "image": "a.png"}]}
    with pytest.raises(BadSample, match="shown by no part, beside parts with their own"):
        get_format("hf").read({"messages": [own], "images": ["a.png"]}, "")


def test_pil_pictures_are_kept_without_loss():
    for mode, expected in (("RGB", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("CMYK", "TIFF")):
        image = picture(9, 7).convert("RGBA" if mode == "LA" else "RGB").convert(mode)
        row = {
            "messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}],
            "image": image,
        }
        sample = get_format("hf").read(row, "")
        again = Image.open(io.BytesIO(sample.media[0].bytes))
        assert (again.format, again.mode, again.tobytes()) == (expected, mode, image.tobytes())
    turned = picture(9, 7)
    turned.getexif()[0x0112] = 6
    sample = get_format("hf").read({**row, "image": turned}, "")
    assert sample.opener.open(sample.media[0]).size == (7, 9)


def test_kodoc_answers_that_are_json_stay_text():
    answers = ["[1, 2]", '[{"매출": 5}]', "[]", '{"type": "text"}', "[oops", '"x"', "[NaN]", "[" * 5000]
    for answer in answers:
        row = {
            "id": 3,
            "image": PNG,
            "conversations": [
                {"role": "user", "content": '[{"type":"image"}]'},
                {"role": "assistant", "content": answer},
            ],
        }
        sample = check_round_trip("kodoc", row)
        assert sample.messages[1].text == answer
    with pytest.raises(BadSample, match=r'd\.jsonl:1: conversations\[0\]: key "text" appears twice'):
        get_format("kodoc").read(
            {"conversations": [{"role": "user", "content": '[{"type":"text","text":"a","text":"b"}]'}]}, "d.jsonl:1"
        )


TOOLS = [
    {
        "type": "function",
        "function": {"name": "날씨", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
    }
]
CALLED = [
    {"role": "user", "content": "Weather?"},
    {
        "role": "assistant",
        "content": "I look.",
        "tool_calls": [
            {"type": "function", "function": {"name": "날씨", "arguments": {"city": "서울"}}},
            {"type": "function", "function": {"name": "날씨", "arguments": '{"city": "Paris"}'}},
        ],
    },
    {"role": "tool", "content": "sunny"},
    {"role": "tool", "content": "rain"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}],
    },
    {"role": "tool", "content": "x"},
    {"role": "assistant", "content": "Sunny."},
]


@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "Be brief."}]])
def test_tools_are_what_the_chat_template_makes_of_them(processor, system):
    row = {"messages": system + CALLED, "tools": TOOLS}
    sample = check_round_trip("openai", row)
    expected = processor.apply_chat_template(row["messages"], tools=TOOLS, tokenize=False)
    assert encode(sample, processor).ids.tolist() == processor.tokenizer(expected)["input_ids"]


def test_calls_of_sharegpt_and_of_openai_become_the_same():
    shared = {
        "conversations": [
            {"from": "human", "value": "Weather?"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
            {"from": "observation", "value": "sunny"},
            {"from": "gpt", "value": "Sunny."},
        ],
        "system": "Be brief.",
        "tools": json.dumps([{"name": "f"}]),
    }
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]},
        {"role": "tool", "content": "sunny"},
        {"role": "assistant", "content": "Sunny."},
    ]
    tools = [{"type": "function", "function": {"name": "f"}}]
    left = check_round_trip("sharegpt", shared)
    right = check_round_trip("openai", {"messages": messages, "tools": tools})
    assert [message.text for message in left.messages] == [message.text for message in right.messages]
    assert left.messages[0].text == "Be brief.\n\n" + tools_text(tools)


GROUNDED = {
    "messages": [
        {"role": "user", "content": "<image><image>Find <ref-object>, then <ref-object>."},
        {"role": "assistant", "content": "<bbox> and <bbox>"},
    ],
    "images": ["a.png", "b.png"],
    "objects": {"ref": ["the dog", "猫"], "bbox": [[1, 2, 30.5, 40], [5, 6]], "image_id": [0, 1]},
}


def test_objects_become_regions():
    sample = check_round_trip("sharegpt", GROUNDED)
    assert [message.text for message in sample.messages] == ["Find the dog, then 猫.", " and "]
    assert [(region.media, region.kind, region.xy) for region in sample.regions] == [
        (0, "box", (1, 2, 30.5, 40)),
        (1, "point", (5, 6)),
    ]
    with pytest.raises(BadSample, match="openai cannot say regions"):
        get_format("openai").write(sample)
    moved = [region.model_copy(update={"xy": (0.0, 0.0, 1.0, 1.0)}) for region in sample.regions[:1]]
    with pytest.raises(BadSample, match="sharegpt cannot say regions"):
        get_format("sharegpt").write(sample.model_copy(update={"regions": (*moved, sample.regions[1])}))


@pytest.mark.parametrize(
    ("objects", "words"),
    [
        ({"ref": ["x"], "bbox": [[1, 2, 3, 4], [1, 2]]}, '2 <ref-object> tags but 1 entries under "ref"'),
        ({"ref": ["x", "y"], "bbox": [[1, 2, 3, 4]]}, '2 <bbox> tags but 1 entries under "bbox"'),
        ({"ref": ["x", "y"], "bbox": [[3, 2, 1, 4], [1, 2]]}, "is empty or inverted"),
        ({"ref": ["x", "y"], "bbox": [[1, 2, 3], [1, 2]]}, r"bbox\[0\] is \[1, 2, 3\]; expected x1, y1, x2, y2"),
        ({"ref": ["x", "y"], "bbox": [[1, 2], [1, 2]], "image_id": [0, 2]}, "lies in picture 2, but there are 2"),
        ({"ref": ["x", "y"], "bbox": [[0, 0], [1, 1]], "bbox_type": "norm1"}, "bbox_type is 'norm1'; write .* pixels"),
        ([1], "is no object with `ref`"),
    ],
)
def test_objects_that_do_not_fit_are_refused(objects, words):
    with pytest.raises(BadSample, match=words):
        get_format("sharegpt").read({**GROUNDED, "objects": objects}, "d.jsonl:1")


def test_hints_of_an_edited_sample_are_not_used():
    row = {"messages": [{"role": "user", "content": "?"}, CALLED[1]], "tools": TOOLS, "images": ["a.png"]}
    sample = get_format("hf").read(row, "")
    data = sample.to_dict()
    data["messages"][2]["parts"][-1]["text"] = "\nchanged"
    data["messages"][0]["parts"][0]["text"] = "No tools."
    data["messages"][1]["parts"].append({"type": "text", "text": "more"})
    edited = read_sample(data)
    again = get_format("hf").read(get_format("hf").write(edited), "")
    assert [message.text for message in again.messages] == [message.text for message in edited.messages]


def test_hints_of_turns_that_came_or_went_are_not_used():
    row = {"messages": [{"role": "user", "content": "a", "name": "ann"}, {"role": "assistant", "content": "b"}]}
    sample = get_format("openai").read(row, "")
    shorter = sample.model_copy(update={"messages": sample.messages[1:]})
    assert get_format("openai").write(shorter)["messages"] == row["messages"][1:]


def test_fields_that_would_be_read_as_something_else_are_refused():
    row = {"messages": [{"role": "user", "content": [{"type": "video", "video": "c.mp4"}]}]}
    for more in ({"fps": 2}, {"video_start": 1}):
        sample = check_round_trip("openai", {**row, **more})
        for target in ("hf", "qwenvl"):
            with pytest.raises(BadSample) as caught:
                get_format(target).write(sample)
            assert caught.value.reason == "not_expressible"
    sample = check_round_trip("openai", {**row, "conversations": [1]})
    with pytest.raises(BadSample, match='qwenvl cannot say the field "conversations" of its original'):
        get_format("qwenvl").write(sample)


# between formats


def said(sample):
    """What a sample says, whatever it was read from: adjacent texts joined, media by their source."""
    turns = []
    for message in sample.messages:
        pieces = []
        for part in message.parts:
            if part.text is not None and pieces and isinstance(pieces[-1], str):
                pieces[-1] += part.text
            elif part.text is not None:
                pieces.append(part.text)
            else:
                media = sample.media[part.media]
                frames = [sample.media[i].path for i in (media.video and media.video.frames) or ()]
                cut = media.video and media.video.model_dump(exclude={"frames"})
                pieces.append((part.type, source_of(media), tuple(frames), str(cut)))
        turns.append((message.role, tuple(piece for piece in pieces if piece != ""), message.trained))
    return turns


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(
        conversations().map(lambda row: ("sharegpt", row)),
        hub_rows().map(lambda row: ("hf", row)),
        kodoc_rows().map(lambda row: ("kodoc", row)),
        alpaca_rows().map(lambda row: ("alpaca", row)),
    ),
    st.sampled_from(CHATS),
)
def test_from_format_to_format(named, target):
    name, row = named
    if not readable(name, row):
        return
    sample = get_format(name).read(row, "")
    written, error = attempt(get_format(target).write, sample)
    if error is not None:
        assert error.reason == "not_expressible"
        return
    again = get_format(target).read(written, "")
    assert said(again) == said(sample)
    assert get_format(target).write(again) == written


# keys under other names

NAMES = {"messages": "dialog", "images": "pages", "system": "id"}


@settings(max_examples=100, deadline=None)
@given(hub_rows())
def test_keys_may_have_other_names(row):
    row.pop("id", None)
    if readable("hf", row):
        renamed = {NAMES.get(key, key): value for key, value in row.items()}
        form = get_format("hf", NAMES)
        assert form.write(form.read(renamed, "")) == renamed
        assert form.read(renamed, "").messages == get_format("hf").read(row, "").messages


def test_names_that_clash():
    form = get_format("hf", NAMES)
    row = {"dialog": [{"role": "user", "content": "?"}], "id": "Be brief."}
    with pytest.raises(BadSample, match='columns "images" and "pages" are both "images" by --map'):
        form.read({**row, "images": [], "pages": []}, "")
    data = {"messages": [{"role": "user", "content": "?"}], "image": "a.png", "images": None, "pages": 3}
    sample = get_format("hf").read(data, "")
    with pytest.raises(BadSample, match='its own field "pages" stands where --map puts another'):
        form.write(sample)
    with pytest.raises(BadInput, match='column "a" stands for two fields'):
        get_format("openai", {"messages": "a", "tools": "a"})
    with pytest.raises(BadInput, match='"qvl" cannot be renamed'):
        get_format("qvl", {"messages": "a"})


# the registry

ROWS = {
    "qvl": {"schema": "qvl.sample/1"},
    "openai": {"messages": [{"role": "user", "content": "x"}]},
    "qwenvl": {"image": "a.png", "conversations": [{"from": "human", "value": "<image>x"}]},
    "sharegpt": {"conversations": [{"from": "human", "value": "<image>x"}], "images": ["a.png"]},
    "kodoc": {"id": 3, "image": {"bytes": PNG, "path": None}, "conversations": [{"role": "user", "content": "x"}]},
    "hf": {"messages": [{"role": "user", "content": [{"type": "image"}]}], "images": [{"bytes": PNG, "path": None}]},
    "alpaca": {"instruction": "x", "input": "", "output": "y"},
    "metaquery": {
        "source_images": [],
        "source_captions": [],
        "prompt": "x",
        "target_image": "a.png",
        "target_caption": "",
    },
    "edit": {"source_image": "a.png", "target_image": "b.png", "instruction": "x"},
    "omniedit": {"src_img": "a.png", "edited_img": "b.png", "edited_prompt_list": ["x"]},
    "coco": {"image": {"id": 1, "file_name": "a.jpg"}, "annotations": [], "categories": []},
    "mimic": {"subject_id": "1", "study_id": "2", "report": "x", "images": [{"path": "a.jpg"}]},
    "mmc4": {"text_list": ["x"], "image_info": [], "url": "http://host"},
    "obelics": {
        "images": ["http://host/a.jpg", None],
        "texts": [None, "x"],
        "metadata": "[]",
        "general_metadata": "{}",
    },
    "omnicorpus": {"images": ["http://host/a.jpg", None], "texts": [None, "x"], "metadata": [{}, None]},
    "wds": {"__key__": "1", "jpg": PNG, "txt": b"x"},
}
ALSO = {  # a row of the first is one of the others too, which must come after it
    "qwenvl": {"llava"},
    "sharegpt": {"qwenvl", "llava", "openai", "hf"},
    "hf": {"openai"},
}
MORE = [
    (
        "openai",
        {
            "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a.png"}}]}],
            "tools": [],
        },
    ),
    ("openai", {"messages": [{"role": "user", "content": [{"type": "image", "image": "a.png"}]}]}),
    ("qwenvl", {"conversations": [{"from": "human", "value": "x"}]}),
    ("sharegpt", {"messages": [{"role": "user", "content": "<image>x"}], "images": ["a.png"]}),
    ("sharegpt", {"conversations": [{"from": "human", "value": "x"}, {"from": "function_call", "value": "{}"}]}),
    ("hf", {"messages": [{"role": "user", "content": [{"type": "image", "text": None}]}], "image": PNG}),
    ("hf", {"messages": [{"role": "user", "content": "x"}], "image": PNG}),
    ("hf", {"images": [PNG], "texts": [{"user": "a", "assistant": "b"}], "source": "vqa"}),
]


@pytest.mark.parametrize(("name", "row"), [*ROWS.items(), *MORE])
def test_each_file_is_recognised_for_what_it_is(name, row):
    assert type(recognise(row, "")) is type(get_format(name))
    matching = {other for other, kind in formats().items() if kind().matches(row)}
    assert matching <= {name} | ALSO.get(name, set())


def test_every_format_is_recognised():
    assert set(ROWS) == set(formats()) - {"llava", "flat"}  # rows of llava are rows of qwenvl; flat is asked for


PAGE = Path(__file__).parents[3] / "docs/data/formats.md"


@pytest.mark.skipif(not PAGE.exists(), reason="the documentation lies in the repository, not in the package")
def test_the_rows_of_the_page_are_what_it_says():
    text = PAGE.read_text("utf-8")
    for name in ("qwenvl", "sharegpt", "openai", "hf", "kodoc", "alpaca"):
        section = text.split(f"\n## {name}\n")[1].split("\n## ")[0]
        rows = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", section, re.DOTALL)]
        assert rows
        for row in rows:
            assert type(recognise(row, "")) is type(get_format(name))
            check_round_trip(name, row)


def test_no_known_format():
    with pytest.raises(
        BadSample, match=r"d\.jsonl:1: no known format \(keys question, answer\); map its columns \(--map"
    ):
        recognise({"question": 1, "answer": 2}, "d.jsonl:1")
    with pytest.raises(BadSample, match=r"no known format \(list\); .* or name one of alpaca"):
        recognise([], "d.jsonl:1")
    with pytest.raises(BadSample, match=r'\(list\); put the list under "messages", or name'):
        recognise([{"role": "user", "content": "x"}], "d.jsonl:1")
    with pytest.raises(BadSample, match=r'\(keys id, conversation\); rename "conversation" to "conversations"'):
        recognise({"id": 1, "conversation": []}, "d.jsonl:1")


@pytest.mark.parametrize("name", ["openai", "sharegpt", "qwenvl", "hf", "kodoc"])
@pytest.mark.parametrize("key", ["loss", "train"])
def test_answers_that_are_not_learned(name, key):
    form, other = get_format(name), get_format("sharegpt" if name == "openai" else "openai")
    said = form.write(build(("user", "a?"), ("assistant", "a"), ("user", "b?"), ("assistant", "b")))
    turns = said.get("messages") or said["conversations"]
    for value, trained in ((False, False), (0, False), (True, True), (1, True), (None, True)):
        turns[1][key] = value
        sample = form.read(said, "a.jsonl:1")
        assert [message.trained for message in sample.messages] == [False, trained, False, True]
        assert form.write(sample) == said
        again = other.read(other.write(sample), "b.jsonl:1")
        assert [message.trained for message in again.messages] == [False, trained, False, True]
    for value in ("false", 0.5, [], {"train": False}):
        turns[1][key] = value
        with pytest.raises(BadSample, match=rf'\[1\]: "{key}" is .*; use true or false'):
            form.read(said, "a.jsonl:1")


# hostile rows

KEYS = ["messages", "conversations", "role", "from", "content", "value", "image", "images", "video", "videos", "type"]
KEYS += ["text", "texts", "system", "tools", "tool_calls", "function", "name", "arguments", "url", "image_url", "bytes"]
KEYS += [
    "objects",
    "ref",
    "bbox",
    "path",
    "fps",
    "video_start",
    "weight",
    "loss",
    "train",
    "id",
    "data_path",
    "user",
    "assistant",
    "reasoning_content",
]
WORDS = [
    "user",
    "gpt",
    "assistant",
    "function_call",
    "text",
    "image",
    "video",
    "image_url",
    "<image>",
    '[{"type":"image"}]',
]
wild = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(WORDS)
    | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)
turn = st.dictionaries(st.sampled_from(KEYS), wild, max_size=3).flatmap(
    lambda more: st.builds(
        lambda role, content, how: {**more, how[0]: role, how[1]: content},
        st.sampled_from(WORDS) | wild,
        wild,
        st.sampled_from([("role", "content"), ("from", "value")]),
    )
)
wild_rows = wild | st.builds(
    lambda key, turns, more: {**more, key: turns},
    st.sampled_from(["messages", "conversations", "texts"]),
    st.lists(turn, max_size=3),
    st.dictionaries(st.sampled_from(KEYS), wild, max_size=4),
)


@st.composite
def mutated(draw):
    """A sound row in which one value, anywhere, is something else."""
    row = draw(st.one_of(conversations(), hub_rows(), kodoc_rows(), alpaca_rows(), pair_rows(), st.just(GROUNDED)))
    return mutate(draw, row)


def mutate(draw, value):
    if isinstance(value, dict) and value and draw(st.integers(0, 5)):
        key = draw(st.sampled_from(list(value)))
        return {**value, key: mutate(draw, value[key])}
    if isinstance(value, list) and value and draw(st.integers(0, 5)):
        at = draw(st.integers(0, len(value) - 1))
        return [*value[:at], mutate(draw, value[at]), *value[at + 1 :]]
    return draw(wild)


@settings(max_examples=250, deadline=None)
@given(wild_rows | mutated())
def test_hostile_rows_raise_nothing_but_bad_sample(row):
    for name in CHATS:
        form = get_format(name)
        form.matches(row)
        sample, error = attempt(form.read, row, "d.jsonl:1")
        if error is not None:
            assert error.reason in REASONS
            assert str(error).startswith("d.jsonl:1")
        else:
            assert equal(form.write(sample), row)


def equal(left, right):
    """Equality in which NaN is NaN."""
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(equal, left, right))
    return left == right or (left != left and right != right)


@pytest.mark.parametrize("name", CHATS)
def test_long_rows_are_read_in_no_time(name):
    long = ["\\" * 10**5, r"\<image>" * 10**4, "<" * 10**5, "[" * 10**5, "(1, " * 10**4, "<image" * 10**4]
    start = time.process_time()
    for value in long:
        turns = [{"role": "user", "content": value, "from": "human", "value": value}]
        row = {"messages": turns, "conversations": turns, "instruction": value, "output": value}
        keep = {"kodoc": ["conversations"], "alpaca": ["instruction", "output"]}.get(
            name, ["messages", "conversations"]
        )
        row = {key: row[key] for key in keep}
        sample, error = attempt(get_format(name).read, row, "d.jsonl:1")
        assert error is None
        assert get_format(name).write(sample) == row
        _, error = attempt(get_format(name).read, {value: 1, **dict.fromkeys(map(str, range(10**4)))}, "d.jsonl:1")
        assert len(str(error)) < 500
    assert time.process_time() - start < 5


LAYOUT = ["objects", "grounded", "ref", "bbox"]
LAYOUT += [
    "messages",
    "tools",
    "system",
    "placed",
    "image",
    "cells",
    "form",
    "key",
    "texts",
    "id",
    "parts",
    "at",
    "part",
    "n",
]
hints = st.recursive(
    st.none() | st.integers(-2, 3) | st.sampled_from([*WORDS, "messages", "list", "one", "key"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*LAYOUT, *KEYS]), inner, max_size=4),
    max_leaves=15,
)
tampered = st.dictionaries(st.sampled_from(["fields", "layout", "more"]), hints, max_size=3) | st.builds(
    lambda fields, layout: {"fields": fields, "layout": layout},
    hints,
    hints | st.dictionaries(st.sampled_from(LAYOUT), hints, max_size=5),
)


@settings(max_examples=250, deadline=None)
@given(tampered, st.sampled_from(CHATS))
def test_a_tampered_layout_raises_nothing_but_bad_sample(extra, name):
    data = build(("system", "s"), ("user", picture(8, 8), "?"), ("assistant", "x"), id="s").to_dict()
    sample = Sample.model_validate({**data, "meta": {"format": name}, "extra": json.dumps(extra)})
    _, error = attempt(get_format(name).write, sample)
    assert error is None or error.reason in REASONS
