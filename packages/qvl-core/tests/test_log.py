import io
import json
import math
import sys
import time
from pathlib import Path

import pytest

from qvl_core.errors import BadInput
from qvl_core.run import RunFolder
from qvl_core.training.log import (
    RunLog,
    duration,
    event_line,
    memory_gb,
    peak_flops,
    step_line,
    value_text,
)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


# --- formatting


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.4, "59s"), (59.6, "1m 00s"), (192, "3m 12s"), (7500, "2h 05m"), (273600, "3d 04h")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_step_line() -> None:
    figures = {
        "loss": 2.34512,
        "lr": 1.9e-4,
        "grad_norm": 0.83,
        "tokens_per_second": 12345.4,
        "mfu": 0.412,
        "memory_gb": 21.34,
        "nonfinite": 0,
        "anything_else": 1,
    }
    assert step_line(120, 1000, figures, 192) == (
        "step  120/1000   12%  loss 2.3451  lr 1.9e-04  norm 0.83  12,345 tok/s  MFU 41.2%  mem 21.3 GB  ETA 3m 12s"
    )
    assert step_line(9, 9, {"loss": math.nan, "nonfinite": 2}, None) == "step 9/9  100%  loss nan  nonfinite 2"
    assert step_line(1, 9, {"loss": 1.0, "grad_norm": None}, None) == "step 1/9   11%  loss 1.0000"


def test_event_line() -> None:
    fields = {"validation_loss": 0.35123, "samples": ["a", "b"], "tokens": 12345, "best": True}
    assert event_line(3, "evaluation", fields) == (
        "step 3  evaluation  validation_loss 0.3512  samples a, b  tokens 12,345  best true"
    )
    assert value_text(list(range(10))) == "0, 1, 2, 3, 4, 5, 6, 7, and 2 more"
    assert value_text(None) == "none"


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA H200 MIG 1g.18gb", None),
        ("Some GPU 9000", None),
    ],
)
def test_peak(name: str, tflops: float | None) -> None:
    assert peak_flops(name) == (None if tflops is None else tflops * 1e12)


@pytest.mark.skipif(sys.platform == "win32", reason="not measured on Windows")
def test_memory_is_plausible() -> None:
    assert 0.01 < (memory_gb() or 0) < 100


# --- the log


def test_lines_and_records(run: RunFolder) -> None:
    screen = io.StringIO()
    log = RunLog(run, 4, stream=screen)
    log.step(1, {"loss": 2.0, "lr": 1e-3, "grad_norm": 0.5}, tokens=1000)
    log.event(2, "checkpoint", path="checkpoints/step-000002")
    log.step(2, {"loss": math.nan, "nonfinite": 1}, tokens=1000)
    log.step(4, {"loss": 1.0, "loss/flow": 0.3}, tokens=2000)
    log.close()
    log.close()

    lines = screen.getvalue().splitlines()
    assert lines[0].startswith("step 1/4   25%  loss 2.0000  lr 1.0e-03  norm 0.50  ")
    assert lines[1] == "step 2  checkpoint  path checkpoints/step-000002"
    assert "loss nan" in lines[2]
    assert "nonfinite 1" in lines[2]
    assert lines[3].endswith("ETA 0s")
    assert len(lines) == 4
    first, checkpoint, second, last = run.read_metrics()
    assert first["tokens_per_second"] > 0
    assert checkpoint == {"step": 2, "event": "checkpoint", "path": "checkpoints/step-000002"}
    assert second["loss"] is None
    assert (last["loss"], last["loss/flow"]) == (1.0, 0.3)


def test_speed_leaves_out_pauses_and_mfu_follows_it(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    log = RunLog(run, 100, start_step=10, flops_per_token=2e9, stream=(screen := io.StringIO()))
    log.peak = 4e12  # as two devices of 2 TFLOP/s
    clock += 2
    with log.paused():
        clock += 8
    record = log.step(20, {"loss": 1.0}, tokens=1000)
    assert record["tokens_per_second"] == 500.0
    assert record["mfu"] == 0.25
    assert "MFU 25.0%" in screen.getvalue()
    assert "ETA 1m 20s" in screen.getvalue()  # 10 steps took 10 s, pauses included; 80 are left
    clock += 4
    assert log.step(30, {"loss": 1.0}, tokens=1000)["tokens_per_second"] == 250.0


def test_mfu_counts_what_is_not_of_tokens(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    log = RunLog(run, 100, flops_per_token=2e9, flops_per_count=5e11, stream=io.StringIO())
    log.peak = 4e12
    clock += 2
    assert log.step(20, {"loss": 1.0}, tokens=1000, count=4)["mfu"] == 0.5  # (2e12 + 2e12) in two seconds


def test_other_ranks_are_silent(run: RunFolder) -> None:
    log = RunLog(run, 4, to=["tensorboard"], rank=1, stream=(screen := io.StringIO()))
    with log.paused():
        log.step(1, {"loss": 2.0}, tokens=1)
    log.event(1, "checkpoint")
    log.close()
    assert screen.getvalue() == ""
    assert list(run.path.iterdir()) == []


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_one_line_in_place_and_events_above(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "60")
    screen = Terminal()
    log = RunLog(run, 2, stream=screen)
    log.step(1, {"loss": 2.0}, tokens=1)
    log.event(1, "evaluation", answer="[bold]not markup[/bold]")
    log.step(2, {"loss": 1.0}, tokens=1)
    log.close()
    text = screen.getvalue()
    assert "step 1/2" in text
    assert "step 2/2" in text
    assert "[bold]not markup[/bold]" in text
    assert "\x1b[2K" in text  # the line is drawn over
    assert text.count("\n") <= 3


# --- sinks


def test_tensorboard(run: RunFolder) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = RunLog(run, 3, to=["tensorboard"], stream=io.StringIO())
    log.step(1, {"loss": 2.0}, tokens=10)
    log.event(1, "evaluation", validation_loss=0.5, note="text is not a figure")
    log.close()
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 2.0)]
    assert [event.value for event in events.Scalars("evaluation/validation_loss")] == [0.5]


@pytest.mark.slow
def test_wandb_offline_continues_its_run(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run.write_recipe("version: 1\n")
    for start in (0, 1):
        log = RunLog(run, 3, to=["wandb"], start_step=start, stream=io.StringIO())
        log.step(start + 1, {"loss": 2.0}, tokens=10)
        log.close()
    identity = (run.path / "wandb-id.txt").read_text()
    assert {file.name for file in (run.path / "wandb").glob("offline-run-*/*.wandb")} == {f"run-{identity}.wandb"}


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_a_missing_sink_gives_the_install_line(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, name: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BadInput, match=rf'pip install "qvl-core\[{name}\]"'):
        RunLog(run, 3, to=[name], stream=io.StringIO())


def test_metrics_can_be_read_by_any_json_reader(run: RunFolder) -> None:
    RunLog(run, 3, stream=io.StringIO()).step(1, {"loss": math.inf}, tokens=10)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    for line in run.metrics_file.read_text().splitlines():
        json.loads(line, parse_constant=refuse)
