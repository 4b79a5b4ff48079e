"""What benchmarks/learning.py measures holds: LoRA teaches each module group, and replay keeps what was known."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_lora_teaches_each_group_and_replay_keeps_what_was_known(tmp_path: Path) -> None:
    file = tmp_path / "learning.json"
    command = [sys.executable, str(ROOT / "benchmarks/learning.py"), "--seeds", "0", "--out", str(file)]
    subprocess.run(command, cwd=tmp_path, check=True)
    found = json.loads(file.read_text(encoding="utf-8"))["mean"]
    for group, bar in {"llm": 0.9, "merger": 0.88, "vision": 0.6}.items():
        assert found[f"{group}_mirrored"] >= bar, (group, found)
        assert found["base_mirrored"] + 0.1 <= found[f"{group}_mirrored"], group  # more than was known before
        assert found[f"{group}_shuffled"] <= 0.2, (group, found)  # chance is 0.1
    assert found["replay_parity"] >= 0.9
    assert found["no_replay_parity"] >= 0.9  # both learn the new question,
    assert found["replay_digits"] >= 0.9
    assert found["no_replay_digits"] <= 0.5  # and one of them forgets the old one
