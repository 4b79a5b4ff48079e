import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from qvl_data.cli import app
from qvl_data.dataset import Dataset
from qvl_data.example.digits import KINDS


def run(*args, code=0):
    assert app.run([str(arg) for arg in args]) == code


@pytest.mark.parametrize(
    "verb", [[], ["convert"], ["stats"], ["validate"], ["view"], ["example"], ["example", "digits"]]
)
def test_help_is_cheap_and_loads_nothing_heavy(verb):
    code = (
        "import sys, time, atexit\n"
        "from qvl_data.cli import app\n"
        f"assert app.run([*{verb!r}, '--help']) == 0\n"
        "heavy = {'torch', 'transformers', 'pydantic', 'numpy', 'pyarrow', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "print(time.process_time())\n"
    )

    def seconds():
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", check=True
        )
        assert "Usage" in done.stdout
        return float(done.stdout.split()[-1])

    assert any(seconds() < 1.0 for _ in range(3))  # 0.3 on an idle machine; the bar is 0.5


def test_digits_converted_to_lines_and_viewed(tmp_path, capsys):
    run("example", "digits", tmp_path / "digits", "--kind", "digit", "--kind", "larger")
    assert "train.parquet: 2514 samples" in capsys.readouterr().out
    data = Dataset(tmp_path / "digits", "test")
    assert len(data) == 720
    run("convert", tmp_path / "digits", tmp_path / "lines.jsonl", "--split", "validation", "--format", "qwenvl")
    assert "lines.jsonl: 360 samples" in capsys.readouterr().out
    assert len(Dataset(tmp_path / "lines.jsonl")) == 360
    run("view", tmp_path / "digits", 1, "--split", "test")
    shown = capsys.readouterr().out
    assert "user: [image digits/" in shown
    assert "64 x 64]Which picture shows the larger digit" in shown.replace("][image", "][image")
    assert re.search("assistant: (first|second)", shown)


@pytest.mark.parametrize("format", ["openai", "qwenvl"])
def test_digits_as_lines(format, tmp_path):
    run("example", "digits", tmp_path, "--format", format, "--kind", "parity")
    data = Dataset(tmp_path, "validation")
    assert (len(data), data[0].meta.format) == (180, format)
    assert data[0].opener.open(data[0].media[0]).size == (64, 64)


def test_errors_are_one_sentence_and_exit_2(tmp_path, capfd):
    run("view", tmp_path / "gone.jsonl", code=2)
    run("example", "digits", tmp_path, "--kind", "colour", code=2)
    run("example", "digits", tmp_path, "--container", "csv", code=2)
    (tmp_path / "a.jsonl").write_text('{"messages": NaN}\n')
    run("view", tmp_path / "a.jsonl", code=2)
    run("view", tmp_path / "a.jsonl", 5, code=2)
    lines = capfd.readouterr().err.splitlines()
    assert lines[0].endswith("gone.jsonl: no such file or folder.")
    assert lines[1] == f'unknown kind of question "colour"; known are {", ".join(KINDS)}.'
    assert lines[2].endswith("train.csv: a .csv file holds flat; for qvl name the file .jsonl.")
    assert lines[3] == f"{tmp_path / 'a.jsonl'}:1: NaN is no JSON number; write null or a number."
    assert lines[4].endswith("a.jsonl: sample 5 of 1; the last is 0.")
    assert len(lines) == 5
    assert sorted(os.listdir(tmp_path)) == ["a.jsonl"]


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "qvl_data", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("qvl-data 0.")


def test_the_digits_travel_with_the_package():
    import qvl_data

    assets = Path(qvl_data.__file__).parent / "assets/digits"
    assert (assets / "digits.csv.gz").stat().st_size == 57523
    attribution = (assets / "ATTRIBUTION.md").read_text(encoding="utf-8")
    for words in ("E. Alpaydin", "C. Kaynak", "Attribution 4.0"):
        assert words in attribution
