import json
import pickle
import random
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvl_core.errors import BadInput
from qvl_data import dataset, parquet, row_groups
from qvl_data.convert import write_samples
from qvl_data.dataset import SEARCHED, Dataset
from qvl_data.errors import BadSample, placed
from qvl_data.formats import recognise
from qvl_data.sample import Sample, read_sample
from qvl_data.walk import open_splits
from qvl_data.writers import open_writer

from .chats import build, picture, write_png

ROW = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


def chats(count, **fields):
    return [
        build(("user", picture(8, 8, i), f"{i}?"), ("assistant", str(i)), id=str(i), **fields) for i in range(count)
    ]


def write_lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# finding the file


def test_a_folder_holds_splits(tmp_path):
    write_lines(tmp_path / "train.jsonl", ROW)
    (tmp_path / "validation.json").write_text(json.dumps([ROW, ROW]))
    write_samples(chats(3), tmp_path / "test.parquet")
    (tmp_path / "notes.txt").write_text("x")
    assert [len(Dataset(tmp_path, split)) for split in ("train", "validation", "test")] == [1, 2, 3]
    with pytest.raises(
        BadInput, match='no split "tain"; did you mean "train"? available: test, train, validation.'.replace("?", r"\?")
    ):
        Dataset(tmp_path, "tain")
    with pytest.raises(BadInput, match=r"available: test, train, validation; name one by --split, or as .*\[test\]"):
        Dataset(tmp_path, "nothing")
    with pytest.raises(BadInput, match=r"which split\? available: test, train, validation"):
        Dataset(tmp_path)
    with pytest.raises(BadInput, match="a file has no splits; remove split='train'"):
        Dataset(tmp_path / "train.jsonl", "train")
    write_lines(tmp_path / "test.jsonl", ROW)
    with pytest.raises(BadInput, match=r"split 'test' is there twice \(test\.jsonl, test\.parquet\)"):
        Dataset(tmp_path, "test")


def test_a_folder_of_data_sets_is_not_one(tmp_path):
    for name in ("a", "b", "c", "d"):
        (tmp_path / "meta" / name).mkdir(parents=True)
        write_lines(tmp_path / "meta" / name / "data.jsonl", ROW)
    with pytest.raises(BadInput, match="holds no data; name one of its folders that do: a, b, c and 1 more"):
        open_splits(tmp_path / "meta")


def test_missing_files(tmp_path):
    write_lines(tmp_path / "train.jsonl", ROW)
    with pytest.raises(BadInput, match=r"trian\.jsonl: no such file or folder; did you mean \".*train\.jsonl\"\."):
        Dataset(tmp_path / "trian.jsonl")
    with pytest.raises(BadInput, match=r"gone/x\.jsonl: no such file or folder\.$"):
        Dataset(tmp_path / "gone/x.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=r"available: none \(no \.parquet, \.jsonl, \.json, .* file\)"):
        Dataset(tmp_path / "empty", "train")
    (tmp_path / "data.txt").write_text("a,b\n")
    with pytest.raises(BadInput, match=r"unknown kind of file; use one of \.parquet, \.jsonl, \.json"):
        Dataset(tmp_path / "data.txt")
    (tmp_path / "none.jsonl").write_text("\n \n")
    with pytest.raises(BadInput, match="holds no samples"):
        Dataset(tmp_path / "none.jsonl")
    with pytest.raises(BadInput, match="nowhere: the media root is no folder"):
        Dataset(tmp_path / "train.jsonl", media_root=tmp_path / "nowhere")


# samples by number


def test_numbers_behave_like_a_list(tmp_path):
    write_samples(chats(5), tmp_path / "a.parquet")
    data = Dataset(tmp_path / "a.parquet")
    assert [sample.id for sample in data] == ["0", "1", "2", "3", "4"]
    assert data[-1].id == "4"
    for outside in (5, -6):
        with pytest.raises(IndexError):
            data[outside]


def test_formats_are_recognised_or_named(tmp_path):
    file = write_lines(tmp_path / "a.jsonl", ROW, {"conversations": []})
    assert Dataset(file)[0].meta.format == "openai"
    with pytest.raises(BadSample, match=r"a\.jsonl:2: expected an object with a list \"messages\""):
        Dataset(file)[1]
    with pytest.raises(BadSample, match=r"a\.jsonl:1: expected an object with a list \"conversations\""):
        Dataset(file, format="qwenvl")[0]
    with pytest.raises(BadInput, match='unknown format "openia"; did you mean "openai"'):
        Dataset(file, format="openia")[0]


def test_a_broken_first_line_is_only_a_broken_line(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"messages": [\n{"question": "x"}\n' + json.dumps(ROW) + "\n")
    data = Dataset(file)
    assert data[2].meta.format == "openai"
    with pytest.raises(BadSample, match=r"a\.jsonl:1: not valid JSON"):
        data[0]
    with pytest.raises(BadSample, match=r"a\.jsonl:2: expected an object with a list \"messages\""):
        data[1]


def test_a_file_of_no_known_format_is_bad_as_a_whole(tmp_path):
    only = write_lines(tmp_path / "b.jsonl", {"question": "x"})
    late = write_lines(tmp_path / "c.jsonl", *[{"question": "x"}] * SEARCHED, ROW)
    for file, searched in ((only, "its only sample"), (late, "its first 100 samples")):
        with pytest.raises(BadInput, match=f"cannot be told from {searched}: .*:1: no known format") as caught:
            Dataset(file)[0]
        assert not isinstance(caught.value, BadSample)
    assert Dataset(late, format="openai")[SEARCHED].meta.format == "openai"


def test_an_unknown_format_is_looked_for_once(tmp_path, monkeypatch):
    data = Dataset(write_lines(tmp_path / "a.jsonl", *[{"question": "x"}] * (SEARCHED + 1)))
    asked = []
    monkeypatch.setattr(dataset, "recognise", lambda row, place: asked.append(place) or recognise(row, place))
    for _ in range(3):
        with pytest.raises(BadInput, match="cannot be told from its first 100 samples"):
            data[0]
    assert len(asked) == SEARCHED


def test_media_lie_beside_the_file_or_under_the_media_root(tmp_path):
    row = {"messages": [{"role": "user", "content": [{"type": "image", "image": "p/a.png"}]}, ROW["messages"][1]]}
    file = write_lines(tmp_path / "data/a.jsonl", row) if (tmp_path / "data").mkdir() is None else None
    write_png(tmp_path / "data/p/a.png", picture(8, 8))
    write_png(tmp_path / "photos/p/a.png", picture(9, 9))
    for options, size in (({}, (8, 8)), ({"media_root": tmp_path / "photos"}, (9, 9))):
        sample = Dataset(file, **options)[0]
        assert sample.opener.open(sample.media[0]).size == size
    absolute = json.loads(json.dumps(row).replace("p/a.png", (tmp_path / "photos/p/a.png").as_posix()))
    write_lines(file, absolute)
    sample = Dataset(file)[0]
    with pytest.raises(
        BadSample, match=r"lies outside the media root; allow its folder with --allow-root \(data\.allow_root\)"
    ):
        sample.opener.open(sample.media[0])
    sample = Dataset(file, allow_root=[tmp_path / "photos"])[0]
    assert sample.opener.open(sample.media[0]).size == (9, 9)


def test_datasets_are_picklable(tmp_path):
    write_samples(chats(150), tmp_path / "a.parquet")
    for file in (tmp_path / "a.parquet", write_lines(tmp_path / "a.jsonl", ROW)):
        data = Dataset(file)
        first = data[0]
        small = pickle.dumps(data)
        assert len(small) < 5000  # no cache, no samples
        assert pickle.loads(small)[0] == first
    code = "import pickle, sys; s = pickle.load(sys.stdin.buffer)[140]; print(s.id, s.opener.open(s.media[0]).size)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=pickle.dumps(Dataset(tmp_path / "a.parquet")),
        capture_output=True,
        check=True,
    )
    assert done.stdout.split() == [b"140", b"(8,", b"8)"]


# Parquet

texts = st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
numbers = st.none() | st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def samples(draw):
    images = [
        {
            "kind": "image",
            **draw(st.sampled_from([{"path": "a.png"}, {"url": "http://x/y"}, {"bytes": b"\0\xff"}])),
            "mime": draw(texts),
            "origin": draw(texts),
            "width": draw(st.none() | st.integers(1, 9)),
        }
        for _ in range(draw(st.integers(2, 3)))
    ]
    video = {"kind": "video", "path": "v.mp4", "video": {"fps": draw(st.sampled_from([None, 2.0])), "start": 0.5}}
    frames = {"kind": "video", "video": {"fps": 1.0, "frames": [0, 1, 0]}}
    media = [*images, video, frames]
    shown = [{"type": m["kind"], "media": i} for i, m in enumerate(media)]
    regions = [{"media": 0, "kind": "box", "xy": [0.5, 1, 2, 3], "label": draw(texts), "score": draw(numbers)}]
    said = st.dictionaries(st.sampled_from(["en", "ko"]), st.text(max_size=3), max_size=2)
    task = draw(st.sampled_from(["chat", "edit"]))
    return {
        "id": draw(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5)),
        "task": task,
        "media": media,
        "messages": [
            {"role": "user", "parts": [*shown, {"type": "regions", "regions": [0], "template": draw(texts)}]},
            {
                "role": "assistant",
                "parts": [{"type": "text", "text": draw(st.text(max_size=5))}],
                "train": draw(st.sampled_from([None, True, False])),
                "weight": draw(st.sampled_from([None, 0.0, 1.0])),
            },
        ],
        "regions": regions,
        "edit": {"sources": [0], "target": 1, "instruction": draw(said), "inverse": draw(st.none() | said)}
        if task == "edit"
        else None,
        "meta": {"dataset": draw(texts), "license": draw(texts)},
        "extra": draw(st.none() | st.dictionaries(st.text(max_size=3), texts, max_size=2).map(json.dumps)),
    }


@settings(max_examples=25, deadline=None)
@given(st.lists(samples(), min_size=1, max_size=4))
def test_parquet_keeps_every_field(tmp_path_factory, rows):
    file = tmp_path_factory.mktemp("parquet") / "a.parquet"
    written = [read_sample(row) for row in rows]
    parquet.write_parquet(written, file)
    read = parquet.Rows(file)
    assert [read_sample(read[i]) for i in range(len(read))] == written


def test_row_groups_are_small_and_pictures_are_not_compressed(tmp_path, monkeypatch):
    file = tmp_path / "a.parquet"
    parquet.write_parquet(chats(250), file)
    metadata = pq.ParquetFile(file).metadata
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [100, 100, 50]
    assert metadata.metadata[b"qvl.schema"] == b"qvl.sample/1"
    group = metadata.row_group(0)
    codecs = {group.column(i).path_in_schema: group.column(i).compression for i in range(group.num_columns)}
    assert codecs.pop("media.list.element.bytes") == "UNCOMPRESSED"
    assert set(codecs.values()) == {"ZSTD"}
    monkeypatch.setattr(parquet, "GROUP_BYTES", 1000)
    parquet.write_parquet(chats(20), file)
    assert pq.ParquetFile(file).metadata.num_row_groups > 3


def test_pictures_are_read_one_by_one(tmp_path):
    file = tmp_path / "a.parquet"
    parquet.write_parquet(chats(250), file)
    data = Dataset(file)
    chosen = (249, 0, 100, 99, 249)
    assert [data[i].to_dict() for i in chosen] == [chats(250)[i].to_dict() for i in chosen]
    assert not [key for key in row_groups.PICTURES._things if key[0] is data.rows._groups]
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(BadInput, match=r"a\.parquet: was changed while it was in use"):
        data[248]


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "zstd", "use_dictionary": False},
        {"compression": "none", "use_dictionary": True},
        {"compression": "none", "use_dictionary": False, "data_page_version": "2.0"},
    ],
)
def test_pictures_of_other_layouts_are_read_by_row_group_with_a_small_cache(tmp_path, monkeypatch, options):
    monkeypatch.setattr(row_groups.PICTURES, "size", 1)
    monkeypatch.setattr(row_groups.TEXTS, "size", 1)
    parquet.write_parquet(chats(25), tmp_path / "a.parquet")
    pq.write_table(pq.read_table(tmp_path / "a.parquet"), tmp_path / "b.parquet", row_group_size=10, **options)
    data = Dataset(tmp_path / "b.parquet")
    chosen = (24, 0, 10, 9, 24)
    assert [data[i].to_dict() for i in chosen] == [chats(25)[i].to_dict() for i in chosen]
    groups = data.rows._groups
    assert set(groups._values.values()) == {None}
    assert len(row_groups.PICTURES) == len(row_groups.TEXTS) == 1


def test_outlines_leave_out_pictures_whose_size_is_stated(tmp_path):
    file = tmp_path / "a.parquet"
    write_samples(chats(3), file)
    content = file.read_bytes()
    file.write_bytes(content.replace(b"\x89PNG", b"gone"))
    data = Dataset(file)
    outline = data.outline(2)
    assert (outline.media[0].bytes, outline.opener.size(outline.media[0])) == (b"", (8, 8))
    assert outline.messages == data[2].messages
    with pytest.raises(BadSample, match="is no picture in a known format"):
        data[2].opener.open(data[2].media[0])
    parquet.write_parquet(chats(3), tmp_path / "unsized.parquet")
    data = Dataset(tmp_path / "unsized.parquet")
    assert data.outline(2) == data[2]


def test_parquet_opens_with_ordinary_tools(tmp_path):
    parquet.write_parquet(chats(2), tmp_path / "a.parquet")
    row = pq.read_table(tmp_path / "a.parquet").to_pylist()[1]
    assert row["messages"][1]["parts"][0]["text"] == "1"
    assert row["media"][0]["bytes"].startswith(b"\x89PNG")


def test_other_and_damaged_parquet_files(tmp_path):
    file = tmp_path / "a.parquet"
    file.write_bytes(b"PAR1")
    with pytest.raises(BadInput, match=r"a\.parquet: not a readable Parquet file"):
        Dataset(file)
    parquet.write_parquet(chats(2), file)
    pq.write_table(pq.read_table(file).drop_columns(["edit"]), file)
    with pytest.raises(BadInput, match=r"a\.parquet: lacks the column 'edit' of qvl\.sample/1"):
        Dataset(file)
    parquet.write_parquet(chats(2), file)
    table = pq.read_table(file)
    unknown = pa.nulls(2, pa.list_(pa.struct({"kind": pa.string()})))
    pq.write_table(table.set_column(table.column_names.index("media"), "media", unknown), file)
    with pytest.raises(BadInput, match=r"a\.parquet: lacks the column 'media\.bytes' of qvl\.sample/1"):
        Dataset(file)
    parquet.write_parquet(chats(300), file)
    content = bytearray(file.read_bytes())
    content[100:3000] = bytes(2900)
    file.write_bytes(content)
    with pytest.raises(BadInput, match=r"a\.parquet: damaged row group 0"):
        Dataset(file)[0]
    with pytest.raises(BadInput, match="holds qvl samples; remove format='openai'"):
        Dataset(file, format="openai")


def test_a_bad_row_names_its_place(tmp_path):
    good = chats(2)
    broken = Sample.model_construct(**{**good[0].__dict__, "task": "t2i"})
    parquet.write_parquet([good[1], broken], tmp_path / "a.parquet")
    with pytest.raises(BadSample, match=r"a\.parquet:2: task `t2i` needs a picture"):
        Dataset(tmp_path / "a.parquet")[1]


def test_errors_of_a_sample_name_the_file_at_hand_not_its_origin(tmp_path):
    (chat,) = chats(1, meta={"locator": "original.jsonl:77"})
    parquet.write_parquet([chat], tmp_path / "a.parquet")
    sample = Dataset(tmp_path / "a.parquet")[0]
    assert sample.place == f"{tmp_path / 'a.parquet'}:1"
    with pytest.raises(BadSample) as caught, placed(sample):
        raise BadSample("x", "broken", "photo.png")
    assert str(caught.value) == f"{tmp_path / 'a.parquet'}:1: photo.png: broken."
    assert caught.value.sample_id == "0"


# shards


def write_shards(folder, *names):
    """One chat in each file, its id the name."""
    folder.mkdir(exist_ok=True)
    for name in names:
        with open_writer(folder / name) as out:
            out.write(chats(1)[0].model_copy(update={"id": name.partition(".")[0]}))


def test_shards_are_one_split(tmp_path):
    parquet.write_parquet(chats(3), tmp_path / "train-00000.parquet")
    parquet.write_parquet(chats(120), tmp_path / "train-00001.parquet")
    parquet.write_parquet(chats(1), tmp_path / "train-00002.parquet")
    write_lines(tmp_path / "validation.jsonl", ROW)
    data = Dataset(tmp_path, "train")
    assert [file.name for file in data.files] == [f"train-0000{n}.parquet" for n in range(3)]
    assert data.file == tmp_path / "train-*.parquet"
    assert len(data) == 124
    assert [data[i].id for i in (0, 2, 3, 122, 123, -1)] == ["0", "2", "0", "119", "0", "0"]
    assert data[122].place == f"{tmp_path / 'train-00001.parquet'}:120"
    assert data.outline(123).media[0].bytes == data[123].media[0].bytes  # no sizes are stated here
    assert [sample.id for sample in data][:5] == ["0", "1", "2", "0", "1"]
    assert pickle.loads(pickle.dumps(data))[122].id == "119"
    assert len({data.rows.place(i) for i in range(len(data))}) == len(data)


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "test.jsonl"], {"train": 2, "test": 1}),
        (["train-00000-of-00001-0123456789abcdef.parquet"], {"train": 1}),
        (["00000.tar", "00001.tar", "00000.parquet", "00000_stats.json"], {"train": 2}),
        (["cc3m-train-0001.tar", "cc3m-train-0002.tar"], {"cc3m-train": 2}),
        (["train-0000.jsonl", "train-0001.jsonl", "dataset_infos.json", ".train-0002.jsonl"], {"train": 2}),
        (["part-2.jsonl", "gpt-4.jsonl"], {"part-2": 1, "gpt-4": 1}),
    ],
)
def test_names_of_shards(tmp_path, names, splits):
    for name in names:
        if name.endswith(".json"):
            (tmp_path / name).write_text("{}")
        else:
            write_shards(tmp_path, name)
    for folder in (tmp_path, tmp_path / "moved"):
        found = dataset.splits(folder)
        assert {split: len(files) for split, files in found.items()} == splits
        assert all(len(Dataset(folder, split)) == count for split, count in splits.items())
        if folder == tmp_path:  # as snapshots of the hub have them
            (folder / "moved").mkdir()
            (folder / "moved/data").mkdir()
            for file in folder.glob("*.*"):
                file.rename(folder / "moved/data" / file.name)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["train-00000-of-00003.parquet", "train-00002-of-00003.parquet"], "split 'train' lacks shard 1 beside"),
        (["train-00000-of-00003.parquet", "train-00001-of-00003.parquet"], "split 'train' lacks shard 2 beside"),
        (["train-00000.jsonl", "train-00003.jsonl"], "split 'train' lacks shard 1 beside"),
        (["train-00007.jsonl"], "split 'train' lacks shard 1 beside"),
        (["train.jsonl", "train-00000.jsonl"], "split 'train' is there twice"),
        (["train-00000.jsonl", "train-00001.parquet"], "split 'train' is there twice"),
        (["train-00000-of-00001.jsonl", "train-00000-of-00002.jsonl"], "has shards of two different writes"),
        (["train-00000-of-00001.jsonl", "train-00001.jsonl"], "has shards of two different writes"),
    ],
)
def test_shards_that_do_not_belong_together(tmp_path, names, words):
    write_shards(tmp_path, *names)
    with pytest.raises(BadInput, match=words):
        Dataset(tmp_path, "train")


def test_shards_of_two_kinds(tmp_path):
    parquet.write_parquet(chats(1), tmp_path / "train-00000.parquet")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "train-00001.parquet")
    with pytest.raises(BadInput, match=r"00001\.parquet:1: this shard holds foreign samples, but .* holds qvl ones"):
        Dataset(tmp_path, "train")


def test_a_split_goes_by_several_names(tmp_path):
    write_lines(tmp_path / "val.jsonl", ROW)
    for name in ("val", "valid", "validation", "dev"):
        assert Dataset(tmp_path, name).file == tmp_path / "val.jsonl"
    assert Dataset(tmp_path).file == tmp_path / "val.jsonl"  # the only one
    write_lines(tmp_path / "dev.jsonl", ROW, ROW)
    assert len(Dataset(tmp_path, "dev")) == 2
    with pytest.raises(BadInput, match=r'no split "validation"; .*available: dev, val'):
        Dataset(tmp_path, "validation")


# how JSON stands in a file


@pytest.mark.parametrize(
    ("name", "content", "count"),
    [
        ("a.json", "[{0}, {0}]", 2),
        ("a.json", "{0}\n{0}\n\n{0}\n", 3),
        ("a.json", "\n {0}\r\n{0}", 2),
        ("a.jsonl", "[\n  {0},\n  {0}\n]\n", 2),
        ("a.jsonl", "{0}\n{0}\n", 2),
    ],
)
def test_arrays_and_lines_under_either_name(tmp_path, name, content, count):
    (tmp_path / name).write_text(content.replace("{0}", json.dumps(ROW)), encoding="utf-8", newline="")
    data = Dataset(tmp_path / name)
    assert [sample.messages[1].text for sample in data] == ["b"] * count
    assert pickle.loads(pickle.dumps(data))[0] == data[0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (json.dumps({"version": 1, "da\"ta": [ROW]}), r'holds one object \(keys "version", "da"ta"\), not samples'),
        (json.dumps({"data": [ROW]}, indent=1), r'keys "data"\), not samples; save the list that holds them'),
        (json.dumps(ROW), 'keys "messages"'),
        ('{"a": 1', "not one complete JSON object"),
        ('{"a": 1} x', "not one complete JSON object"),
        ("\ufeff[]", "starts with a byte order mark; save the file as UTF-8 without BOM"),
        ("nothing", "not one complete JSON array of samples"),
    ],
)  # fmt: skip
def test_what_is_neither_array_nor_lines(tmp_path, content, words):
    (tmp_path / "a.json").write_text(content, encoding="utf-8")
    with pytest.raises(BadInput, match=words):
        Dataset(tmp_path / "a.json")


def test_other_encodings_and_compressed_files(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([ROW]), encoding="utf-16")
    with pytest.raises(BadInput, match="is UTF-16; save the file as UTF-8"):
        Dataset(tmp_path / "a.json")
    (tmp_path / "a.jsonl.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(BadInput, match=r"a\.jsonl\.gz: is compressed, so its rows cannot be read in any order; unpack"):
        Dataset(tmp_path / "a.jsonl.gz")


def test_more_shards_than_files_may_be_open(tmp_path):
    pytest.importorskip("resource", reason="limits of open files are set on POSIX systems")
    write_shards(tmp_path, "first.parquet")
    for number in range(120):
        shutil.copyfile(tmp_path / "first.parquet", tmp_path / f"train-{number:05d}.parquet")
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (180,) * 2);"
        "from qvl_data.dataset import Dataset;"
        "data = Dataset(sys.argv[1], 'train'); print({data[i].media[0].bytes[:4] for i in [*range(120)] * 2})"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, check=True)
    assert done.stdout.strip() == rb"{b'\x89PNG'}"


def write_rows(file, count, says):
    """A data file of `count` questions, whose answers begin with `says`."""
    rows = [{"id": f"{i}", "user": f"{i}?", "assistant": f"{says} {i}"} for i in range(count)]
    if file.name == "packed.jsonl":
        turns = [[{"from": "human", "value": row["user"]}, {"from": "gpt", "value": row["assistant"]}] for row in rows]
        return write_lines(file, *([{"conversations": turn}] * 2 for turn in turns))
    if file.suffix == ".jsonl":
        return write_lines(file, *rows)
    if file.suffix == ".json":
        image = {"width": 9, "height": 9}
        images = [{"id": i, "file_name": f"{says}{i}.png", **image} for i in range(count)]
        boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": [0, 0, 5, 5]} for i in range(count)]
        whole = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cat"}]}
        file.write_text(json.dumps(whole), encoding="utf-8")
    elif file.suffix == ".csv":
        lines = ["id,user,assistant", *(",".join(row.values()) for row in rows)]
        file.write_text("\n".join(lines), encoding="utf-8")
    elif file.suffix == ".arrow":
        table = pa.Table.from_pylist(rows)
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as out:
            out.write_table(table)
    elif file.suffix == ".tar":
        with open_writer(file) as out:
            for chat in chats(count):
                out.write(chat)
    else:
        pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=7)
    return file


KINDS = ["a.jsonl", "packed.jsonl", "coco.json", "a.csv", "a.arrow", "a.parquet", "a.tar"]


@pytest.mark.parametrize("name", KINDS)
def test_a_file_that_is_written_anew_is_not_read_by_its_old_index(tmp_path, name):
    rows = dataset.open_rows(write_rows(tmp_path / name, 30, "old"))
    sent = pickle.dumps(rows)
    assert pickle.loads(sent)[29] == rows[29]
    first = rows[0]
    write_rows(tmp_path / f"new.{name}", 33, "another").replace(tmp_path / name)
    with pytest.raises(BadInput, match=f"{name}: was changed while it was in use, so its rows stand elsewhere; start"):
        pickle.loads(sent)[29]
    assert rows[0] == first  # what is open is the old file


@pytest.mark.parametrize("name", ["a.jsonl", "packed.jsonl", "coco.json", "a.csv"])
def test_a_file_that_is_changed_in_place_is_refused(tmp_path, name):
    rows = dataset.open_rows(write_rows(tmp_path / name, 30, "old"))
    assert rows[3] == rows[3]
    write_rows(tmp_path / name, 33, "another")
    with pytest.raises(BadInput, match="was changed while it was in use"):
        rows[29]


@pytest.mark.parametrize("name", ["packed.jsonl", "coco.json", "a.csv"])
def test_threads_read_rows_side_by_side(tmp_path, name):
    rows = dataset.open_rows(write_rows(tmp_path / name, 40, "says"))
    expected = [rows[index] for index in range(len(rows))]
    order = random.Random(0).choices(range(len(rows)), k=3000)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(rows.__getitem__, order))
    assert found == [expected[index] for index in order]


@pytest.mark.parametrize("name", ["a.parquet", "a.tar", "a.jsonl"])
def test_threads_read_side_by_side(tmp_path, name):
    with open_writer(tmp_path / name) as out:
        for chat in chats(40):
            out.write(chat)
    data = Dataset(tmp_path / name)
    expected = [sample.to_dict() for sample in data]
    order = random.Random(0).choices(range(40), k=1500)
    with ThreadPoolExecutor(8) as threads:
        assert all(
            found == expected[index]
            for index, found in zip(order, threads.map(lambda index: data[index].to_dict(), order), strict=True)
        )
