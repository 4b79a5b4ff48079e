"""The vocabulary head's loss step (forward and backward), three ways, at the real vocabulary.

    python benchmarks/head.py [--quick]

full      logits of every row, then cross-entropy that ignores the rows without label: what the library's loss does
labels    logits of the label rows only
chunked   label rows only, a chunk of logits at a time (qvl_core.qwen3vl.head): what QVL does

1024 rows, 20 % of them with a label, fp32, one thread. Arms take turns, so that a busy machine is unfair to none; time
is CPU time. Memory is the highest resident size over the size before the step, each arm in a process of its own.
Writes benchmarks/results/head.json. Must hold: chunked <= 1/4 of the time and <= 1/5 of the memory of full.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from arms import record
from torch import Tensor
from torch.nn.functional import cross_entropy

from qvl_core.qwen3vl.head import CHUNK, label_nll

ROWS, VOCABULARY, LABELLED = 1024, 151_936, 0.2
RESULT = Path(__file__).parent / "results" / "head.json"
Case = tuple[Tensor, Tensor, Tensor, Tensor]  # hidden (1024, D), weight (V, D), targets (1024,), label rows (N,)


def full(hidden: Tensor, weight: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
    labels = torch.full_like(targets, -100).index_copy(0, rows, targets[rows])
    return cross_entropy((hidden @ weight.T).float(), labels, ignore_index=-100, reduction="sum")


def labels(hidden: Tensor, weight: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
    return cross_entropy((hidden[rows] @ weight.T).float(), targets[rows], reduction="sum")


def chunked(hidden: Tensor, weight: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
    return label_nll(hidden[rows], weight, targets[rows])[0]


ARMS: dict[str, Callable[..., Tensor]] = {"full": full, "labels": labels, "chunked": chunked}


def case(width: int, trained: bool) -> Case:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, width, generator=generator, requires_grad=True)
    weight = torch.empty(VOCABULARY, width).normal_(std=0.02, generator=generator).requires_grad_(trained)
    targets = torch.randint(VOCABULARY, (ROWS,), generator=generator)
    rows = torch.randperm(ROWS, generator=generator)[: int(LABELLED * ROWS)].sort().values
    return hidden, weight, targets, rows


def step(arm: str, inputs: Case) -> tuple[float, float]:
    """Loss and the norm of the hidden states' gradient after one forward and backward."""
    hidden, weight = inputs[:2]
    hidden.grad = weight.grad = None
    loss = ARMS[arm](*inputs)
    loss.backward()
    assert hidden.grad is not None
    return loss.item(), hidden.grad.norm().item()


def peak() -> int:
    """Highest resident size of this process so far, in bytes."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024


def extra_memory(arm: str, width: int, trained: bool) -> float:
    """MiB that one step adds, measured in a fresh process."""
    command = [sys.executable, __file__, "--memory-of", arm, "--width", str(width), "--trained", str(int(trained))]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def print_extra_memory(arm: str, width: int, trained: bool) -> None:
    inputs = case(width, trained)
    ARMS[arm](torch.randn(4, width), torch.randn(8, width), torch.zeros(4, dtype=torch.long), torch.arange(4))  # load
    before = psutil.Process().memory_info().rss
    step(arm, inputs)
    print((peak() - before) / 2**20)


def measure(width: int, trained: bool, repeats: int, memory: dict[str, float]) -> dict[str, Any]:
    inputs = case(width, trained)
    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    figures = {arm: step(arm, inputs) for arm in ARMS}  # warm-up
    for arm in list(ARMS) * repeats:
        start = time.process_time()
        step(arm, inputs)
        seconds[arm].append(time.process_time() - start)
    medians = {arm: statistics.median(times) for arm, times in seconds.items()}
    return {
        "width": width,
        "head_trained": trained,
        "repeats": repeats,
        "cpu_seconds": {arm: spread(times) for arm, times in seconds.items()},
        "extra_mib": {arm: round(mib, 1) for arm, mib in memory.items()},
        "loss": {arm: loss for arm, (loss, _) in figures.items()},
        "gradient_norm": {arm: norm for arm, (_, norm) in figures.items()},
        "time_ratio": round(medians["chunked"] / medians["full"], 4),
        "memory_ratio": round(memory["chunked"] / memory["full"], 4),
    }


def spread(values: list[float]) -> dict[str, float]:
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    return {"p10": round(tenths[0], 4), "median": round(tenths[4], 4), "p90": round(tenths[8], 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one narrow case, two repeats; writes nothing")
    parser.add_argument("--memory-of", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--width", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--trained", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.memory_of:
        print_extra_memory(arguments.memory_of, arguments.width, bool(arguments.trained))
        return

    plan = [(256, False, 2)] if arguments.quick else [(512, False, 7), (512, True, 5), (2048, False, 3)]
    # First, while this process is small: Linux lets a child start from its parent's peak.
    memories = [{arm: extra_memory(arm, width, trained) for arm in ARMS} for width, trained, _ in plan]
    results = []
    print(f"{'width':>6} {'head':>8} {'arm':>8} {'CPU s':>8} {'p10':>7} {'p90':>7} {'extra MiB':>10} {'loss':>12}")
    for (width, trained, repeats), memory in zip(plan, memories, strict=True):
        result = measure(width, trained, repeats, memory)
        results.append(result)
        for arm in ARMS:
            times = result["cpu_seconds"][arm]
            print(
                f"{width:>6} {'trained' if trained else 'frozen':>8} {arm:>8} {times['median']:>8.3f} "
                f"{times['p10']:>7.3f} {times['p90']:>7.3f} {result['extra_mib'][arm]:>10.1f} "
                f"{result['loss'][arm]:>12.4f}"
            )
        print(f"{'':>15} chunked / full: time {result['time_ratio']}, memory {result['memory_ratio']}")
    if arguments.quick:
        return
    record.write(
        RESULT,
        record.versions("torch"),
        machine={"threads": 1},
        rows=ROWS,
        vocabulary=VOCABULARY,
        labelled=LABELLED,
        chunk_logits=CHUNK,
        results=results,
    )


if __name__ == "__main__":
    main()
