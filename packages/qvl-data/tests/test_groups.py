"""Packed groups: lists of rows in one row, read as samples of their own and written as groups again."""

import json
import pickle

import pytest

from qvl_data.dataset import Dataset
from qvl_data.errors import BadSample
from qvl_data.groups import SEARCHED, group_of
from qvl_data.writers import open_writer

GROUPS = [
    [{"conversations": [{"from": "human", "value": f"{group}.{member}"}], "id": member} for member in range(size)]
    for group, size in enumerate((3, 1, 2))
]
ALONE = {"conversations": [{"from": "human", "value": "alone"}]}


@pytest.fixture(params=["jsonl", "json"])
def packed(tmp_path, request):
    rows = [*GROUPS, ALONE, [], GROUPS[0][:1]]
    file = tmp_path / f"packed.{request.param}"
    text = "\n".join(map(json.dumps, rows)) if request.param == "jsonl" else json.dumps(rows)
    file.write_text(text, encoding="utf-8")
    return file


def test_members_are_samples(packed):
    data = pickle.loads(pickle.dumps(Dataset(packed)))
    texts = [data[index].messages[0].text for index in (0, 1, 2, 3, 4, 5, 6, 8)]
    assert texts == ["0.0", "0.1", "0.2", "1.0", "2.0", "2.1", "alone", "0.0"]
    assert len(data) == 9
    with pytest.raises(BadSample, match="expected an object"):  # the empty group
        data[7]
    assert len({data.rows.place(index) for index in range(9)}) == 9
    assert data[5].place.endswith("(row 2 of 2)")
    assert data.rows.raw(0) is None
    assert json.loads(data.rows.raw(6)) == ALONE
    assert data[0].meta.locator.startswith("packed.json")


@pytest.mark.parametrize("first", [json.dumps(ALONE), "{broken", "[]", "[1"])
def test_the_first_row_need_not_be_a_group(first, tmp_path):
    file = tmp_path / "mixed.jsonl"
    file.write_text(f"{first}\n" * 3 + json.dumps(GROUPS[0]), encoding="utf-8")
    assert len(Dataset(file)) == 6
    assert Dataset(file)[4].messages[0].text == "0.1"


def test_a_file_without_groups_among_its_first_rows_is_read_as_it_is(tmp_path):
    file = tmp_path / "mixed.jsonl"
    file.write_text((json.dumps(ALONE) + "\n") * SEARCHED + json.dumps(GROUPS[0]), encoding="utf-8")
    assert len(Dataset(file)) == SEARCHED + 1


@pytest.mark.parametrize("through", [None, "qvl.jsonl", "qvl.parquet"])
def test_groups_are_written_again(packed, tmp_path, through):
    samples = [Dataset(packed)[index] for index in range(9) if index != 7]
    if through:
        with open_writer(tmp_path / through) as out:
            for sample in samples:
                out.write(sample)
        samples = list(Dataset(tmp_path / through))
    with open_writer(tmp_path / "again.jsonl", "qwenvl") as out:
        for sample in samples:
            out.write(sample)
    lines = (tmp_path / "again.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [*GROUPS, ALONE, GROUPS[0][:1]]
    with open_writer(tmp_path / "openai.jsonl", "openai") as out:
        for sample in samples:
            out.write(sample)
    assert len(Dataset(tmp_path / "openai.jsonl")) == 8
    assert group_of(samples[0], "openai") is None
