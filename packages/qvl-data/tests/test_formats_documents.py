"""The formats mmc4, obelics and omnicorpus: web documents, in only."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvl_data.dataset import Dataset
from qvl_data.errors import REASONS, BadSample
from qvl_data.formats import get_format, recognise

from .chats import build, file_of, picture
from .rows import PNG, anything, cells, read_or_refusal, texts

PLACE = "shard_0.jsonl:3"
NAMES = ("mmc4", "obelics", "omnicorpus")
MMC4 = {
    "url": "http://host/page",
    "text_list": [" A cat.", "It sleeps. ", "Quietly."],
    "image_info": [
        {"raw_url": "http://host/b.jpg", "image_name": "b.jpg", "matched_text_index": 2, "matched_sim": 0.3},
        {"raw_url": "http://host/a.jpg", "image_name": "a.jpg", "matched_text_index": 0},
        {"raw_url": "http://host/c.jpg", "image_name": "c.jpg", "matched_text_index": 2},
    ],
    "similarity_matrix": [[0.1, 0.2, 0.3]],
    "could_have_url_duplicate": 0,
}
OBELICS = {
    "images": ["http://host/a.jpg", None, None, "b.png"],
    "texts": [None, "A cat.\n\nIt sleeps.", " ", None],
    "metadata": "[null]",
    "general_metadata": json.dumps({"url": "http://host/page"}),
}
OMNI = {
    "images": ["http://host/a.jpg", None, "http://host/b.jpg"],
    "texts": [None, "고양이", "잔다"],
    "metadata": [{"width": 3}, None, {"width": 4}],
    "general_metadata": {"url": "http://host/page", "domain": ["host"]},
}


def shown(sample):
    (message,) = sample.messages
    assert (sample.task, message.role) == ("interleaved", "assistant")
    return [part.text if part.media is None else sample.media[part.media].url for part in message.parts]


def test_mmc4_puts_pictures_before_their_sentences():
    sample = get_format("mmc4").read(MMC4, PLACE)
    assert shown(sample) == [
        "http://host/a.jpg",
        " A cat. ",
        "It sleeps.  ",
        "http://host/b.jpg",
        "http://host/c.jpg",
        "Quietly.",
    ]
    assert sample.meta.url == "http://host/page"
    assert json.loads(sample.extra)["fields"]["image_info"] == MMC4["image_info"]


def test_mmc4_takes_downloaded_pictures_by_map(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.jpg").write_bytes(file_of(picture(8, 8), "JPEG"))
    (tmp_path / "shard.jsonl").write_text(json.dumps(MMC4), "utf-8")
    (sample,) = Dataset(tmp_path / "shard.jsonl", format="mmc4", columns={"image": "image_name"})
    assert [media.path for media in sample.media] == ["a.jpg", "b.jpg", "c.jpg"]
    assert sample.opener.open(sample.media[0]).size == (8, 8)


def test_obelics_is_in_reading_order():
    sample = get_format("obelics").read({**OBELICS, "images": ["http://host/a.jpg", None, None, {"bytes": PNG}]}, PLACE)
    assert shown(sample) == ["http://host/a.jpg", "A cat.\n\nIt sleeps.", " ", None]
    assert sample.media[1].bytes == PNG
    assert sample.meta.url == "http://host/page"


def test_omnicorpus_is_in_reading_order():
    sample = get_format("omnicorpus").read(OMNI, PLACE)
    assert shown(sample) == ["http://host/a.jpg", "고양이", "http://host/b.jpg", "잔다"]
    assert sample.meta.url == "http://host/page"


@pytest.mark.parametrize(
    ("name", "row", "reason", "sentence"),
    [
        ("mmc4", [], "mmc4", 'expected an object with the lists "text_list"'),
        ("mmc4", MMC4 | {"image_info": []}, "mmc4", "a document without pictures"),
        ("mmc4", MMC4 | {"text_list": [3]}, "mmc4", '"text_list" holds something that is no text'),
        ("mmc4", MMC4 | {"image_info": [{"matched_text_index": 3}]}, "mmc4", "3 is none of the 3 sentences"),
        ("mmc4", MMC4 | {"image_info": [{"matched_text_index": True}]}, "mmc4", "True is none of the 3 sentences"),
        ("mmc4", MMC4 | {"image_info": [{"matched_text_index": 0}]}, "column", 'has no "raw_url"'),
        ("obelics", {"images": []}, "obelics", 'expected the lists "images" and "texts"'),
        ("obelics", OBELICS | {"texts": ["x"]}, "media_count", "4 images and 1 texts, whose order cannot be told"),
        ("obelics", {"images": ["a"], "texts": ["b"]}, "obelics", "are both there; give one of them"),
        ("obelics", {"images": [None], "texts": [None]}, "obelics", "are both null"),
        ("obelics", {"images": [None], "texts": [3]}, "obelics", "texts[0] is int"),
        ("omnicorpus", {"images": [None], "texts": ["x"]}, "omnicorpus", "a document without pictures"),
        ("omnicorpus", {"images": [3], "texts": ["x"]}, "media_value", "the picture at 1 is int"),
    ],
)
def test_refusals(name, row, reason, sentence):
    with pytest.raises(BadSample) as caught:
        get_format(name).read(row, PLACE)
    assert caught.value.reason == reason
    assert sentence in str(caught.value)
    assert str(caught.value).startswith(f"{PLACE}: ")


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(NAMES),
    anything(("text_list", "image_info", "images", "texts", "metadata", "general_metadata", "url", "id"))
    | st.fixed_dictionaries({"images": st.lists(cells | st.none()), "texts": st.lists(texts | st.none())}),
)
def test_anything_else_is_a_bad_sample(name, row):
    found = read_or_refusal(get_format(name), row, PLACE)
    if isinstance(found, BadSample):
        assert found.reason in REASONS
    else:
        assert found.task == "interleaved"


def test_they_are_only_read():
    for name in NAMES:
        with pytest.raises(BadSample, match=f"{name} cannot say anything, since it is only read") as caught:
            get_format(name).write(build(("user", "a"), ("assistant", "b")))
        assert caught.value.reason == "not_expressible"


def test_each_is_recognised():
    for name, row in {"mmc4": MMC4, "obelics": OBELICS, "omnicorpus": OMNI}.items():
        assert type(recognise(row, PLACE)) is type(get_format(name))
    turns = {"images": [{"bytes": PNG}], "texts": [{"user": "What?", "assistant": "A cat."}]}  # The Cauldron
    assert not any(get_format(name).matches(turns) for name in NAMES)
