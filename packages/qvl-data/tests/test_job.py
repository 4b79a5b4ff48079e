"""The journal: what is done is not done again, what was cut off is, and nobody else's output is touched."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from qvl_core.errors import BadInput
from qvl_data.job import NAME, Job, beside, complete


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
    Job(home, "convert", [data], {"format": "qvl"}).step("a", Counted())
    with pytest.raises(
        BadInput, match=r"out: holds the output of another command \(options .*openai.*; choose another"
    ):
        Job(home, "convert", [data], {"format": "openai"})
    Job(tmp_path / "two", "convert", [data], {"format": "qvl", "size": 1}).step("a", Counted())
    with pytest.raises(BadInput, match=r'\(options \{"size": 1\}, now \{"size": 2\}\)'):
        Job(tmp_path / "two", "convert", [data], {"format": "qvl", "size": 2})
    with pytest.raises(BadInput, match=r"\(verb \"convert\", now \"dedup\"\)"):
        Job(home, "dedup", [data], {"format": "qvl"})
    data.write_text("12\n")
    with pytest.raises(BadInput, match=r"data\.jsonl has changed since this output was begun; add --fresh"):
        Job(home, "convert", [data], {"format": "qvl"})
    assert Job(home, "convert", [data], {"format": "qvl"}, fresh=True).result is None
    Job(home, "convert", [data], {"format": "qvl"})


def test_a_request_of_which_nothing_was_done_gives_way(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("1\n")
    home = tmp_path / "out"
    Job(home, "convert", [data], {"size": 1})
    Job(home, "dedup", [data], {"size": 2})
    data.write_text("12\n")
    job = Job(home, "dedup", [data], {"size": 2})
    job.step("a", Counted())
    del job
    assert Job(home, "dedup", [data], {"size": 2}).is_done("a")
    with pytest.raises(BadInput, match="another command"):
        Job(home, "convert", [data], {"size": 1})
    Job(home, "convert", [data], {"size": 1}, fresh=True)
    assert Job(home, "dedup", [data], {"size": 3}).dropped == ["a"], "of what was written before it still has to go"


def test_what_is_wrong_with_a_request_is_told_before_anything_is_written(tmp_path: Path) -> None:
    def refuse() -> None:
        raise BadInput("no.")

    with pytest.raises(BadInput, match="no"):
        Job(tmp_path / "out", "count", first=refuse)
    assert list(tmp_path.iterdir()) == []
    Job(tmp_path / "out", "count").finish(1)
    assert Job(tmp_path / "out", "count", first=refuse).result == 1


def test_scratch_of_another_request_is_started_over(tmp_path: Path) -> None:
    Job(tmp_path, "count", (), {"size": 1}, scratch=True).step("a", Counted())
    assert Job(tmp_path, "count", (), {"size": 1}, scratch=True).is_done("a")
    other = Job(tmp_path, "count", (), {"size": 2}, scratch=True)
    assert not other.is_done("a")
    other.finish(1)
    assert Job(tmp_path, "count", (), {"size": 1}, scratch=True).result is None
    (tmp_path / NAME).write_text("garbage\n")
    assert Job(tmp_path, "count", (), {"size": 1}, scratch=True).result is None


@pytest.mark.parametrize("name", ["out", "out/.validate", ".out.job", "out/.retry-1"])
def test_the_output_is_named(name: str, tmp_path: Path) -> None:
    Job(tmp_path / name, "count").step("a", Counted())
    with pytest.raises(BadInput, match=r"/out: holds the output of another command"):
        Job(tmp_path / name, "other")


def test_a_changed_file_in_a_folder_is_seen(tmp_path: Path) -> None:
    (tmp_path / "data" / "sub").mkdir(parents=True)
    (tmp_path / "data" / "sub" / "a.txt").write_text("a")
    Job(tmp_path / "out", "count", [tmp_path / "data"]).step("a", Counted())
    (tmp_path / "data" / ".hidden").write_text("x")
    Job(tmp_path / "out", "count", [tmp_path / "data"])
    (tmp_path / "data" / "sub" / "a.txt").write_text("ab")
    with pytest.raises(BadInput, match="data has changed"):
        Job(tmp_path / "out", "count", [tmp_path / "data"])


def test_a_file_is_there_when_it_is_complete(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "a.txt"

    def half(part: Path) -> None:
        part.write_text("half")
        raise RuntimeError

    with pytest.raises(RuntimeError), complete(file) as part:
        half(part)
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


def test_of_a_finished_job_only_the_step_whose_output_is_gone_is_done_anew(tmp_path: Path) -> None:
    work = Counted()

    def write(file: Path) -> dict[str, int]:
        file.write_text("x")
        return work()

    def run() -> Job:
        job = Job(tmp_path / "out", "count")
        if job.result is None:
            for name in ("a", "b", "c"):
                file = tmp_path / "out" / name
                job.step(name, partial(write, file), file)
            job.finish("done", [tmp_path / "out" / name for name in ("a", "b", "c")])
        return job

    run()
    assert (run().result, work.times) == ("done", 3)
    (tmp_path / "out/b").unlink()
    assert (run().result, work.times) == ("done", 4)
    assert (run().result, work.times) == ("done", 4)
    journal = tmp_path / "out" / NAME
    lines = journal.read_bytes().splitlines(keepends=True)
    assert b"gone" in lines[5]
    journal.write_bytes(b"".join(lines[:6]))  # killed when b was written, but not recorded
    assert (run().result, work.times) == ("done", 5)
    journal.write_bytes(b"".join(lines[:3]))  # killed after b ...
    (tmp_path / "out/a").unlink()  # ... and a removed
    assert (run().result, work.times) == ("done", 7)


def test_what_fresh_starts_over_is_known_until_it_is_done_again(tmp_path: Path) -> None:
    job = Job(tmp_path, "count", (), {"size": 1})
    for name in ("a", "b"):
        job.step(name, Counted())
    job.finish(2)
    assert Job(tmp_path, "count", (), {"size": 2}, fresh=True).dropped == ["a", "b"]
    again = Job(tmp_path, "count", (), {"size": 2})  # the first was killed before it could remove anything
    assert (again.result, again.dropped) == (None, ["a", "b"])
    again.step("b", Counted())
    assert Job(tmp_path, "count", (), {"size": 2}).dropped == ["a"]


@pytest.mark.parametrize(
    "line", [b"garbage\n", b"[1]\n", b"{}\n", b"\xff\n", b"[" * 100000 + b"\n", bytes(100) + b"\n"]
)
@pytest.mark.parametrize("kept", [0, 2])
def test_a_damaged_journal_is_named(line: bytes, kept: int, tmp_path: Path) -> None:
    job = Job(tmp_path, "count")
    job.step("a", Counted())
    lines = job.file.read_bytes().splitlines(keepends=True)
    job.file.write_bytes(b"".join(lines[:kept]) + line + b"".join(lines[kept:]))
    with pytest.raises(BadInput, match=rf"jsonl:{kept + 1}: is no line of a journal .*; add --fresh"):
        Job(tmp_path, "count")
    assert Job(tmp_path, "count", fresh=True).result is None
    assert not Job(tmp_path, "count").is_done("a")


def test_two_processes_are_not_at_work_in_one_place(tmp_path: Path) -> None:
    begin = "import sys, pathlib; from qvl_data.job import Job; job = Job(pathlib.Path(sys.argv[1]), 'count'); "
    child = subprocess.Popen(
        [sys.executable, "-c", begin + "print(flush=True); input(); job.finish(1)", str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout is not None
    child.stdout.readline()
    for fresh in (False, True):
        with pytest.raises(BadInput, match="another process is writing here; wait until it is done"):
            Job(tmp_path, "count", fresh=fresh)
    child.communicate("\n")
    assert Job(tmp_path, "count").result == 1


def test_a_finished_job_needs_no_writing(tmp_path: Path) -> None:
    Job(tmp_path / "out", "count").finish(1)
    (tmp_path / "out" / NAME).chmod(0o400)
    (tmp_path / "out").chmod(0o500)
    before = (tmp_path / "out" / NAME).stat().st_mtime_ns
    assert Job(tmp_path / "out", "count").result == 1
    assert (tmp_path / "out" / NAME).stat().st_mtime_ns == before
    (tmp_path / "out").chmod(0o700)


def test_names_of_any_kind(tmp_path: Path) -> None:
    folder = tmp_path / "two words \u2028 \u732b"
    folder.mkdir()
    (folder / "link").symlink_to("nowhere")
    inputs = [folder, Path("\udcff.jsonl")]
    Job(tmp_path / "out", "count", inputs, {"pair": (1, 2)}).finish(1)
    assert Job(tmp_path / "out", "count", inputs, {"pair": (1, 2)}).result == 1
