import json
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvl_core.errors import BadInput
from qvl_data.dataset import Dataset
from qvl_data.errors import BadSample
from qvl_data.formats import get_format
from qvl_data.media import read_bytes
from qvl_data.sample import Sample, read_sample
from qvl_data.writers import SUFFIXES, open_writer

from .chats import build, file_of, picture, write_png

SOURCES = (
    {"url": "http://x/y"},
    {"bytes": b"\0\xff"},
    {"bytes": b"\xff", "origin": "../x"},
    {"bytes": file_of(picture(3, 2)), "origin": "a/b.png"},
    {"bytes": file_of(picture(3, 2)), "origin": "c:\\d"},
)
texts = st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


@st.composite
def samples(draw):
    media = [
        {
            "kind": "image",
            **draw(st.sampled_from(SOURCES)),
            "mime": draw(st.sampled_from([None, "image/png", "image/jpeg", "x/../y"])),
        }
        for _ in range(draw(st.integers(1, 3)))
    ]
    shown = [{"type": "image", "media": i} for i in range(len(media))]
    said = st.dictionaries(st.sampled_from(["en", "ko"]), st.text(max_size=3), max_size=2)
    edit = {"sources": [0], "target": len(media) - 1, "instruction": draw(said), "inverse": draw(st.none() | said)}
    task = draw(st.sampled_from(["chat", "edit"]))
    return {
        "id": draw(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5)),
        "task": task,
        "media": media,
        "messages": [
            {"role": "user", "parts": shown},
            {"role": "assistant", "parts": [{"type": "text", "text": draw(st.text(max_size=5))}], "train": True},
        ],
        "edit": edit if task == "edit" else None,
        "regions": [{"media": 0, "kind": "box", "xy": [0.5, 1, 2, 3], "label": draw(texts)}],
        "meta": {"dataset": draw(texts), "license": draw(texts)},
        "extra": draw(st.none() | st.dictionaries(st.text(max_size=3), texts, max_size=2).map(json.dumps)),
    }


@settings(max_examples=25, deadline=None)
@given(st.lists(samples(), min_size=1, max_size=3))
def test_what_is_written_is_read_and_written_alike(tmp_path_factory, rows):
    given_samples = [read_sample(row) for row in rows]
    for suffix in SUFFIXES:
        files = [tmp_path_factory.mktemp(f"run{run}") / f"a{suffix}" for run in (0, 1)]
        for file in files:
            write(file, given_samples)
        assert files[0].read_bytes() == files[1].read_bytes()
        for sample, written in zip(Dataset(files[0]), given_samples, strict=True):
            assert without_media(sample) == without_media(written)
            contents = [media.bytes or sample_bytes(sample, media) for media in sample.media]
            assert contents == [media.bytes for media in written.media]


def write(file, given_samples, format="qvl"):
    with open_writer(file, format) as out:
        for sample in given_samples:
            out.write(sample)


def without_media(sample):
    return {key: value for key, value in sample.to_dict().items() if key != "media"}


def sample_bytes(sample, media):
    return (sample.opener.root / media.path).read_bytes() if media.path else None


def test_pictures_go_along(tmp_path):
    write_png(tmp_path / "in/p/1.png", picture(5, 4))
    row = build(("user", picture(2, 2)), ("assistant", "x"), id="a").to_dict()
    row["media"] = [{"kind": "image", "path": "p/1.png"}]
    (tmp_path / "in/a.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    for suffix in SUFFIXES:
        write(tmp_path / f"out/a{suffix}", Dataset(tmp_path / "in/a.jsonl"))
        (sample,) = Dataset(tmp_path / f"out/a{suffix}")
        assert sample.opener.open(sample.media[0]).size == (5, 4)
    assert (tmp_path / "out/p/1.png").is_file()


def test_videos_go_along(tmp_path):
    (tmp_path / "in/clips").mkdir(parents=True)
    (tmp_path / "in/clips/1.mp4").write_bytes(b"film")
    row = {
        "video": "clips/1.mp4",
        "conversations": [{"from": "human", "value": "<video>"}, {"from": "gpt", "value": "x"}],
    }
    (tmp_path / "in/a.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    for suffix in SUFFIXES:
        write(tmp_path / f"out{suffix}/a{suffix}", Dataset(tmp_path / "in/a.jsonl"))
        (sample,) = Dataset(tmp_path / f"out{suffix}/a{suffix}")
        assert read_bytes(sample.media[0], sample.opener.root) == b"film"
    (tmp_path / "in/clips/1.mp4").unlink()
    with pytest.raises(BadSample, match=r"clips/1\.mp4: cannot be opened"):
        write(tmp_path / "none.parquet", Dataset(tmp_path / "in/a.jsonl"))


def test_embedded_pictures_are_laid_under_a_name_that_says_what_they_are(tmp_path):
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    row["images"] = [{"bytes": file_of(picture(5, 4), kind), "path": None} for kind in ("JPEG", "PNG", "WEBP")]
    write(tmp_path / "a.jsonl", [get_format("hf").read(row, "")], "hf")
    (read,) = Dataset(tmp_path / "a.jsonl")
    assert [media.path.rpartition(".")[2] for media in read.media] == ["jpg", "png", "webp"]


def test_parquet_without_nulls_is_read_by_a_fresh_process(tmp_path):
    edit = {"source_image": file_of(picture(5, 4)), "target_image": file_of(picture(6, 4)), "instruction": "x"}
    write(tmp_path / "a.parquet", [get_format("edit").read(edit, "")])
    show = "import sys; from qvl_data.dataset import Dataset; print(Dataset(sys.argv[1])[0].task)"
    read = subprocess.run(
        [sys.executable, "-c", show, str(tmp_path / "a.parquet")], capture_output=True, text=True, check=False
    )
    assert (read.stdout.strip(), read.stderr) == ("edit", "")


def test_a_file_is_there_whole_or_not_at_all(tmp_path):
    sample = build(("user", "x"), ("assistant", "y"))
    lost = Sample.model_validate({**sample.to_dict(), "media": [{"kind": "image", "path": "gone.png"}], "messages": [
        {"role": "user", "parts": [{"type": "image", "media": 0}]}, {"role": "assistant", "parts": []}]})  # fmt: skip
    for suffix in SUFFIXES:
        file = tmp_path / f"a{suffix}"
        file.write_bytes(b"before")
        with pytest.raises(BadSample, match=r"gone\.png"):
            write(file, [sample, lost])
        assert file.read_bytes() == b"before"
    assert len(list(tmp_path.iterdir())) == len(SUFFIXES)


def test_refusals(tmp_path):
    for name, format, words in (
        ("a.txt", "qvl", "unknown kind of file; write .parquet, .tar, .jsonl, .json, or for flat .csv, .tsv"),
        ("a.csv", "qvl", "a .csv file holds flat; for qvl name the file .jsonl"),
        (
            "a.parquet",
            "openai",
            "a .parquet file holds qvl, hf, flat, edit, metaquery, omniedit; for openai name the file",
        ),
        ("a.tar", "openai", "a .tar file holds qvl; for openai"),
        ("a.jsonl", "wds", "wds is written into archives; name the file .tar"),
        ("a.jsonl", "opnai", 'did you mean "openai"'),
    ):
        with pytest.raises(BadInput, match=words):
            write(tmp_path / name, [], format)
    assert not list(tmp_path.iterdir())


def test_a_file_may_hold_nothing(tmp_path):
    for suffix in SUFFIXES:
        write(tmp_path / f"a{suffix}", [])
        with pytest.raises(BadInput, match="holds no samples"):
            Dataset(tmp_path / f"a{suffix}")
    assert pq.read_metadata(tmp_path / "a.parquet").num_rows == 0
