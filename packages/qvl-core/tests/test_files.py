import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qvl_core.errors import BadInput, QVLError
from qvl_core.files import fsync_folder, new_folder, sha256, write_atomic
from qvl_core.testing import operations


def test_text_is_utf8_with_unix_newlines_and_bytes_are_kept(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", "数字\n한글\n")
    write_atomic(tmp_path / "b", b"\x00\r\n\xff")
    assert (tmp_path / "a").read_bytes() == "数字\n한글\n".encode()
    assert (tmp_path / "b").read_bytes() == b"\x00\r\n\xff"


def test_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", "old")
    write_atomic(tmp_path / "a", "new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "new"


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("code", "words"), [(errno.ENOSPC, "no space left"), (errno.EDQUOT, "no space left"), (errno.EIO, "error")]
)
def test_a_failing_disk_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, words: str
) -> None:
    target = tmp_path / "manifest.json"
    write_atomic(target, "old")

    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(QVLError, match=f"manifest.json: .*{words}") as caught:
        write_atomic(target, "new")
    assert caught.value.exit_code == 1
    assert str(caught.value).count("\n") == 0
    assert target.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["manifest.json"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no resource limits")
def test_a_write_the_system_really_cuts_short(tmp_path: Path) -> None:
    """The kernel refuses the second half of the content, as a full disk does."""
    target = tmp_path / "weights"
    target.write_text("old")
    code = f"""
import resource
from pathlib import Path
from qvl_core.errors import QVLError
from qvl_core.files import write_atomic
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    write_atomic(Path({str(target)!r}), b"x" * 8192)
except QVLError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "weights: no space left" in done.stdout
    assert target.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["weights"]


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is POSIX")
def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "state"
    target.write_text("old")
    code = f"""
import os, signal
from pathlib import Path
from qvl_core.files import write_atomic
os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
write_atomic(Path({str(target)!r}), "new")
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert target.read_text() == "old"


def test_file_operations_are_named_and_left_as_they_were(tmp_path: Path) -> None:
    real = os.replace
    with operations() as done:
        write_atomic(tmp_path / "a", "x")
    assert done[:2] == ["fsync", "replace"]
    assert os.replace is real


def test_a_missing_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(QVLError, match="gone"):
        write_atomic(tmp_path / "gone" / "a", "x")


def test_sha256_and_folders(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "a").write_bytes(content)
    assert sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()
    fsync_folder(tmp_path)


def test_a_new_folder_is_whole_or_absent(tmp_path: Path) -> None:
    (tmp_path / ".new.partial").mkdir()
    (tmp_path / ".new.partial" / "left by a killed writer").touch()
    writer = new_folder(tmp_path / "new")
    (writer.__enter__() / "a").touch()
    assert not writer.__exit__(RuntimeError, RuntimeError(), None)
    assert not list(tmp_path.iterdir())
    with new_folder(tmp_path / "new") as aside:
        (aside / "a").touch()
        assert not (tmp_path / "new").exists()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["new", "new/a"]


def test_a_new_folder_takes_an_empty_place_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    with new_folder(tmp_path / "new") as aside:
        (aside / "a").touch()
    for _ in range(2):
        with pytest.raises(BadInput, match="new: is already there; choose a new folder"), new_folder(tmp_path / "new"):
            pass
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["a"]
