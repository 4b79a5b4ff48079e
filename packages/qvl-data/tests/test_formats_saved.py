"""Sets as people have them on disk: tables with Image columns, folders saved by `datasets`."""

import csv

import pytest

from qvl_data.convert import convert
from qvl_data.dataset import Dataset
from qvl_data.formats import get_format

from .chats import file_of, picture

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
