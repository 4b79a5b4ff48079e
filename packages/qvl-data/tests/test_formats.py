"""Round trips: write(read(row)) == row for every row a format reads, and read(write(sample)) says the same."""

import base64
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvl_core.errors import BadInput
from qvl_data.errors import BadSample
from qvl_data.formats import get_format, recognise, register
from qvl_data.sample import Sample, read_sample

from .chats import build, file_of, picture

QVL, OPENAI, QWENVL = get_format("qvl"), get_format("openai"), get_format("qwenvl")
PNG = "data:image/png;base64," + base64.b64encode(file_of(picture(8, 8))).decode()

text = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    st.lists(st.sampled_from(["\\", "<image>", "<video>", "<", "image", ">", "\n", " ", "猫"]), max_size=8).map(
        "".join
    ),
)
path = st.sampled_from(["a.png", "b/c.jpg", "/abs/d.png", "file:///abs/e.png", "http://host/f.png", PNG, "猫 1.webp"])
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["p", "q"]), inner, max_size=2),
    max_leaves=4,
)
unknown = st.dictionaries(st.sampled_from(["source", "quality", "layout", "fields", "schema"]), plain, max_size=2)
identity = st.sampled_from([{}, {"id": "x-1"}, {"id": 17}, {"id": None}, {"id": ""}])


# openai


def openai_part(**fields):
    return st.fixed_dictionaries(fields)


openai_parts = st.one_of(
    openai_part(type=st.sampled_from(["text", "input_text"]), text=text),
    openai_part(text=text),
    st.builds(
        lambda url, more: {"type": "image_url", "image_url": {"url": url, **more}},
        path,
        st.sampled_from([{}, {"detail": "low"}]),
    ),
    openai_part(type=st.just("image_url"), image_url=path),
    openai_part(type=st.just("input_image"), image_url=path, detail=st.just("auto")),
    openai_part(type=st.just("image"), image=path, min_pixels=st.integers(1, 9)),
    openai_part(type=st.just("image"), url=path),
    openai_part(image=path),
    openai_part(type=st.just("video"), video=st.sampled_from(["clip.mp4", "v/clip.webm"])),
    openai_part(type=st.just("video"), video=st.lists(path, min_size=1, max_size=3), fps=st.sampled_from([1, 2.5])),
)
openai_messages = st.one_of(
    st.builds(
        lambda role, content, more: {"role": role, "content": content, **more},
        st.sampled_from(["system", "user", "assistant", "tool"]),
        text | st.lists(openai_parts, max_size=4),
        st.sampled_from([{}, {"name": "ann"}, {"layout": None}]),
    ),
    st.builds(
        lambda content, weight: {"role": "assistant", "content": content, "weight": weight},
        text,
        st.sampled_from([0, 1, 0.5, None]),
    ),
)
openai_rows = st.builds(
    lambda messages, more, name: {"messages": messages, **more, **name},
    st.lists(openai_messages, min_size=1, max_size=4),
    unknown,
    identity,
)


@settings(max_examples=150, deadline=None)
@given(openai_rows)
def test_openai_round_trip(row):
    sample = OPENAI.read(json.loads(json.dumps(row)), "data.jsonl:1")
    assert OPENAI.write(sample) == row
    assert OPENAI.write(read_sample(QVL.write(sample))) == row  # also after a stay in qvl
    assert OPENAI.matches(row)


def test_openai_becomes_typed_parts():
    sample = OPENAI.read(
        {
            "messages": [
                {"role": "system", "content": " Be brief. "},
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": "a.png"}},
                        {"type": "text", "text": "and"},
                        {"type": "image", "image": PNG},
                        {"type": "video", "video": ["f1.png", "f2.png"], "fps": 2},
                    ],
                },
                {"role": "assistant", "content": "x", "weight": 0},
                {"role": "assistant", "content": "y"},
            ]
        },
        "data.jsonl:4",
    )
    assert sample.messages[0].text == " Be brief. "
    assert [(part.type, part.media) for part in sample.messages[1].parts] == [
        ("image", 0),
        ("text", None),
        ("image", 1),
        ("video", 4),
    ]
    assert sample.media[0].path == "a.png"
    assert sample.media[1].url == PNG
    assert sample.media[4].video.frames == (2, 3)
    assert sample.media[4].video.fps == 2
    assert [message.trained for message in sample.messages] == [False, False, False, True]
    assert (sample.meta.format, sample.meta.locator, sample.task) == ("openai", "data.jsonl:4", "chat")
    assert sample.id.startswith("sha256:")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ([], 'expected an object with a list "messages"'),
        ({"messages": "x"}, 'expected an object with a list "messages"'),
        ({"messages": ["x"]}, r"messages\[0\] is no object"),
        ({"messages": [{"role": "bot", "content": "x"}]}, "\"role\" is 'bot'; use one of system, user"),
        ({"messages": [{"role": "user"}]}, '"content" is neither a text nor a list of parts'),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "part type 'audio' is unknown"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            r"no path or address in this image part; .* \(--from-format hf\)",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "image", "image": ["a"]}]}]}, "only videos are lists"),
        ({"messages": [{"role": "user", "content": [{"type": "video", "video": []}]}]}, "frames of a video"),
        (
            {"messages": [{"role": "user", "content": [{"type": "video", "video": "a", "fps": 0}]}]},
            "fps 0 is no number",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "image", "image": "../a"}]}]}, "leaves its folder"),
        ({"messages": [{"role": "assistant", "content": "x", "weight": -1}]}, "weight -1 is no number from 0 up"),
        ({"messages": [{"role": "assistant", "content": "", "tool_calls": [1]}]}, '"tool_calls" holds a call without'),
        (
            {"messages": [{"role": "assistant", "content": "x", "reasoning_content": 1}]},
            '"reasoning_content" is no text',
        ),
        ({"messages": [{"role": "assistant", "content": "x", "thinking": "y"}]}, 'rename it to "reasoning_content"'),
        ({"messages": [{"role": "user", "content": "x"}], "tools": [1]}, '"tools" is no list of tools'),
        (
            {"messages": [{"role": "user", "content": "x"}], "functions": [1]},
            '"functions" is not read; rename it to "tools"',
        ),
        ({"message": [{"role": "user", "content": "x"}]}, 'a list "messages"; rename "message" to it'),
        ({"messages": []}, "task `chat` needs messages"),
    ],
)
def test_openai_refuses(row, words):
    with pytest.raises(BadSample, match=words) as caught:
        OPENAI.read(row, "data.jsonl:9")
    assert str(caught.value).startswith("data.jsonl:9: ")


def test_embedded_pictures_become_data_urls():
    row = OPENAI.write(build(("user", picture(8, 8), "?"), ("assistant", "x"), id="s"))
    assert row == {
        "id": "s",
        "messages": [
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": PNG}}, {"type": "text", "text": "?"}],
            },
            {"role": "assistant", "content": "x"},
        ],
    }


# qwenvl


@st.composite
def qwenvl_rows(draw):
    counts = {"image": 0, "video": 0}

    def value(role):
        words = draw(st.lists(text.map(lambda t: t.replace("<image>", "").replace("<video>", "")), max_size=3))
        if role not in ("gpt", "assistant"):
            for kind in draw(st.lists(st.sampled_from(["image", "video"]), max_size=2)):
                counts[kind] += 1
                words.insert(draw(st.integers(0, len(words))), "\0" + kind)
        elif draw(st.booleans()):
            words.append(r"\<image>")
        made = ""
        for word in words:  # a tag after an odd run of backslashes would be text
            if word.startswith("\0"):
                made += "\\" * ((len(made) - len(made.rstrip("\\"))) % 2) + f"<{word[1:]}>"
            elif word == r"\<image>":
                made += "\\" * ((len(made) - len(made.rstrip("\\"))) % 2) + word
            else:
                made += word
        return made

    roles = draw(
        st.lists(
            st.sampled_from(["human", "gpt", "system", "user", "assistant", "tool", "observation"]),
            min_size=1,
            max_size=4,
        )
    )
    more = st.sampled_from([{}, {"loss": True}])
    turns = [{"from": role, "value": value(role), **draw(more)} for role in roles]
    row = {"conversations": turns, **draw(unknown), **draw(identity)}
    for kind, count in counts.items():
        paths = [draw(path) if kind == "image" else "clip.mp4" for _ in range(count)]
        if count == 1 and draw(st.booleans()):
            row[kind] = paths[0]
        elif count:
            row[kind] = paths
        else:
            row |= draw(st.sampled_from([{}, {kind: []}, {kind: None}]))
    return row


def is_consistent(row):
    """Whether no tag was formed by accident where pieces of text met."""
    try:
        QWENVL.read(row, "")
    except BadSample as error:
        return error.reason not in ("media_count", "media_tag_in_answer")
    return True


@settings(max_examples=200, deadline=None)
@given(qwenvl_rows().filter(is_consistent))
def test_qwenvl_round_trip(row):
    sample = QWENVL.read(json.loads(json.dumps(row)), "data.jsonl:1")
    assert QWENVL.write(sample) == row
    assert QWENVL.write(read_sample(QVL.write(sample))) == row
    assert QWENVL.matches(row)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["user", "system", "assistant"]), st.lists(text | st.none(), max_size=4)),
        min_size=1,
        max_size=3,
    )
)
def test_any_text_survives_qwenvl(turns):
    """Literal tags and backslashes come back as the text they were."""
    media, messages = [], []
    for role, values in turns:
        parts = []
        for value in values:
            if value is None and role != "assistant":
                parts.append({"type": "image", "media": len(media)})
                media.append({"kind": "image", "path": f"{len(media)}.png"})
            elif value and not (parts and parts[-1]["type"] == "text"):
                parts.append({"type": "text", "text": value})
        messages.append({"role": role, "parts": parts or [{"type": "text", "text": ""}]})
    sample = Sample.model_validate({"task": "chat", "media": media, "messages": messages, "id": "x"})
    again = QWENVL.read(QWENVL.write(sample), "")
    assert again.messages == sample.messages
    assert again.media == sample.media


def test_qwenvl_becomes_typed_parts():
    sample = QWENVL.read(
        {
            "id": 5,
            "image": ["a.png", "b.png"],
            "video": "c.mp4",
            "conversations": [
                {"from": "system", "value": "Be brief."},
                {"from": "human", "value": "<image>\nWhat <video>is <image>? "},
                {"from": "gpt", "value": r" 7 \<image>"},
            ],
        },
        "data.json:2",
    )
    assert sample.id == "5"
    assert [message.role for message in sample.messages] == ["system", "user", "assistant"]
    assert [part.text or (part.type, sample.media[part.media].path) for part in sample.messages[1].parts] == [
        ("image", "a.png"),
        "\nWhat ",
        ("video", "c.mp4"),
        "is ",
        ("image", "b.png"),
        "? ",
    ]
    assert sample.messages[2].text == " 7 <image>"


def turns(*values):
    names = ("human", "gpt")
    return [{"from": names[i % 2], "value": value} for i, value in enumerate(values)]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (
            {"image": "a.png", "conversations": turns("<image><image>", "x")},
            '2 <image> tags but 1 image; add the missing path to "image" or remove a tag.',
        ),
        (
            {"conversations": turns("<image>", "x")},
            '1 <image> tag but 0 images; add the missing path to "image" or remove a tag.',
        ),
        (
            {"image": "a.png", "conversations": turns("what?", "x")},
            '0 <image> tags but 1 image; add the missing <image> to a human turn or remove a path from "image".',
        ),
        (
            {"video": ["a", "b"], "conversations": turns("<video>", "x")},
            '1 <video> tag but 2 videos; add the missing <video> to a human turn or remove a path from "video".',
        ),
        (
            {"conversations": turns("what?", "<image>")},
            "conversations[1] is an answer and holds <image> (media_tag_in_answer); "
            r"remove it, or write \<image> for the text.",
        ),
        (
            {"image": 5, "conversations": turns("what?", "x")},
            '"image" is int; expected a path, an address, or the image itself ({bytes, path}).',
        ),
        (
            {"image": [5], "conversations": turns("<image>", "x")},
            '"image"[0] is int; expected a path, an address, or the image itself ({bytes, path}).',
        ),
        (
            {"image": "a.png", "images": ["a.png"], "conversations": turns("<image>", "x")},
            '"image" and "images" are both given; keep one.',
        ),
        (
            {"conversations": [{"from": "bot", "value": "x"}]},
            "conversations[0]: \"from\" is 'bot'; use one of human, gpt, system, tool.",
        ),
        ({"conversations": [{"from": "gpt"}]}, 'conversations[0]: "value" is no text.'),
        ({"conversations": ["x"]}, 'conversations[0] is no object with "from" and "value".'),
        ({"conversation": []}, 'expected an object with a list "conversations"; rename "conversation" to it.'),
        ([], 'expected an object with a list "conversations".'),
        (
            {"image": "a/../../b.png", "conversations": turns("<image>", "x")},
            "path 'a/../../b.png' leaves its folder through ..; move the file below the media root, or set"
            " --media-root to a folder above it, or write it absolute and allow its folder with --allow-root.",
        ),
    ],
)
def test_qwenvl_refuses_with_place_and_fix(row, sentence):
    with pytest.raises(BadSample) as caught:
        QWENVL.read(row, "data.jsonl:1204")
    assert str(caught.value) == f"data.jsonl:1204: {sentence}"


@pytest.mark.parametrize("format", [OPENAI, QWENVL])
def test_what_a_format_cannot_say_is_refused(format):
    regions = read_sample(
        {
            "task": "chat",
            "media": [{"kind": "image", "path": "a.png"}],
            "regions": [{"media": 0, "kind": "point", "xy": [1, 2]}],
            "messages": [
                {"role": "user", "parts": [{"type": "image", "media": 0}, {"type": "regions", "regions": [0]}]}
            ],
        }
    )
    with pytest.raises(BadSample, match=r"keep (it|this sample) as qvl") as caught:
        format.write(regions)
    assert caught.value.reason == "not_expressible"
    untrained = build(("user", "a"), ("assistant", "b"))
    data = untrained.to_dict()
    data["messages"][1]["train"] = False
    if format is QWENVL:
        with pytest.raises(BadSample, match="which turns are learned from"):
            format.write(read_sample(data))
        with pytest.raises(BadSample, match="an embedded picture"):
            format.write(build(("user", picture()), ("assistant", "b")))
    else:
        assert format.write(read_sample(data))["messages"][1]["weight"] == 0


# the registry


def test_unknown_format():
    with pytest.raises(BadInput, match=r'unknown format "qwenv"; did you mean "qwenvl"\?'):
        get_format("qwenv")
    with pytest.raises(BadInput, match=r"known are .*qvl, qwenvl"):
        get_format("csv")


def test_a_plugin_adds_a_format():
    from qvl_data import formats

    @register("pairs")
    class Pairs:
        def matches(self, row):
            return isinstance(row, list) and len(row) == 2

        def read(self, row, place):
            return build(("user", row[0]), ("assistant", row[1]))

        def write(self, sample):
            return [message.text for message in sample.messages]

    try:
        assert recognise(["a", "b"], "").read(["a", "b"], "").messages[1].text == "b"
        assert get_format("pairs").write(build(("user", "a"), ("assistant", "b"))) == ["a", "b"]
    finally:
        del formats._formats["pairs"]


def test_the_locator_is_the_name_and_line_of_the_original():
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    sample = OPENAI.read(row, "/home/ann/data/chats.jsonl:12")
    assert sample.meta.locator == "chats.jsonl:12"  # no folder of the machine travels along
    again = QVL.read(QVL.write(sample), "other.jsonl:3")
    assert again.meta.locator == "chats.jsonl:12"


@pytest.mark.parametrize(
    ("name", "row", "key"),
    [
        ("openai", {"messages": [{"role": "user", "content": "<image>What?"}], "images": ["a.png"]}, '"images"'),
        ("openai", {"messages": [{"role": "user", "content": "What?"}], "image": "a.png"}, '"image"'),
        ("qwenvl", {"conversations": [{"from": "human", "value": "What?"}], "audios": ["a.wav"]}, '"audios"'),
        ("openai", {"messages": [{"role": "user", "content": "What?", "image": "a.png"}]}, '"image"'),
    ],
)
def test_what_would_be_lost_in_silence_is_refused(name, row, key):
    with pytest.raises(BadSample, match=f"{key} is not read"):
        get_format(name).read(row, "data.jsonl:7")


@pytest.mark.parametrize("task", ["t2i", "interleaved"])
@pytest.mark.parametrize("name", ["openai", "hf", "sharegpt", "qwenvl", "llava", "kodoc", "alpaca"])
def test_a_task_that_would_be_read_as_a_chat_is_not_written(name, task):
    data = build(("user", "a cat"), ("assistant", "x")).to_dict() | {"task": task}
    data["media"] = [{"kind": "image", "path": "a.png"}]
    data["messages"][1]["parts"] = [{"type": "image", "media": 0}]
    with pytest.raises(BadSample, match=f"{name} cannot say the task {task}; keep it as qvl"):
        get_format(name).write(read_sample(data))


def test_what_would_be_refused_is_not_written():
    picture = {"kind": "image", "bytes": "iVBORw0KGgo="}
    edit = {"sources": [0], "target": 1, "instruction": {"en": ""}}
    with pytest.raises(BadSample, match="metaquery cannot say an edit without one English instruction"):
        get_format("metaquery").write(read_sample({"id": "x", "task": "edit", "media": [picture] * 2, "edit": edit}))
    drawn = build(("user", " "), ("assistant", "x")).to_dict() | {"task": "t2i", "media": [picture]}
    drawn["messages"][1]["parts"] = [{"type": "image", "media": 0}]
    with pytest.raises(BadSample, match="wds cannot say an empty caption"):
        get_format("wds").write(read_sample(drawn))
