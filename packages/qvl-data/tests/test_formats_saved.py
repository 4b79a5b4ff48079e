"""Sets as people have them on disk: tables with Image columns, folders saved by `datasets`, archives, CSV."""

import csv
import json
import tarfile
from datetime import date
from io import BytesIO

import pytest

from qvl_data.convert import convert
from qvl_data.dataset import Dataset
from qvl_data.errors import BadSample
from qvl_data.formats import get_format
from qvl_data.writers import write

from .chats import file_of, picture, write_png

METAQUERY = get_format("metaquery")


def hub_rows():
    """Rows as the hub's Image columns hold them."""
    image = [{"bytes": file_of(picture(16, 12, seed)), "path": f"{seed}.png"} for seed in range(4)]
    return [
        {
            "source_images": image[:2],
            "source_captions": ["A cat.", "소파 위"],
            "prompt": "The cat on the sofa.",
            "target_image": image[2],
            "target_caption": "A cat lies on a sofa.",
        },
        {
            "source_images": image[3:],
            "source_captions": ["A dog."],
            "prompt": "A similar one.",
            "target_image": image[0],
            "target_caption": None,
        },
    ]


def check_goes_through(data, tmp_path):
    """Read, into Parquet, into JSONL in its own format: nothing is lost."""
    samples = list(data)
    assert [sample.task for sample in samples] == ["edit", "edit"]
    assert samples[0].opener.open(samples[0].media[2]).tobytes() == picture(16, 12, 2).tobytes()
    assert [METAQUERY.write(sample) for sample in samples] == hub_rows()
    kept = list(Dataset(tmp_path / "kept.parquet"))
    assert [METAQUERY.write(sample) for sample in kept] == hub_rows()


def test_a_parquet_file_with_image_columns_goes_through(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    schema = pa.schema(
        {"source_images": pa.list_(image), "source_captions": pa.list_(pa.string()), "prompt": pa.string()}
        | {"target_image": image, "target_caption": pa.string()}
    )
    pq.write_table(pa.Table.from_pylist(hub_rows(), schema), tmp_path / "instruct.parquet")
    convert(tmp_path / "instruct.parquet", tmp_path / "kept.parquet")
    check_goes_through(Dataset(tmp_path / "instruct.parquet"), tmp_path)


def test_a_folder_saved_by_datasets_goes_through(tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs the extra hub")
    features = datasets.Features(
        {
            "source_images": datasets.Sequence(datasets.Image()),
            "source_captions": datasets.Sequence(datasets.Value("string")),
        }
        | {
            "prompt": datasets.Value("string"),
            "target_image": datasets.Image(),
            "target_caption": datasets.Value("string"),
        }
    )
    datasets.Dataset.from_list(hub_rows(), features=features).save_to_disk(tmp_path / "saved")
    convert(tmp_path / "saved", tmp_path / "kept.parquet", split="train")
    check_goes_through(Dataset(tmp_path / "saved"), tmp_path)


def test_an_archive_that_datasets_has_read_goes_through(tmp_path):
    """Null where another row has a member; back in an archive, pictures are plain files."""
    datasets = pytest.importorskip("datasets", reason="needs the extra hub")
    image = [{"bytes": file_of(picture(16, 12, seed)), "path": f"{seed:09d}.jpg"} for seed in range(3)]
    rows = [
        {"__key__": "0", "jpg": image[0], "png": None, "txt": "고양이", "json": {"width": 16, "caption": None}},
        {"__key__": "1", "jpg": None, "png": image[1], "txt": None, "json": {"width": 16, "caption": "a cat"}},
        {"__key__": "2", "jpg": image[2], "png": None, "txt": "a dog", "json": None},
    ]
    features = datasets.Features(
        {"__key__": datasets.Value("string"), "jpg": datasets.Image(), "png": datasets.Image()}
        | {"txt": datasets.Value("string")}
        | {"json": {"width": datasets.Value("int64"), "caption": datasets.Value("string")}}
    )
    datasets.Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "saved")
    data, wds = Dataset(tmp_path / "saved"), get_format("wds")
    assert [wds.write(sample) for sample in data] == rows
    write(data, tmp_path / "kept.parquet")
    assert [wds.write(sample) for sample in Dataset(tmp_path / "kept.parquet")] == rows
    write(data, tmp_path / "back.tar", "wds")
    back = Dataset(tmp_path / "back.tar")
    assert [sample.messages[0].text for sample in back] == ["고양이", "a cat", "a dog"]
    assert [sample.media[0].bytes for sample in back] == [cell["bytes"] for cell in image]
    assert back.rows[1].keys() == {"__key__", "png", "json"}


def test_a_csv_file_by_map(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(file_of(picture(8, 8)))
    with (tmp_path / "vqa.csv").open("w", encoding="utf-8-sig", newline="") as file:
        out = csv.DictWriter(file, ["image_path", "question", "answer"])
        out.writeheader()
        out.writerow({"image_path": "photos/a.png", "question": 'Two\nlines, "quoted"?', "answer": "네"})
        out.writerow({"image_path": "", "question": "No picture?", "answer": "7"})
    data = Dataset(tmp_path / "vqa.csv", columns={"image": "image_path", "user": "question", "assistant": "answer"})
    first, second = data
    assert first.messages[0].parts[1].text == 'Two\nlines, "quoted"?'
    assert first.opener.open(first.media[0]).size == (8, 8)
    assert (second.media, second.messages[1].text) == ((), "7")


def studies():
    """Rows of studies as a table holds them, with a column of dates that nothing reads."""
    image = [{"bytes": file_of(picture(24, 32, seed), "JPEG"), "path": f"{seed}.jpg"} for seed in range(3)]
    return [
        {
            "study_id": 50414267,
            "images": image[:2],
            "ViewPosition": ["LATERAL", "PA"],
            "findings": "Clear lungs.",
            "impression": "Normal.",
            "taken": date(2180, 5, 6),
        },
        {
            "study_id": 53189527,
            "images": image[2:],
            "ViewPosition": ["AP"],
            "findings": None,
            "impression": "Effusion.",
            "taken": None,
        },
    ]


def check_studies(data, tmp_path):
    mimic = get_format("mimic")
    first, second = data
    assert [media.origin for media in first.media] == ["1.jpg", "0.jpg"]
    assert (first.id, second.messages[1].text) == ("s50414267", "Effusion.")
    assert [mimic.write(sample) for sample in data] == studies()
    write(data, tmp_path / "kept.parquet")
    assert [mimic.write(sample) for sample in Dataset(tmp_path / "kept.parquet")] == studies()
    write(Dataset(tmp_path / "kept.parquet"), tmp_path / "lines" / "train.jsonl", "qwenvl")
    again = Dataset(tmp_path / "lines" / "train.jsonl")
    assert [sample.messages[1].text for sample in again] == [sample.messages[1].text for sample in data]
    assert again[0].opener.open(again[0].media[0]).size == (24, 32)


def test_studies_in_a_parquet_file(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(studies()), tmp_path / "mimic.parquet")
    check_studies(Dataset(tmp_path / "mimic.parquet"), tmp_path)


def test_studies_saved_by_datasets(tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs the extra hub")
    features = datasets.Features(
        {"study_id": datasets.Value("int64"), "images": datasets.Sequence(datasets.Image())}
        | {"ViewPosition": datasets.Sequence(datasets.Value("string")), "findings": datasets.Value("string")}
        | {"impression": datasets.Value("string"), "taken": datasets.Value("date32")}
    )
    saved = datasets.Dataset.from_list(studies(), features=features)
    datasets.DatasetDict({"train": saved}).save_to_disk(tmp_path / "saved")
    check_studies(Dataset(tmp_path / "saved", "train"), tmp_path)


LINES = {
    "edit": [
        {"source_image": ["a.png"], "target_image": "b.png", "instruction": "Mach es rot.", "id": 3},
        {
            "source_image": None,
            "edit_image": "c/d.png",
            "instruction": "",
            "instruction_cn": "猫",
            "inverse_instruction": None,
        },
    ],
    "metaquery": [
        {"source_images": ["a.png", "b.png"], "prompt": "Both.", "target_image": "c/d.png", "target_caption": None}
    ],
    "omniedit": [
        {"src_img": "a.png", "edited_img": "c/d.png", "edited_prompt_list": ["Rot.", "Mach es rot."], "o_score": 8.5},
    ],
    "flat": [
        {"images": ["a.png", "c/d.png"], "user": "<image>\nOr <image>?", "assistant": 7, "score": 0.5},
        {"image": "b.png", "user": " What? ", "assistant": "x", "system": None},
    ],
    "mimic": [{"study_id": 5, "images": [{"path": "a.png", "ViewPosition": ""}], "report": "IMPRESSION: Ok."}],
    "coco": [
        {
            "image": {"id": "x", "file_name": "a.png", "width": 8, "height": 8},
            "annotations": [{"id": 1, "category_id": 2, "bbox": [0.1, 0.2, 3, 4], "segmentation": {"counts": "a"}}],
            "categories": [{"id": 2, "name": "猫"}],
        }
    ],
}


@pytest.mark.parametrize("name", LINES)
def test_lines_come_back_from_parquet(tmp_path, name):
    for number, path in enumerate(("a.png", "b.png", "c/d.png")):
        write_png(tmp_path / path, picture(8, 8, number))
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in LINES[name])
    (tmp_path / "data.jsonl").write_text(lines, "utf-8", newline="\n")
    write(Dataset(tmp_path / "data.jsonl", format=name), tmp_path / "kept.parquet")
    write(Dataset(tmp_path / "kept.parquet"), tmp_path / "back" / "data.jsonl", name)
    back = (tmp_path / "back" / "data.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in back] == LINES[name]
    for sample in Dataset(tmp_path / "back" / "data.jsonl", format=name):
        assert all(sample.opener.open(media).size == (8, 8) for media in sample.media)


def test_an_archive_becomes_lines_of_text_to_image(tmp_path):
    with tarfile.open(tmp_path / "train-00000.tar", "w") as archive:
        for name, content in (("a/01.png", file_of(picture(8, 8))), ("a/01.txt", "고양이".encode())):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, BytesIO(content))
    write(Dataset(tmp_path, "train"), tmp_path / "kept.parquet")
    (sample,) = Dataset(tmp_path / "kept.parquet")
    assert get_format("wds").write(sample) == {
        "__key__": "a/01",
        "png": file_of(picture(8, 8)),
        "txt": "고양이".encode(),
    }
    write([sample], tmp_path / "lines" / "train.jsonl", "edit")
    line = json.loads((tmp_path / "lines" / "train.jsonl").read_text("utf-8"))
    assert line == {"id": "a/01", "source_image": None, "target_image": "a/01.png", "instruction": "고양이"}
    with pytest.raises(BadSample, match="cannot say"):
        write([sample], tmp_path / "chats.jsonl", "qwenvl")
