"""The format wds: captioned pictures as they stand in WebDataset archives, byte for byte."""

import json
import tarfile
from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvl_data.dataset import Dataset
from qvl_data.errors import BadSample
from qvl_data.formats import get_format, recognise, wds
from qvl_data.sample import read_sample
from qvl_data.writers import write

from .chats import build, file_of, picture
from .rows import PNG, anything, cells, check_anything, plain, texts

WDS, QVL = get_format("wds"), get_format("qvl")
PLACE = "00000.tar:00000/000000123"
captions = texts.filter(lambda text: bool(text.strip()))
known = st.dictionaries(st.sampled_from(["url", "id", "key", "width", "$bytes", "猫"]), plain, max_size=3)
layouts = st.fixed_dictionaries(
    {"ensure_ascii": st.booleans(), "indent": st.sampled_from([None, 1, 2, 4])},
    optional={"separators": st.sampled_from([(",", ":"), (" , ", " : ")]), "sort_keys": st.booleans()},
)


@st.composite
def rows(draw):
    kind = draw(st.sampled_from([("jpg", "PNG", "0.jpg", "1.webp", "seg.png"), ("mp4", "0.webm", "1.mp4")]))
    row = {"__key__": draw(st.sampled_from(["000123", "a/b/0001", "猫", "a%2Eb", "a%2eb", "a%2Eb/c", "%", "$bytes"]))}
    row |= {
        name: draw(st.sampled_from([PNG, b"", b"\xff\xd8\xff"]) | cells.filter(lambda cell: isinstance(cell, dict)))
        for name in draw(st.sets(st.sampled_from(kind), min_size=1))
    }
    about = draw(st.none() | known)
    if draw(st.booleans()):
        row["txt"] = draw(captions | captions.map(str.encode))
    else:
        about = (about or {}) | {"caption": draw(captions)}
    if about is not None:
        text = json.dumps(about, **draw(layouts))
        row["json"] = draw(st.sampled_from([about, text, text.encode()]))
    elif draw(st.booleans()):
        row["json"] = draw(st.sampled_from([[1], b"[1]"]))
    row |= {"bmp": None} if draw(st.booleans()) else {}
    return row | draw(st.dictionaries(st.sampled_from(["cls", "npy", "info"]), st.binary(max_size=4), max_size=2))


@settings(max_examples=150, deadline=None)
@given(rows())
def test_round_trip(row):
    sample = WDS.read(row, PLACE)
    assert WDS.write(sample) == row
    assert WDS.write(read_sample(QVL.write(sample))) == row
    assert sample.id == {"a%2Eb": "a.b"}.get(row["__key__"], row["__key__"])
    assert type(recognise(row, PLACE)) is wds.WebDataset


@settings(max_examples=150, deadline=None)
@given(anything(("__key__", "jpg", "mp4", "txt", "json", "cls")))
def test_anything_else_is_a_bad_sample(row):
    check_anything(WDS, row, PLACE)


def test_a_row_of_cc12m():
    about = {"key": "000000123", "caption": "a cat on a sofa", "url": "http://host/a.jpg", "id": 7}
    row = {
        "__key__": "000000123",
        "jpg": PNG,
        "txt": b"a cat on a sofa\n",
        "json": json.dumps(about, indent=4).encode(),
    }
    sample = WDS.read(row, PLACE)
    assert (sample.task, sample.id) == ("t2i", "000000123")
    assert WDS.read(row, "data/" + PLACE).meta.locator == PLACE
    assert [(turn.role, turn.text) for turn in sample.messages] == [("user", "a cat on a sofa\n"), ("assistant", "")]
    assert sample.messages[1].parts[0].media == 0
    assert (sample.media[0].bytes, sample.media[0].origin) == (PNG, "000000123.jpg")
    assert json.loads(sample.extra)["fields"]["url"] == "http://host/a.jpg"


def test_a_video_is_described():
    sample = WDS.read({"__key__": "a", "mp4": b"...", "txt": b"A cat runs."}, PLACE)
    assert (sample.task, sample.media[0].kind, sample.messages[1].text) == ("chat", "video", "A cat runs.")


@pytest.mark.parametrize(
    ("row", "reason", "sentence"),
    [
        ({"jpg": PNG, "txt": b"x"}, "wds", 'expected an object with a text "__key__"'),
        ({"__key__": "a", "txt": b"x"}, "wds", "holds neither picture nor video"),
        ({"__key__": "a", "jpg": PNG, "mp4": b"", "txt": b"x"}, "wds", "holds pictures and videos"),
        ({"__key__": "a", "jpg": None, "txt": b"x"}, "wds", "holds neither picture nor video"),
        ({"__key__": "a", "jpg": {"bytes": None, "path": None}, "txt": b"x"}, "media_value", "jpg holds neither bytes"),
        ({"__key__": "a", "jpg": {"url": "a.jpg"}, "txt": b"x"}, "media_value", "jpg is an object with keys url"),
        ({"__key__": "a", "jpg": PNG, "txt": None}, "no_caption", 'no caption; add a member "txt"'),
        ({"__key__": "a", "jpg": PNG}, "no_caption", 'no caption; add a member "txt"'),
        ({"__key__": "a", "jpg": PNG, "txt": b" \n"}, "no_caption", "no caption"),
        ({"__key__": "a", "jpg": PNG, "json": b'{"caption": null}'}, "no_caption", "no caption"),
        ({"__key__": "a", "jpg": PNG, "txt": b"\xff"}, "wds", "the caption is no UTF-8 (byte 1)"),
        (
            {"__key__": "a", "jpg": PNG, "json": b'{"caption": "x", "caption": "y"}'},
            "json",
            'key "caption" appears twice',
        ),
        ({"__key__": "a", "jpg": PNG, "json": b'{"caption": NaN}'}, "json", "NaN is no JSON number"),
        ({"__key__": "a", "jpg": "a.jpg", "txt": b"x"}, "media_value", '"jpg" is str, not the bytes of a file'),
    ],
)
def test_refusals(row, reason, sentence):
    with pytest.raises(BadSample) as caught:
        WDS.read(row, PLACE)
    assert caught.value.reason == reason
    assert sentence in str(caught.value)
    assert str(caught.value).startswith(f"{PLACE}: ")


def test_what_it_cannot_say_is_refused():
    with pytest.raises(BadSample, match="wds cannot say a conversation"):
        WDS.write(build(("user", "a"), ("assistant", "b")))
    drawn = get_format("edit").read({"target_image": "a.png", "instruction": "x"}, "")
    with pytest.raises(BadSample, match="that is not embedded"):
        WDS.write(drawn)


def test_another_format_goes_in_under_a_clean_key():
    drawn = get_format("edit").read({"id": "a/b.c", "target_image": {"bytes": PNG}, "instruction": "x", "more": 1}, "")
    assert WDS.write(drawn) == {"__key__": "a%2Fb%2Ec", "png": PNG, "txt": b"x", "json": b'{"more": 1}'}


@pytest.mark.parametrize("identity", ["a.b", "a/b.c", "50%", "猫.1", "a%2Eb", "plain"])
def test_an_id_comes_back_from_its_key(identity, tmp_path):
    row = {"id": identity, "target_image": {"bytes": PNG}, "instruction": "x"}
    write([get_format("edit").read(row, "")], tmp_path / "a.tar", "wds")
    (sample,) = Dataset(tmp_path / "a.tar")
    assert sample.id == identity
    write([sample], tmp_path / "again.tar", "wds")
    assert (tmp_path / "again.tar").read_bytes() == (tmp_path / "a.tar").read_bytes()


def test_an_archive_is_read(tmp_path):
    with tarfile.open(tmp_path / "00000.tar", "w") as archive:
        for number in range(3):
            for ending, content in (
                ("jpg", file_of(picture(16, 12, number), "JPEG")),
                ("txt", f"고양이 {number}".encode()),
                ("json", json.dumps({"url": f"http://host/{number}"}).encode()),
            ):
                member = tarfile.TarInfo(f"00000/{number:09d}.{ending}")
                member.size = len(content)
                archive.addfile(member, BytesIO(content))
    data = Dataset(tmp_path / "00000.tar")
    assert [sample.messages[0].text for sample in data] == ["고양이 0", "고양이 1", "고양이 2"]
    assert data[1].id == "00000/000000001"
    assert data[2].opener.open(data[2].media[0]).size == (16, 12)


def cc12m(number):
    picture_of = file_of(picture(16, 12, number), "JPEG")
    about = json.dumps({"url": f"http://host/{number}", "width": 16}).encode()
    return {"__key__": f"00000/{number:09d}", "jpg": picture_of, "txt": f"고양이 {number}".encode(), "json": about}


def test_an_archive_is_written_and_read_as_it_was(tmp_path):
    given = [cc12m(number) for number in range(3)]
    samples = [WDS.read(row, PLACE) for row in given]
    for name in ("a.tar", "again.tar"):
        write(samples, tmp_path / name, "wds")
    read = Dataset(tmp_path / "a.tar")
    assert (read.rows.format, [read.rows[index] for index in range(3)]) == ("wds", given)
    write(read, tmp_path / "b.parquet")
    write(Dataset(tmp_path / "b.parquet"), tmp_path / "c.tar", "wds")
    assert (
        (tmp_path / "a.tar").read_bytes() == (tmp_path / "again.tar").read_bytes() == (tmp_path / "c.tar").read_bytes()
    )


def test_files_and_videos_go_into_the_archive(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "a.mp4").write_bytes(b"film")
    drawn = {"target_image": "a.png", "instruction": "a cat"}
    told = {"video": "a.mp4", "conversations": [{"from": "human", "value": "<video>"}, {"from": "gpt", "value": "hop"}]}
    for name, row in (("drawn", drawn), ("told", told)):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row), encoding="utf-8")
    write([Dataset(tmp_path / "drawn.jsonl")[0], Dataset(tmp_path / "told.jsonl")[0]], tmp_path / "a.tar", "wds")
    first, second = (Dataset(tmp_path / "a.tar").rows[index] for index in (0, 1))
    assert (first["png"], first["txt"], second["mp4"], second["txt"]) == (PNG, b"a cat", b"film", b"hop")


@pytest.mark.parametrize(
    ("keys", "reason", "sentence"),
    [
        (["a", "a"], "tar_double", "the key 'a' was written before"),
        (["../a"], "tar_member", "leads out of the archive"),
        (["a.b"], "tar_member", "has a dot in its name"),
    ],
)
def test_keys_that_would_not_be_read_are_not_written(tmp_path, keys, reason, sentence):
    samples = [WDS.read({**cc12m(0), "__key__": key}, PLACE) for key in keys]
    with pytest.raises(BadSample, match=sentence) as caught:
        write(samples, tmp_path / "a.tar", "wds")
    assert caught.value.reason == reason
    assert not list(tmp_path.iterdir())
