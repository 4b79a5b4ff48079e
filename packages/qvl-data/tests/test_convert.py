import json

import pytest
from PIL import Image

from qvl_core.errors import BadInput
from qvl_data.convert import convert, write_samples
from qvl_data.dataset import Dataset
from qvl_data.errors import BadSample

from .chats import build, file_of, picture, write_png


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
    assert sorted(source.parent.rglob("*")) == sorted([*before, source.parent / "openai.jsonl"])


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
        from qvl_data.sample import read_sample

        out = tmp_path / str(abs(hash(origin)))
        write_samples([read_sample(data)], out / "a.jsonl")
        assert [path.parent.name for path in out.rglob("*.png")] == ["media"]


def test_a_folder_is_converted_split_by_split(source, tmp_path):
    (source.parent / "test.jsonl").write_text(source.read_text())
    counts = convert(source.parent, tmp_path / "out")
    assert {file.name: count for file, count in counts.items()} == {"test.parquet": 2, "train.parquet": 2}
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
    convert(source, tmp_path / "out.parquet")
    with pytest.raises(BadInput, match="is already there; remove it or choose another name"):
        convert(source, tmp_path / "out.parquet")
    with pytest.raises(BadInput, match=r"Parquet holds qvl samples; for openai name the file \.jsonl"):
        convert(source, tmp_path / "b.parquet", "openai")
    with pytest.raises(BadInput, match=r"write \.parquet or \.jsonl"):
        convert(source, tmp_path / "b.csv")
    write_png(tmp_path / "other/photos/0.png", picture(4, 4))
    with pytest.raises(BadInput, match="another file of this name is already there"):
        convert(source, tmp_path / "other/train.jsonl")


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
