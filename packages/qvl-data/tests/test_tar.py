import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvl_core.errors import BadInput
from qvl_data import tar_index
from qvl_data.dataset import Dataset
from qvl_data.errors import BadSample
from qvl_data.tar import Rows
from qvl_data.tar_members import members
from qvl_data.writers import open_writer

from .chats import build, picture

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def pack(path, *entries, format="pax", **fields):
    """An archive; an entry is (name, content) or a TarInfo."""
    with tarfile.open(path, "w", format=FORMATS[format]) as out:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                out.addfile(entry)
                continue
            info = tarfile.TarInfo(entry[0])
            info.size = len(entry[1])
            for name, value in fields.items():
                setattr(info, name, value)
            out.addfile(info, io.BytesIO(entry[1]))
    return path


def special(name, kind, **fields):
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def chats(count):
    return [build(("user", picture(8, 8, i), "?", picture(4, 4)), ("assistant", "é"), id=str(i)) for i in range(count)]


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_a_compressed_archive_is_told_as_such(kind, tmp_path):
    with tarfile.open(tmp_path / "a.tar", f"w:{kind}") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"))
    name = {"gz": "gzip", "bz2": "bzip2", "xz": "xz"}[kind]
    with pytest.raises(BadInput, match=rf"a\.tar: is compressed \({name}\), .*; unpack it first"):
        list(members(tmp_path / "a.tar"))


# reading

word = st.text(st.sampled_from("abcé가_-"), min_size=1, max_size=60)
names = st.builds("/".join, st.lists(word, min_size=1, max_size=6))


@settings(max_examples=80, deadline=None)
@given(
    st.dictionaries(names, st.dictionaries(st.sampled_from(["jpg", "txt", "json", "0.PNG"]), st.binary(max_size=1200),
                                           min_size=1), max_size=5),
    st.sampled_from(["gnu", "pax"]),
)  # fmt: skip
def test_rows_are_what_was_packed(tmp_path_factory, rows, format):
    file = tmp_path_factory.mktemp("tar") / "a.tar"
    pack(
        file, *((f"{key}.{kind}", content) for key, row in rows.items() for kind, content in row.items()), format=format
    )
    with tarfile.open(file) as theirs:
        expected = [(member.name, member.offset_data, member.size) for member in theirs]
    assert [(m.name, m.start, m.size) for m in members(file)] == expected
    read = Rows(file)
    assert read.format == "wds"
    wanted = [{"__key__": key} | {kind.lower(): data for kind, data in row.items()} for key, row in rows.items()]
    order = range(len(rows) - 1, -1, -1)
    assert [read[i] for i in order] == [wanted[i] for i in order]
    again = Rows(file)  # from the index that is kept
    assert [again[i] for i in order] == [wanted[i] for i in order]
    assert [again.place(i) for i in order] == [f"{file}:{wanted[i]['__key__']}" for i in order]


def test_a_tar_of_the_shell(tmp_path):
    (tmp_path / "in/cats").mkdir(parents=True)
    for name in ("cats/1.jpg", "cats/1.txt", "2.jpg", ".DS_Store"):
        (tmp_path / "in" / name).write_bytes(name.encode())
    order = ["./cats/1.jpg", "./cats/1.txt", "./2.jpg", "./.DS_Store", "./cats/"]
    try:
        subprocess.run(["tar", "-cf", "../a.tar", "--no-recursion", *order], cwd=tmp_path / "in", check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the program tar")
    rows = Rows(tmp_path / "a.tar")
    assert [rows[i] for i in range(len(rows))] == [
        {"__key__": "cats/1", "jpg": b"cats/1.jpg", "txt": b"cats/1.txt"},
        {"__key__": "2", "jpg": b"2.jpg"},
    ]


# bad archives


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (special("b.jpg", tarfile.SYMTYPE, linkname="/etc/passwd"), "is a link; put the file itself"),
        (special("b.jpg", tarfile.LNKTYPE, linkname="a.jpg"), "is a hard link"),
        (special("b.jpg", tarfile.CHRTYPE, devmajor=1, devminor=5), "is a device"),
        (special("b.jpg", tarfile.FIFOTYPE), "is a pipe"),
        (special("b.jpg", b"V"), "is a special entry"),
        (("b.pyd", b"x"), r"is a file of the kind \.pyd, which is never read \(it may hold code\)"),
        (("b.pickle", b"x"), "never read"),
        (("b.pth", b"x"), "never read"),
        (("b.exe", b"x"), "never read"),
        (("b", b"x"), "is a file without an ending"),
        (("/b.jpg", b"x"), "leads out of the archive"),
        (("x/../../b.jpg", b"x"), "leads out of the archive"),
        (("C:b.jpg", b"x"), "leads out of the archive"),
        (("x\\b.jpg", b"x"), "is no clean name"),
    ],
)
def test_what_is_no_plain_file_spoils_its_row_only(tmp_path, entry, words):
    file = pack(tmp_path / "a.tar", ("a.jpg", b"1"), entry, ("c.jpg", b"3"))
    for _ in range(2):  # scanned, and from the index
        rows = Rows(file)
        assert [rows[0]["jpg"], rows[2]["jpg"]] == [b"1", b"3"]
        with pytest.raises(BadSample, match=words) as caught:
            rows[1]
        assert caught.value.reason == "tar_member"
        assert caught.value.place.endswith(" (sample 2)")


def test_names_that_are_no_utf8(tmp_path):
    file = pack(tmp_path / "a.tar", ("a\udcff.jpg", b"1"), format="gnu")
    with pytest.raises(BadSample, match="is no clean name; write it in UTF-8"):
        Rows(file)[0]


def test_doubled_keys_and_members(tmp_path):
    file = pack(tmp_path / "a.tar", ("a.jpg", b"1"), ("b.jpg", b"2"), ("a.txt", b"3"), ("c.txt", b"4"), ("c.TXT", b"5"))
    rows = Rows(file)
    assert rows[0] == {"__key__": "a", "jpg": b"1"}
    for index, words in (
        (2, "comes again after sample 1; give it a key of its own"),
        (3, 'has the member ".txt" twice'),
    ):
        with pytest.raises(BadSample, match=words) as caught:
            rows[index]
        assert caught.value.reason == "tar_double"
    assert len({rows.place(i) for i in range(4)}) == 4


def test_archives_that_are_cut_off_or_damaged(tmp_path):
    file = pack(tmp_path / "a.tar", ("a.jpg", b"1" * 2000), ("b.jpg", b"2" * 2000))
    whole = file.read_bytes()

    def refused(content):
        file.write_bytes(content)
        with pytest.raises(BadInput) as caught:
            Rows(file)
        return str(caught.value).removeprefix(f"{file}: ")

    assert refused(b"") == "is empty; get the whole file."
    assert refused(whole[:1500]) == (
        "is cut off: 'a.jpg' has 2000 bytes from byte 512, but the file ends at byte 1500; get the whole file."
    )
    assert refused(whole[:2560]) == "is cut off: no end mark; get the whole file."
    assert refused(whole[:2600]) == "is cut off: no end mark; get the whole file."
    assert refused(whole + whole).startswith("goes on behind its end mark at byte 5120; join archives with tar")
    assert refused(b"x" * 1024) == "not a tar archive (wrong checksum of a header); get the file again."
    damaged = bytearray(whole)
    damaged[2560] ^= 1
    assert refused(damaged) == "damaged at byte 2560 (wrong checksum of a header); get the file again."
    file.write_bytes(whole)
    rows = Rows(file)
    file.write_bytes(whole[:3000])
    with pytest.raises(BadInput, match="was changed while it was in use"):
        rows[1]


def test_sparse_files_are_refused(tmp_path):
    with pytest.raises(BadInput, match="a sparse file at byte 0; pack the archive again without --sparse"):
        Rows(pack(tmp_path / "a.tar", special("a.jpg", b"S")))
    file = pack(tmp_path / "b.tar", ("a.jpg", b"1"), pax_headers={"GNU.sparse.major": "1"})
    with pytest.raises(BadInput, match="a sparse file"):
        Rows(file)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 6000), st.binary(min_size=1, max_size=6), st.sampled_from(["gnu", "pax"]))
def test_damage_is_refused_or_harmless(tmp_path_factory, at, junk, format):
    file = tmp_path_factory.mktemp("damage") / "a.tar"
    pack(file, ("é" * 70 + ".jpg", b"1" * 700), ("b.txt", b"2"), format=format)
    content = bytearray(file.read_bytes())
    content[at : at + len(junk)] = junk
    for offset in (0, 512, 1024, 1536, 2048, 2560):  # headers as a forger writes them: with a right checksum
        if offset <= at < offset + 512 and content[offset + 257 : offset + 262] == b"ustar":
            header = content[offset : offset + 512]
            total = sum(header[:148]) + 256 + sum(header[156:])
            content[offset + 148 : offset + 156] = b"%06o\0 " % total
    file.write_bytes(content)
    try:
        rows = Rows(file)
    except BadInput:
        return
    for index in range(len(rows)):
        with suppress(BadSample):
            assert sum(map(len, rows[index].values())) <= 3 * len(content)


# our own archives


def test_samples_come_back(tmp_path):
    samples = chats(5)
    with open_writer(tmp_path / "a.tar") as out:
        for sample in samples:
            out.write(sample)
    data = Dataset(tmp_path / "a.tar")
    assert data.rows.format == "qvl"
    assert [[m.bytes for m in data[i].media] for i in (4, 0)] == [[m.bytes for m in samples[i].media] for i in (4, 0)]
    assert data[3].media[0].width == 8
    assert data[3].messages == samples[3].messages
    assert (data[2].id, data[2].place) == ("2", f"{tmp_path / 'a.tar'}:00000002")
    outline = data.outline(4)
    assert [m.bytes for m in outline.media] == [b"", b""]
    assert outline.opener.size(outline.media[1]) == (4, 4)
    with tarfile.open(tmp_path / "a.tar") as theirs:
        assert theirs.getnames()[:3] == ["00000000.json", "00000000.0.png", "00000000.1.png"]
        assert {(m.mtime, m.uid, m.gid, m.uname) for m in theirs} == {(0, 0, 0, "")}
    with pytest.raises(BadInput, match="holds qvl samples; remove format='openai'"):
        Dataset(tmp_path / "a.tar", format="openai")


def test_archives_are_read_in_other_processes(tmp_path):
    with open_writer(tmp_path / "a.tar") as out:
        for sample in chats(3):
            out.write(sample)
    small = pickle.dumps(Dataset(tmp_path / "a.tar"))
    assert len(small) < 2000
    code = "import pickle, sys; s = pickle.load(sys.stdin.buffer)[2]; print(s.id, s.opener.open(s.media[0]).size)"
    done = subprocess.run([sys.executable, "-c", code], input=small, capture_output=True, check=True)
    assert done.stdout.split() == [b"2", b"(8,", b"8)"]


def test_pictures_that_belong_to_nothing(tmp_path):
    sample = chats(1)[0].to_dict()
    media = [{key: value for key, value in entry.items() if key != "bytes"} for entry in sample["media"]]
    text = json.dumps({**sample, "media": media}).encode()
    for name in ("a.2.png", "a.x.png", "a.png", "a.²².png"):
        file = pack(tmp_path / "a.tar", ("a.json", text), (name, b"1"))
        with pytest.raises(BadSample, match="belongs to none of the media of the sample"):
            Rows(file)[0]
    file = pack(tmp_path / "a.tar", ("a.json", text), ("b.0.png", b"1"))
    with pytest.raises(BadSample, match=r'has no member "\.json"'):
        Rows(file)[1]
    whole = json.dumps(sample).encode()
    with pytest.raises(BadSample, match="belongs to none"):
        Rows(pack(tmp_path / "a.tar", ("a.json", whole), ("a.0.png", b"1")))[0]
    with pytest.raises(BadSample, match="not valid JSON"):
        Rows(pack(tmp_path / "a.tar", ("a.json", text), ("b.json", b"{")))[1]


# the index


def test_the_index_counts_as_long_as_the_archive_is_the_same(tmp_path, monkeypatch):
    file = pack(tmp_path / "a.tar", ("a.jpg", b"1"))
    kept = tmp_path / ".a.tar.index"
    assert Rows(file)[0]["jpg"] == b"1"
    content = kept.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(tar_index, "members", None)  # not scanned again
        assert Rows(file)[0]["jpg"] == b"1"
    pack(file, ("b.jpg", b"2"))
    os.utime(file, ns=(1, kept.stat().st_mtime_ns + 1000))
    assert Rows(file)[0] == {"__key__": "b", "jpg": b"2"}
    pack(file, ("a.jpg", b"1"))
    assert Rows(file)[0]["__key__"] == "a"
    assert kept.read_bytes() == content  # nothing in it depends on the time
    status = file.stat()
    for bad in (content[:-1], b"", b"null\n", b"[" * 9999, content.replace(b'"wds"', b'"qvl"').replace(b"a", b"b", 1)):
        kept.write_bytes(bad)
        os.utime(kept, ns=(status.st_mtime_ns, status.st_mtime_ns))
        assert Rows(file)[0]["__key__"] == "a"


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["first", "starts", "sizes", "kinds", "key_ends"]), st.integers(0, 3), st.integers(0, 2**31))
def test_a_forged_index_never_leads_out_of_the_archive(tmp_path_factory, name, at, value):
    file = pack(tmp_path_factory.mktemp("forged") / "a.tar", ("a.jpg", b"1"), ("a.txt", b"2"), ("b.jpg", b"3"))
    index = tar_index.Index.build(file)
    numbers = getattr(index, f"_{name}")
    numbers[at % len(numbers)] = value
    size = file.stat().st_size
    try:
        forged = tar_index.Index.from_bytes(index.to_bytes(size), size)
    except ValueError:
        return
    spans = [span for row in range(len(forged)) for span in forged.members(row).values()]
    assert all(0 <= start <= start + length <= size for start, length in spans)
    assert all(isinstance(forged.key(row), str) for row in range(len(forged)))


def test_an_index_that_cannot_be_kept_travels_with_the_rows(tmp_path, monkeypatch):
    file = pack(tmp_path / "a.tar", ("a.jpg", b"1"))

    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(tar_index.os, "replace", refuse)
    rows = Rows(file)
    assert not list(tmp_path.glob(".a.tar.index*"))
    monkeypatch.setattr(tar_index, "members", None)
    assert pickle.loads(pickle.dumps(rows))[0]["jpg"] == b"1"
