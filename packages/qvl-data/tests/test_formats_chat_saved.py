"""Chats as they lie on disk: Parquet with Image columns, folders saved by `datasets`, into Parquet, back to lines."""

import json

import pytest

from qvl_data.convert import write_samples
from qvl_data.dataset import Dataset
from qvl_data.formats import get_format

from .chats import file_of, picture


def cell(seed):
    return {"bytes": file_of(picture(16, 12, seed)), "path": f"{seed}.png"}


KODOC = [
    {
        "id": number,
        "image": cell(number),
        "conversations": [
            {"role": "user", "content": json.dumps([{"type": "image"}, {"type": "text", "text": "표는 무엇을 보여?"}])},
            {"role": "assistant", "content": json.dumps([{"type": "text", "text": "매출이다."}], ensure_ascii=False)},
            {"role": "user", "content": "그리고?"},
            {"role": "assistant", "content": '[{"매출": 5}]'},
        ],
        "metadata": {"source": "한글", "page": number},
    }
    for number in range(3)
]
MESSAGES = [
    {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "image", "text": None}, {"type": "text", "text": "What?"}] * number
                + [{"type": "text", "text": "Say."}],
            },
            {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
        ],
        "images": [cell(seed) for seed in range(number)],
        "score": 0.5,
    }
    for number in range(3)
]
PAIRS = [
    {
        "images": [cell(0), cell(1)],
        "texts": [{"user": "What?", "assistant": "A cat."}, {"user": "And?", "assistant": "A dog."}],
        "source": "vqa",
    }
]
LLAVA = [
    {
        "id": "7",
        "image": cell(0),
        "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}],
        "data_source": "x",
    },
    {"id": "8", "image": None, "conversations": [{"from": "human", "value": "Hi"}], "data_source": "x"},
]
SETS = [("kodoc", KODOC), ("hf", MESSAGES), ("hf", PAIRS), ("qwenvl", LLAVA)]


def features(datasets, name, rows):
    """As the hub declares them: Image columns, everything else as Arrow sees it."""
    plain = [{key: value for key, value in row.items() if key not in ("image", "images")} for row in rows]
    found = datasets.Dataset.from_list(plain).features
    column = "image" if "image" in rows[0] else "images"
    image = datasets.Image(decode=False)
    return datasets.Features(found | {column: image if column == "image" else datasets.List(image)})


@pytest.mark.parametrize(("name", "rows"), SETS)
@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_sets_of_the_hub_go_through(tmp_path, name, rows, kind):
    datasets = pytest.importorskip("datasets", reason="needs the extra hub")
    data = datasets.Dataset.from_list(rows, features(datasets, name, rows))
    source = tmp_path / ("source.parquet" if kind == "parquet" else "source")
    data.to_parquet(source) if kind == "parquet" else data.save_to_disk(source)
    samples = list(Dataset(source))
    form = get_format(name)
    assert [form.write(sample) for sample in samples] == rows
    pictures = [sample.opener.open(media).tobytes() for sample in samples for media in sample.media]
    assert pictures

    write_samples(samples, tmp_path / "kept.parquet")
    kept = list(Dataset(tmp_path / "kept.parquet"))
    assert [form.write(sample) for sample in kept] == rows
    assert [sample.opener.open(media).tobytes() for sample in kept for media in sample.media] == pictures

    write_samples(kept, tmp_path / "lines.jsonl", name)
    lines = Dataset(tmp_path / "lines.jsonl")
    assert type(lines.format) is type(form)
    assert [[message.parts for message in sample.messages] for sample in lines] == [
        [message.parts for message in sample.messages] for sample in samples
    ]
    assert [sample.opener.open(media).tobytes() for sample in lines for media in sample.media] == pictures


def test_rows_handed_over_by_datasets(tmp_path):
    """Decoded rows, with PIL pictures in them, say the same."""
    datasets = pytest.importorskip("datasets", reason="needs the extra hub")
    found = features(datasets, "kodoc", KODOC)
    row = datasets.Dataset.from_list(KODOC, found).cast_column("image", datasets.Image())[1]
    sample = get_format("kodoc").read(row, "")
    assert sample.opener.open(sample.media[0]).tobytes() == picture(16, 12, 1).tobytes()
    assert [message.text for message in sample.messages][1] == "매출이다."
