"""What training shows and writes: the live line, metrics.jsonl, and optional tensorboard and wandb.

    step 120/1000  12%  loss 2.3451  lr 1.9e-04  norm 0.83  12,345 tok/s  MFU 41.2%  mem 21.3 GB  ETA 3m 12s

On a terminal the line stays in place and events scroll above it; elsewhere every line is printed.
"""

import os
import re
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TextIO

from qvl_core.errors import BadInput
from qvl_core.run import RunFolder

# Dense bf16 TFLOP/s of one device, from the vendors' data sheets; the first entry whose words are all in the name.
PEAK_TFLOPS = {
    "B200": 2250,
    "H200": 989,
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H100": 989,
    "H800": 989,
    "A100": 312,
    "A800": 312,
    "L40S": 362,
    "L40": 181,
    "L4": 121,
    "A40": 150,
    "A10G": 70,
    "A10": 125,
    "RTX A6000": 155,
    "RTX 5090": 210,
    "RTX 4090": 165,
    "RTX 3090": 71,
    "MI300X": 1307,
}


def peak_flops(device: str) -> float | None:
    """Dense bf16 FLOP/s of a device by the name torch gives it; None if unknown, a laptop's, or a MIG slice."""
    words = set(re.split(r"[^A-Za-z0-9]+", device))
    if words & {"Laptop", "MIG"}:
        return None
    return next((peak * 1e12 for name, peak in PEAK_TFLOPS.items() if words.issuperset(name.split())), None)


def duration(seconds: float) -> str:
    """12s, 3m 12s, 2h 05m, 3d 04h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d {whole % 86400 // 3600:02d}h"


def value_text(value: Any) -> str:
    """A figure for people: 0.3512, 12,345, true; lists with commas, at most eight entries."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "none"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        shown = ", ".join(map(value_text, value[:8]))
        return f"{shown}, and {len(value) - 8:,} more" if len(value) > 8 else shown
    return str(value)


def step_line(step: int, total: int, figures: Mapping[str, Any], eta: float | None) -> str:
    """The line of one log step; a figure that is absent or None is left out."""
    templates = {
        "loss": "loss {:.4f}",
        "lr": "lr {:.1e}",
        "grad_norm": "norm {:.2f}",
        "tokens_per_second": "{:,.0f} tok/s",
        "mfu": "MFU {:.1%}",
        "memory_gb": "mem {:.1f} GB",
        "nonfinite": "nonfinite {:.0f}",
    }
    shown = [text.format(figures[name]) for name, text in templates.items() if figures.get(name) is not None]
    if not figures.get("nonfinite"):
        shown = [text for text in shown if not text.startswith("nonfinite")]
    if eta is not None:
        shown.append(f"ETA {duration(eta)}")
    width = len(str(total))
    return "  ".join([f"step {step:>{width}}/{total}", f"{step / total:4.0%}", *shown])


def event_line(step: int, kind: str, fields: Mapping[str, Any]) -> str:
    """The line of an event: a checkpoint, an evaluation, a step that was not applied, a resume."""
    return "  ".join([f"step {step}", kind, *(f"{name} {value_text(value)}" for name, value in fields.items())])


def memory_gb() -> float | None:
    """Peak memory of this process in GB: of the GPU if it computes on one, else resident; None on Windows."""
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 1e9
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


class RunLog:
    """Shows and records a run. On ranks other than 0 it does nothing.

    flops_per_token  forward and backward, of what is really computed; gives MFU where the device's peak is known
    flops_per_count  the same of each unit of the loss's denominator (a picture), beside those of tokens
    devices          how many devices the tokens are spread over
    start_step       the step resumed from
    """

    def __init__(
        self,
        run: RunFolder,
        total_steps: int,
        *,
        to: Sequence[str] = (),
        flops_per_token: float | None = None,
        flops_per_count: float = 0.0,
        start_step: int = 0,
        rank: int = 0,
        devices: int = 1,
        stream: TextIO | None = None,
    ) -> None:
        self.silent = rank != 0
        if self.silent:
            return
        self.run, self.total, self.start = run, total_steps, start_step
        self.flops_per_token, self.flops_per_count = flops_per_token, flops_per_count
        self.peak = _peak_flops_here(devices)
        self.began = self.last = time.monotonic()
        self.unmeasured = 0.0  # seconds since `last` that are not training
        self.sinks: list[Sink] = [_SINKS[name](run, start_step) for name in to]
        self.screen = _screen(stream or sys.stdout)

    def step(self, step: int, figures: Mapping[str, float], tokens: int, count: int = 0) -> dict[str, Any]:
        """Log `step`: its figures, and speed since the last log step, in which `tokens` real tokens were trained on.

        count  units of the loss's denominator in these steps

        Shown are loss, lr, grad_norm and nonfinite (steps not applied so far); all of `figures` are recorded.
        Returns the record.
        """
        if self.silent:
            return {}
        now = time.monotonic()
        seconds = max(now - self.last - self.unmeasured, 1e-9)
        self.last, self.unmeasured = now, 0.0
        record: dict[str, Any] = {"step": step, **figures, "tokens_per_second": round(tokens / seconds, 1)}
        if self.flops_per_token is not None and self.peak is not None:
            done = self.flops_per_token * tokens + self.flops_per_count * count
            record["mfu"] = round(done / seconds / self.peak, 4)
        if (memory := memory_gb()) is not None:
            record["memory_gb"] = round(memory, 3)
        record["elapsed"] = round(now - self.began, 3)
        self.run.append_metrics(record)
        self._send(step, record)

        eta = (now - self.began) / (step - self.start) * (self.total - step) if step > self.start else None
        self.screen.line(step / self.total, step_line(step, self.total, record, eta))
        return record

    def event(self, step: int, kind: str, /, **fields: Any) -> None:
        """Record and show something that happened: `checkpoint`, `evaluation`, `nonfinite`, `resume`, ..."""
        if self.silent:
            return
        self.run.append_metrics({"step": step, "event": kind, **fields})
        self._send(step, {f"{kind}/{name}": value for name, value in fields.items()})
        self.screen.event(event_line(step, kind, fields))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside (an evaluation, a save) does not lower the tokens per second; the ETA still counts it."""
        began = time.monotonic()
        try:
            yield
        finally:
            if not self.silent:
                self.unmeasured += time.monotonic() - began

    def close(self) -> None:
        """Leave the terminal as it was and finish the sinks; safe to call twice."""
        if self.silent:
            return
        self.screen.close()
        while self.sinks:
            self.sinks.pop().close()

    def _send(self, step: int, figures: Mapping[str, Any]) -> None:
        numbers = {name: float(value) for name, value in figures.items() if isinstance(value, int | float)}
        numbers.pop("step", None)
        for sink in self.sinks:
            sink.write(step, numbers)


def _peak_flops_here(devices: int) -> float | None:
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    peak = peak_flops(torch.cuda.get_device_name())
    return None if peak is None else peak * devices


class _Plain:
    """Lines for files and pipes."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def line(self, done: float, text: str) -> None:
        print(text, file=self.stream, flush=True)

    def event(self, text: str) -> None:
        print(text, file=self.stream, flush=True)

    def close(self) -> None:
        pass


class _Terminal:
    """One line in place with a bar before it; events scroll above."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        self.console = Console(file=stream)
        self.live = Live(console=self.console, auto_refresh=False)
        self.live.start()

    def line(self, done: float, text: str) -> None:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        row = Table.grid(padding=(0, 2))
        row.add_column(width=20)
        row.add_column(no_wrap=True, overflow="ellipsis")
        row.add_row(ProgressBar(total=1.0, completed=done), Text(text))
        self.live.update(row, refresh=True)

    def event(self, text: str) -> None:
        from rich.text import Text

        self.console.print(Text(text, style="dim"), soft_wrap=True)

    def close(self) -> None:
        self.live.stop()


def _screen(stream: TextIO) -> _Plain | _Terminal:
    return _Terminal(stream) if stream.isatty() else _Plain(stream)


class Sink(Protocol):
    """A further place for the figures."""

    def write(self, step: int, figures: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class _TensorBoard:
    """Event files in <run>/tensorboard; what was logged after the step resumed from is dropped."""

    def __init__(self, run: RunFolder, start_step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _missing("tensorboard") from error
        self.writer: Any = SummaryWriter(str(run.path / "tensorboard"), purge_step=start_step + 1)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class _WandB:
    """A Weights & Biases run that a resumed run continues. WANDB_PROJECT and WANDB_MODE are honoured."""

    def __init__(self, run: RunFolder, start_step: int) -> None:
        try:
            import wandb
        except ImportError as error:
            raise _missing("wandb") from error
        import yaml

        id_file = run.path / "wandb-id.txt"  # --fresh moves it aside with the folder, so a fresh run is a new one
        if not id_file.is_file():
            id_file.write_text(uuid.uuid4().hex, encoding="utf-8")
        recipe = yaml.safe_load(run.recipe_file.read_text(encoding="utf-8")) if run.recipe_file.is_file() else None
        try:
            self.session: Any = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "qvl"),
                dir=str(run.path),
                name=run.path.name,
                id=id_file.read_text(encoding="utf-8"),
                resume="allow",
                config=recipe,
                settings=wandb.Settings(console="off", silent=True),
            )
        except wandb.errors.Error as error:
            raise BadInput(
                f"log.to: wandb refused ({error}); run `wandb login`, set WANDB_MODE=offline, or remove it from log.to."
            ) from error

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        self.session.log(dict(figures), step=step)

    def close(self) -> None:
        self.session.finish()


_SINKS: dict[str, Callable[[RunFolder, int], Sink]] = {"tensorboard": _TensorBoard, "wandb": _WandB}


def _missing(name: str) -> BadInput:
    return BadInput(f'log.to: {name} is not installed; run `pip install "qvl-core[{name}]"` or remove it from log.to.')
