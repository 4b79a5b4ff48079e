import json

import pytest
from PIL import Image

from qvl_core.errors import BadInput, QVLError
from qvl_data.cli import app
from qvl_data.convert import Change, convert, write_samples
from qvl_data.dataset import Dataset, splits
from qvl_data.errors import BadSample
from qvl_data.example.grounding import samples as grounding
from qvl_data.media import read_bytes
from qvl_data.sample import read_sample

from .chats import build, file_of, picture, write_png
from .killing import check_every_kill, tree


def pixels(dataset):
    return [[sample.opener.open(media).tobytes() for media in sample.media] for sample in dataset]


@pytest.fixture
def source(tmp_path):
    """Two chats as qwenvl lines, with pictures beside them."""
    folder = tmp_path / "source"
    for number in range(3):
        write_png(folder / f"photos/{number}.png", picture(8, 8, number))
    rows = [
        {
            "id": 7,
            "image": ["photos/0.png", "photos/1.png"],
            "quality": None,
            "conversations": [{"from": "human", "value": "<image>\n<image> ?"}, {"from": "gpt", "value": "猫"}],
        },
        {
            "image": "photos/2.png",
            "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "b"}],
        },
    ]
    file = folder / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def read_lines(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_to_parquet_and_back_gives_the_same_rows_and_files(source, tmp_path):
    convert(source, tmp_path / "p/train.parquet")
    embedded = Dataset(tmp_path / "p/train.parquet")
    assert all(media.bytes for sample in embedded for media in sample.media)
    convert(tmp_path / "p/train.parquet", tmp_path / "back/train.jsonl", "qwenvl")
    assert read_lines(tmp_path / "back/train.jsonl") == read_lines(source)
    for number in range(3):
        name = f"photos/{number}.png"
        assert (tmp_path / "back" / name).read_bytes() == (source.parent / name).read_bytes()
    assert pixels(Dataset(tmp_path / "back/train.jsonl")) == pixels(embedded) == pixels(Dataset(source))


@pytest.mark.parametrize("format", ["qvl", "openai", "qwenvl"])
def test_lines_carry_their_pictures_along(format, source, tmp_path):
    convert(source, tmp_path / "out/train.jsonl", format)
    moved = Dataset(tmp_path / "out/train.jsonl")
    assert moved.format is not None
    assert pixels(moved) == pixels(Dataset(source))
    assert [s.messages for s in moved] == [s.messages for s in Dataset(source)]


def test_a_file_beside_its_pictures_copies_nothing(source):
    before = sorted(source.parent.rglob("*"))
    convert(source, source.parent / "openai.jsonl", "openai")
    after = sorted(path for path in source.parent.rglob("*") if ".openai.jsonl.job" not in path.parts)
    assert after == sorted([*before, source.parent / "openai.jsonl"])


def test_embedded_pictures_without_a_name_are_named_by_content(tmp_path):
    chat = build(("user", picture(8, 8), picture(8, 8)), ("assistant", "b"))
    write_samples([chat], tmp_path / "a.jsonl", "openai")
    (written,) = (tmp_path / "media").iterdir()
    assert written.read_bytes() == file_of(picture(8, 8))
    assert pixels(Dataset(tmp_path / "a.jsonl")) == pixels([chat])


def test_a_hostile_origin_is_not_followed(tmp_path):
    for origin in ("/etc/cron.d/x.png", "../x.png", "C:/x.png", "http://x/y.png"):
        data = build(("user", picture(8, 8)), ("assistant", "b")).to_dict()
        data["media"][0]["origin"] = origin
        out = tmp_path / str(abs(hash(origin)))
        write_samples([read_sample(data)], out / "a.jsonl")
        assert [path.parent.name for path in out.rglob("*.png")] == ["media"]


def test_a_folder_is_converted_split_by_split(source, tmp_path):
    (source.parent / "test.jsonl").write_text(source.read_text())
    counts = convert(source.parent, tmp_path / "out")
    assert {file.name: figures.samples for file, figures in counts.items()} == {"test.parquet": 2, "train.parquet": 2}
    assert len(convert(tmp_path / "out", tmp_path / "one.parquet", split="test")) == 1
    with pytest.raises(BadInput, match="holds several splits; name a target folder"):
        convert(source.parent, tmp_path / "all.parquet")


def test_nothing_half_written_stays(source, tmp_path):
    source.write_text(source.read_text() + '{"image": "photos/9.png", "conversations": []}\n')
    for target in ("out.parquet", "out.jsonl"):
        with pytest.raises(BadSample, match=r"train\.jsonl:3: 0 <image> tags but 1 image"):
            convert(source, tmp_path / target)
        assert not list(tmp_path.glob("out*"))


def test_refusals(source, tmp_path):
    (tmp_path / "out.parquet").write_text("something else")
    with pytest.raises(BadInput, match="is already there; remove it, choose another name, or add --fresh"):
        convert(source, tmp_path / "out.parquet")
    with pytest.raises(BadInput, match="is already there; remove it or choose another name"):
        write_samples(Dataset(source), tmp_path / "out.parquet")
    for name, held in (("b.parquet", "qvl, hf, flat, edit, metaquery, omniedit"), ("b.tar", "qvl"), ("b.csv", "flat")):
        with pytest.raises(BadInput, match=rf"a \.[a-z]+ file holds {held}; for openai name the file \.jsonl"):
            convert(source, tmp_path / name, "openai")
    with pytest.raises(BadInput, match="holds flat; for qvl"):
        convert(source, tmp_path / "b.csv")
    with pytest.raises(BadInput, match=r"write \.parquet, \.tar, \.jsonl, \.json, or for flat \.csv, \.tsv"):
        write_samples(Dataset(source), tmp_path / "b.txt")


def test_pictures_of_the_same_name_are_told_apart(tmp_path):
    """As in files of the hub whose pictures are all called image.png."""
    chats = [build(("user", picture(8, 8, number)), ("assistant", "b")).to_dict() for number in (0, 1, 1, 2)]
    for chat in chats:
        chat["media"][0]["origin"] = "image.png"
    samples = [read_sample(chat) for chat in chats]
    write_samples(samples, tmp_path / "same.parquet")
    for out in (tmp_path / "a", tmp_path / "b"):
        convert(tmp_path / "same.parquet", out / "same.jsonl")
    laid = Dataset(tmp_path / "a/same.jsonl")
    assert pixels(laid) == pixels(samples)
    assert [sample.media[0].path == "image.png" for sample in laid] == [True, False, False, False]
    assert {sample.media[0].origin for sample in laid} == {None, "image.png"}
    assert len(list((tmp_path / "a/media").iterdir())) == 2
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    convert(tmp_path / "a/same.jsonl", tmp_path / "back.parquet")
    assert {sample.media[0].origin for sample in Dataset(tmp_path / "back.parquet")} == {"image.png"}


def test_what_lies_there_already_is_left_alone(source, tmp_path):
    before = write_png(tmp_path / "out/photos/0.png", picture(4, 4)).read_bytes()
    write_png(tmp_path / "out/photos/1.png/x.png", picture(4, 4))
    convert(source, tmp_path / "out/train.jsonl", "qwenvl")
    assert pixels(Dataset(tmp_path / "out/train.jsonl")) == pixels(Dataset(source))
    assert (tmp_path / "out/photos/0.png").read_bytes() == before


def test_a_file_may_be_called_as_a_folder(tmp_path):
    chats = [build(("user", picture(8, 8, number)), ("assistant", "b")).to_dict() for number in range(2)]
    chats[0]["media"][0]["origin"], chats[1]["media"][0]["origin"] = "a.png", "a.png/b.png"
    samples = [read_sample(chat) for chat in chats]
    write_samples(samples, tmp_path / "out/a.jsonl")
    assert pixels(Dataset(tmp_path / "out/a.jsonl")) == pixels(samples)


def test_two_splits_may_each_have_their_own_file_of_one_name(tmp_path):
    for split, seed in (("train", 0), ("test", 1)):
        write_png(tmp_path / split / "0.png", picture(8, 8, seed))
        (tmp_path / split / "1.mp4").write_bytes(split.encode())
        parts = [{"type": "image", "image": "0.png"}, {"type": "video", "video": "1.mp4"}]
        row = {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "b"}]}
        (tmp_path / split / "data.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
        convert(tmp_path / split / "data.jsonl", tmp_path / "out" / f"{split}.jsonl", "openai")
        convert(tmp_path / split / "data.jsonl", tmp_path / "inside" / f"{split}.parquet")
    for split, seed in (("train", 0), ("test", 1)):
        for file in (tmp_path / "out" / f"{split}.jsonl", tmp_path / "inside" / f"{split}.parquet"):
            (sample,) = Dataset(file)
            assert sample.opener.open(sample.media[0]).tobytes() == picture(8, 8, seed).tobytes()
            assert read_bytes(sample.media[1], file.parent) == split.encode()


@pytest.mark.parametrize("every", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_anywhere_pictures_of_the_same_name_end_the_same(every, tmp_path):
    chats = [build(("user", picture(8, 8, number)), ("assistant", "b")).to_dict() for number in (0, 1, 2)]
    for chat in chats:
        chat["media"][0]["origin"] = "image.png"
    (tmp_path / "in").mkdir()
    write_samples(map(read_sample, chats), tmp_path / "in/train.parquet")

    def command(out):
        return ["convert", str(tmp_path / "in"), str(out / "set"), "--format", "openai", "--shard", "1"]

    assert check_every_kill(command, tmp_path / "kills", every) > 5


def test_a_missing_picture_is_named(source, tmp_path):
    (source.parent / "photos/2.png").unlink()
    with pytest.raises(BadSample, match=r"train\.jsonl:2: photos/2\.png: cannot be opened"):
        convert(source, tmp_path / "out.parquet")


def test_embedded_pictures_state_their_upright_size(source, tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    (source.parent / "photos/2.png").write_bytes(file_of(picture(8, 6), "JPEG", exif=turned))
    (source.parent / "photos/1.png").write_bytes(b"damaged")
    convert(source, tmp_path / "a.parquet")
    two, one = Dataset(tmp_path / "a.parquet")
    assert [(m.width, m.height) for m in (*two.media, *one.media)] == [(8, 8), (None, None), (6, 8)]
    write_samples([two, one], tmp_path / "b.parquet")
    assert [sample.media for sample in Dataset(tmp_path / "b.parquet")] == [two.media, one.media]


def lines_of(tmp_path, count, bad=()):
    folder = tmp_path / "lines"
    folder.mkdir()
    with (folder / "train.jsonl").open("w", encoding="utf-8") as out:
        for number in range(count):
            write_png(folder / f"{number}.png", picture(8, 8, number))
            shown = "no.png" if number in bad else f"{number}.png"
            turns = [{"from": "human", "value": f"<image>{number}"}, {"from": "gpt", "value": "b"}]
            out.write(json.dumps({"id": f"s{number}", "image": shown, "conversations": turns}) + "\n")
    return folder


@pytest.mark.parametrize("container", ["parquet", "tar", "jsonl"])
def test_a_folder_in_shards(container, tmp_path):
    folder = lines_of(tmp_path, 7)
    files = convert(folder, tmp_path / "out", container=container, shard=3, change=Change(license="MIT"))
    names = [f"train-{number:05d}-of-00003.{container}" for number in range(3)]
    assert [(file.name, figures.samples) for file, figures in files.items()] == list(zip(names, (3, 3, 1), strict=True))
    whole = Dataset(tmp_path / "out", "train")
    assert [sample.id for sample in whole] == [f"s{number}" for number in range(7)]
    assert pixels(whole) == pixels(Dataset(folder, "train"))
    card = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert 'license: "mit"' in card
    assert "| train | 3 | 7 | 7 | 0 | 7 |" in card
    assert f'path: "train-*.{container}"' in card


def test_a_card_changes_with_the_data(tmp_path):
    folder = lines_of(tmp_path, 3)
    convert(folder, tmp_path / "a")
    convert(folder, tmp_path / "b")
    assert (tmp_path / "a/README.md").read_text() == (tmp_path / "b/README.md").read_text()
    write_png(folder / "1.png", picture(8, 8, 9))
    convert(folder, tmp_path / "c")
    first, other = ((tmp_path / name / "README.md").read_text().splitlines() for name in ("a", "c"))
    changed = [line for line in first if line not in other]
    assert any(line.startswith("Fingerprint: `sha256:") for line in changed)


def test_a_finished_conversion_does_nothing(tmp_path):
    folder = lines_of(tmp_path, 4)
    first = convert(folder, tmp_path / "out", shard=2)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert convert(folder, tmp_path / "out", shard=2) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == times
    with pytest.raises(BadInput, match="holds the output of another command"):
        convert(folder, tmp_path / "out", shard=4)
    convert(folder, tmp_path / "out", shard=4, fresh=True)
    assert sorted(path.name for path in (tmp_path / "out").glob("*.parquet")) == ["train.parquet"]
    (tmp_path / "out/train.parquet").unlink()
    convert(folder, tmp_path / "out", shard=4)
    assert len(Dataset(tmp_path / "out", "train")) == 4


def test_bad_samples_may_be_left_out(tmp_path):
    folder = lines_of(tmp_path, 6, bad=(1, 4))
    with pytest.raises(BadSample, match=r"train\.jsonl:5: no\.png: cannot be opened"):
        convert(folder, tmp_path / "out", shard=2, max_bad=1)
    files = convert(folder, tmp_path / "out2", shard=2, max_bad=2)
    assert [figures.samples for figures in files.values()] == [1, 2, 1]
    listed = read_lines(tmp_path / "out2/left_out.jsonl")
    assert [(entry["id"], entry["reason"]) for entry in listed] == [("s1", "media_missing"), ("s4", "media_missing")]
    assert len(Dataset(tmp_path / "out2", "train")) == 4
    assert list(splits(tmp_path / "out2")) == ["train"], "what is laid beside the data is no split"


def test_boxes_are_written_out_for_formats_without_them(tmp_path):
    sample = next(iter(grounding("test")))
    with pytest.raises(BadSample, match="cannot say"):
        write_samples([sample], tmp_path / "a.jsonl", "qwenvl")
    write_samples([sample], tmp_path / "data/test.parquet")
    convert(tmp_path / "data", tmp_path / "out", "qwenvl", change=Change(boxes="qwen3vl"))
    (row,) = read_lines(tmp_path / "out/test.jsonl")
    found = json.loads(row["conversations"][1]["value"])
    box = found[0] if isinstance(found, list) else found
    width, height = sample.media[0].width, sample.media[0].height
    x1, y1, x2, y2 = sample.regions[0].xy
    expected = [
        round(x1 / width * 1000),
        round(y1 / height * 1000),
        round(x2 / width * 1000),
        round(y2 / height * 1000),
    ]
    assert box["bbox_2d"] == expected


@pytest.mark.parametrize(
    ("target", "every"),
    [
        ("out", 12),
        *(pytest.param(name, 1, marks=pytest.mark.slow) for name in ("out", "a.parquet", "a.jsonl", "a.tar")),
    ],
)
def test_killed_anywhere_it_ends_the_same(target, every, tmp_path):
    folder = lines_of(tmp_path, 5)

    def command(out):
        chosen = (
            [str(folder), str(out / target)] if target == "out" else [str(folder / "train.jsonl"), str(out / target)]
        )
        return ["convert", *chosen, "--shard", "2"]

    assert check_every_kill(command, tmp_path / "kills", every) > 5


def test_everything_that_decides_what_comes_out_makes_another_command(tmp_path):
    folder = lines_of(tmp_path, 2)
    convert(folder, tmp_path / "out")
    for other in (
        {"container": "tar"},
        {"media_root": folder},
        {"allow_root": [folder]},
        {"change": Change(license="MIT")},
    ):
        with pytest.raises(BadInput, match="holds the output of another command"):
            convert(folder, tmp_path / "out", **other)


def test_what_is_read_is_never_written_over(source):
    before = source.read_bytes()
    for target in (source, source.parent / "photos/../train.jsonl"):
        with pytest.raises(BadInput, match=r"train\.jsonl: is what is read; choose another name"):
            convert(source, target, fresh=True)
    for target in (source.parent, source.parent / "photos/.."):
        with pytest.raises(BadInput, match="holds the data that is read; choose another folder"):
            convert(source.parent, target, fresh=True)
    assert source.read_bytes() == before


def test_a_card_that_others_wrote_is_left_alone(source, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/README.md").write_text("precious")
    with pytest.raises(BadInput, match=r"README\.md: is already there"):
        convert(source, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["README.md"]


def test_more_may_be_left_out_when_it_goes_on(tmp_path):
    folder = lines_of(tmp_path, 6, bad=(1, 4))
    with pytest.raises(BadSample, match=r"train\.jsonl:5"):
        convert(folder, tmp_path / "out", shard=2, max_bad=1)
    done = (tmp_path / "out/train-00000-of-00003.parquet").stat().st_mtime_ns
    convert(folder, tmp_path / "out", shard=2, max_bad=3)
    assert (tmp_path / "out/train-00000-of-00003.parquet").stat().st_mtime_ns == done
    with pytest.raises(BadSample, match=r"train\.jsonl:5: no\.png: cannot be opened"):
        convert(folder, tmp_path / "out", shard=2, max_bad=1)
    assert convert(folder, tmp_path / "out", shard=2, max_bad=2).before


def test_the_list_of_what_was_left_out_is_of_the_last_run(tmp_path):
    folder = lines_of(tmp_path, 3, bad=(1,))
    convert(folder, tmp_path / "out", max_bad=1)
    convert(folder / "train.jsonl", tmp_path / "one/train.parquet", max_bad=1)
    assert len(read_lines(tmp_path / "one/train.parquet.left_out")) == 1
    assert list(splits(tmp_path / "one")) == ["train"]
    write_png(folder / "no.png", picture(8, 8))
    convert(folder, tmp_path / "out", fresh=True)
    convert(folder / "train.jsonl", tmp_path / "one/train.parquet", fresh=True)
    assert not list(tmp_path.rglob("*left_out*"))


def test_a_shard_that_is_gone_is_written_again_and_no_other(tmp_path):
    folder = lines_of(tmp_path, 6)
    convert(folder, tmp_path / "out", shard=2)
    shards = sorted((tmp_path / "out").glob("*.parquet"))
    expected, times = [file.read_bytes() for file in shards], [file.stat().st_mtime_ns for file in shards]
    journal = tmp_path / "out/.job.jsonl"
    for lines in (journal.read_bytes(), b"".join(journal.read_bytes().splitlines(keepends=True)[:3])):  # cut off
        journal.write_bytes(lines)
        shards[1].unlink()
        convert(folder, tmp_path / "out", shard=2)
        assert [file.read_bytes() for file in shards] == expected
        assert shards[0].stat().st_mtime_ns == times[0]
        assert convert(folder, tmp_path / "out", shard=2).before


def test_nothing_of_an_earlier_run_stays_after_fresh(tmp_path, monkeypatch):
    folder = lines_of(tmp_path, 6)
    convert(folder, tmp_path / "out", shard=2)
    (tmp_path / "out/.train-00002-of-00003.parquet.part").write_text("left by a kill")
    with monkeypatch.context() as patched:
        patched.setattr("qvl_data.convert.clear", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):  # as by a kill between the new journal and the removal
            convert(folder, tmp_path / "out", shard=4, fresh=True)
    convert(folder, tmp_path / "out", shard=4)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [".job.jsonl", "README.md", "train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]


@pytest.mark.parametrize(
    "name",
    [
        *(".bashrc", ".ssh/authorized_keys", "test.jsonl", "README.md", ".job.jsonl", "photo", "a:b.png", "con.png"),
        *("LPT1.tar.png", "dot./x.png", "a?.jpg", "x" * 250 + ".png", "a//b.png", "new\nline.png"),
    ],
)
def test_data_does_not_choose_other_files_than_media(name, tmp_path):
    data = build(("user", picture(8, 8)), ("assistant", "b")).to_dict()
    data["media"][0]["origin"] = name
    write_samples([read_sample(data)], tmp_path / "out/a.jsonl")
    assert [path.parent.name for path in (tmp_path / "out").rglob("*") if path.is_file()].count("media") == 1
    assert pixels(Dataset(tmp_path / "out/a.jsonl")) == pixels([read_sample(data)])
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 2


def test_files_of_other_names_are_laid_by_content(tmp_path):
    folder = tmp_path / "in"
    write_png(folder / "x.png", picture(8, 8))
    (folder / "x.png").rename(folder / "photo")
    rows = [{"image": "photo", "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "b"}]}]
    (folder / "train.jsonl").write_text(json.dumps(rows[0]) + "\n", encoding="utf-8")
    convert(folder / "train.jsonl", folder / "beside.jsonl", "openai")
    assert not (folder / "media").exists()
    convert(folder / "train.jsonl", tmp_path / "out/train.jsonl", "openai")
    assert not (tmp_path / "out/photo").exists()
    assert pixels(Dataset(tmp_path / "out/train.jsonl")) == pixels(Dataset(folder / "train.jsonl"))


def test_a_finished_conversion_says_so(tmp_path, capsys):
    folder = lines_of(tmp_path, 1)
    for said in (False, True):
        assert app.run(["convert", str(folder), str(tmp_path / "out")]) == 0
        assert ("nothing was done" in capsys.readouterr().out) is said


@pytest.mark.parametrize(
    ("target", "options", "problem"),
    [
        ("x" * 252 + ".parquet", {}, "cannot be written"),
        ("x" * 300, {}, "cannot be written"),
        ("out", {"format": "opanai"}, "opanai"),
        ("out", {"boxes": "qwen"}, 'unknown space of boxes "qwen"; there are qwen3vl'),
        ("file/out", {}, "cannot be written"),
    ],
)
def test_what_cannot_be_written_is_told_before_anything_is(target, options, problem, source, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(QVLError, match=problem):
        convert(source, tmp_path / target, options.get("format", "qvl"), change=Change(options.get("boxes")))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "source"]
