"""What opening a large file and reading from it in random order takes in memory, in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from qvl_data.dataset import open_rows
from qvl_data.writers import open_writer

from .chats import build

if sys.platform == "win32":
    pytest.importorskip("psutil", reason="tells peaks of memory")

MIB = 1 << 20
CHILD = """
import random, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from peak import peak
from qvl_data.dataset import open_rows

small, large, outline = Path(sys.argv[1]), Path(sys.argv[2]), random.Random(0)
open_rows(small)[0]
before = peak()
rows = open_rows(large)
for _ in range(200):
    rows[outline.randrange(len(rows))]
print(len(rows), peak() - before)
"""


def write(file, size):
    """A file of rows of about 1 kB, `size` bytes in all; returns how many rows."""
    count = size // 1000
    text = 'é] [look, \\\\ at \\"this\\" {closely} ' * 26
    if file.suffix == ".tar":
        with open_writer(file) as out:
            for number in range(count // 20):
                out.write(build(("user", text * 20), ("assistant", "x"), id=str(number)))
        return count // 20
    start, between, end = {".jsonl": ("", "\n", "\n"), ".json": ("[", ", ", "]"), ".csv": ("n,text\n", "\n", "\n")}[
        file.suffix
    ]
    with file.open("w", encoding="utf-8", newline="\n") as out:
        out.write(start)
        for number in range(count):
            quoted = text.replace('\\"', '""')
            row = f'{number},"{quoted}"' if file.suffix == ".csv" else f'{{"n": {number}, "text": "{text}"}}'
            out.write((between if number else "") + row)
        out.write(end)
    return count


def growth(tmp_path, suffix, size):
    """Bytes that the peak of memory grows by over that of reading a small file."""
    small, large = tmp_path / f"small{suffix}", tmp_path / f"large{suffix}"
    write(small, 40_000)
    rows = write(large, size)
    count, grown = measured(CHILD, small, large)
    assert count == rows
    return grown


def measured(child, small, large):
    """How many rows the child saw in the large file, and what that took."""
    command = [sys.executable, "-c", child, str(small), str(large), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True)
    count, grown = map(int, done.stdout.split())
    return count, grown


def test_growth_is_measured_whatever_this_process_holds(tmp_path):
    """A child must not be told the peak of the process that started it."""
    write(tmp_path / "a.jsonl", 40_000)
    ballast = b"x" * (200 * MIB)
    child = CHILD.replace("rows = open_rows(large)", f"rows = open_rows(large); held = b'x' * {40 * MIB}")
    _, grown = measured(child, tmp_path / "a.jsonl", tmp_path / "a.jsonl")
    assert 30 * MIB < grown < len(ballast)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tar"])
def test_a_file_is_not_held_in_memory(tmp_path, suffix):
    assert growth(tmp_path, suffix, 24 * MIB) < 8 * MIB


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tar"])
def test_a_large_file_takes_some_bytes_a_row(tmp_path, suffix):
    assert growth(tmp_path, suffix, 400 * MIB) < 32 * MIB


def test_an_array_on_one_line_with_one_huge_string(tmp_path):
    """Neither is carried along while the file is scanned."""
    file = tmp_path / "a.json"
    with file.open("w", encoding="utf-8") as out:
        out.write('[{"a": "' + '\\"[' * (8 * MIB) + '"}, {"a": 1}]')
    small = tmp_path / "b.json"
    small.write_text(json.dumps([{"a": 1}]), encoding="utf-8")
    child = CHILD.replace("rows[outline.randrange(len(rows))]", "rows[1]")
    count, grown = measured(child, small, file)
    assert count == 2
    assert grown < 6 * MIB
    with pytest.raises(Exception, match="longer than 16 MiB"):
        open_rows(file)[0]
