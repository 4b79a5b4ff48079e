"""Windows hold each sample once, and their names say of which data they are."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from qvl_data.sources import Mixture
from qvl_data.windows import Windows


@pytest.fixture
def listed(tmp_path: Path) -> Callable[..., Mixture]:
    def make(name: str, count: int, said: str = "Yes.") -> Mixture:
        rows = [{"messages": [{"role": "user", "content": f"{name} {n}"}, {"role": "assistant", "content": said}]}
                for n in range(count)]  # fmt: skip
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return Mixture(str(tmp_path / f"{name}.jsonl"))

    return make


def test_each_sample_stands_in_one_window(listed: Callable[..., Mixture]) -> None:
    lists = (listed("a", 5), listed("b", 6))
    windows = Windows(lists, 4)
    assert [list(windows.numbers(window)) for window in range(len(windows))] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    found = [mixture.place(item) for mixture, item in map(windows.at, range(windows.samples))]
    assert found == [mixture.place(item) for mixture in lists for item in mixture.items()]
    with pytest.raises(IndexError):
        windows.at(11)


def test_names_are_of_the_data_and_of_what_is_asked(listed: Callable[..., Mixture]) -> None:
    one = listed("a", 5)
    names = Windows((one,), 4).names()
    assert len({*names}) == 2
    assert Windows((listed("a", 5),), 4).names() == names
    others = [Windows((one,), 5), Windows((one,), 4, "in Chinese"), Windows((one, one), 4)]
    others.append(Windows((listed("a", 5, "No."),), 4))
    assert all({*other.names()}.isdisjoint(names) for other in others)
