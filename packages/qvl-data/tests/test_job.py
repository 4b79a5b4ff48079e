"""The journal: what is done is not done again, what was cut off is, and nobody else's output is touched."""

from pathlib import Path

import pytest

from qvl_core.errors import BadInput
from qvl_data.job import Job, beside, complete


class Counted:
    """Work that counts how often it was done."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> dict[str, int]:
        self.times += 1
        return {"times": self.times}


def test_a_step_is_done_once(tmp_path: Path) -> None:
    work = Counted()
    assert Job(tmp_path, "count").step("a", work) == {"times": 1}
    again = Job(tmp_path, "count")
    assert again.result is None
    assert again.step("a", work) == {"times": 1}
    assert again.step("b", work) == {"times": 2}
    again.finish({"steps": 2})
    assert Job(tmp_path, "count").result == {"steps": 2}
    assert Job(tmp_path, "count", fresh=True).result is None


@pytest.mark.parametrize("kept", [0, 1, 2, 3])
def test_a_journal_cut_off_anywhere(kept: int, tmp_path: Path) -> None:
    work = Counted()
    job = Job(tmp_path, "count")
    job.step("a", work)
    job.step("b", work)
    content = job.file.read_bytes()
    lines = content.splitlines(keepends=True)
    end = sum(map(len, lines[:kept]))
    for torn in range(end, min(end + len(lines[kept]) if kept < 3 else end, len(content)) + (kept == 3)):
        job.file.write_bytes(content[:torn])
        again, more = Job(tmp_path, "count"), Counted()
        again.step("a", more)
        again.step("b", more)
        assert more.times == 3 - max(kept, 1)
        assert len(job.file.read_bytes().splitlines()) == 3


def test_another_command_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("1\n")
    home = tmp_path / "out"
    Job(home, "convert", [data], {"format": "qvl"})
    with pytest.raises(BadInput, match=r"out: holds the output of another command \(options .*openai.*; choose another"):
        Job(home, "convert", [data], {"format": "openai"})
    with pytest.raises(BadInput, match=r"\(verb \"convert\", now \"dedup\"\)"):
        Job(home, "dedup", [data], {"format": "qvl"})
    data.write_text("12\n")
    with pytest.raises(BadInput, match=r"data\.jsonl has changed since this output was begun; add --fresh"):
        Job(home, "convert", [data], {"format": "qvl"})
    assert Job(home, "convert", [data], {"format": "qvl"}, fresh=True).result is None
    Job(home, "convert", [data], {"format": "qvl"})


def test_a_changed_file_in_a_folder_is_seen(tmp_path: Path) -> None:
    (tmp_path / "data" / "sub").mkdir(parents=True)
    (tmp_path / "data" / "sub" / "a.txt").write_text("a")
    Job(tmp_path / "out", "count", [tmp_path / "data"])
    (tmp_path / "data" / ".hidden").write_text("x")
    Job(tmp_path / "out", "count", [tmp_path / "data"])
    (tmp_path / "data" / "sub" / "a.txt").write_text("ab")
    with pytest.raises(BadInput, match="data has changed"):
        Job(tmp_path / "out", "count", [tmp_path / "data"])


def test_a_file_is_there_when_it_is_complete(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "a.txt"
    with pytest.raises(RuntimeError), complete(file) as part:
        part.write_text("half")
        raise RuntimeError
    assert list(file.parent.iterdir()) == []
    with complete(file) as part:
        part.write_text("whole")
        assert not file.exists()
    assert file.read_text() == "whole"
    assert beside(file) == tmp_path / "deep" / ".a.txt.job"


def test_a_finished_job_whose_output_is_gone_starts_over(tmp_path: Path) -> None:
    output = tmp_path / "a.txt"
    output.write_text("a")
    job = Job(tmp_path / "job", "count")
    job.step("a", Counted())
    job.finish(1, [output])
    assert Job(tmp_path / "job", "count").result == 1
    output.unlink()
    again = Job(tmp_path / "job", "count")
    assert (again.result, again.is_done("a")) == (None, False)
