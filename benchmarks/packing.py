"""Packing a million lengths into bins of 4,096 tokens, with the bin of every sample.

    python benchmarks/packing.py [--quick]

qvl            qvl_data.pack.pack: best-fit decreasing on the histogram, bins shuffled
qvl, pictures  the same with 0 to 5 pictures in each sample and at most 16 in a bin
windows        best-fit decreasing in windows of 4,096 samples, as training does it without a plan
next fit       samples in their order, a new bin when the next one does not fit

Lengths are lognormal(6.2, 0.9) clipped to 8..4096. Time is CPU time of one thread, the median of five runs (windows and
next fit: one). Writes benchmarks/results/packing.json. Must hold for qvl: at most 2 s, fill at least 99.9 %, every
index exactly once, capacity never exceeded.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from arms import record
from numpy.typing import NDArray

from qvl_core.training.batches import WINDOW, best_fit
from qvl_data.pack import Plan, pack

CAPACITY = 4096
PICTURES = 16
RESULT = Path(__file__).parent / "results" / "packing.json"


def windows(lengths: NDArray[np.int64]) -> int:
    """Bins when each window is packed by itself."""
    spans = (range(start, min(start + WINDOW, len(lengths))) for start in range(0, len(lengths), WINDOW))
    return sum(len(best_fit({index: int(lengths[index]) for index in span}, CAPACITY)) for span in spans)


def next_fit(lengths: NDArray[np.int64]) -> int:
    bins, room = 0, 0
    for length in lengths.tolist():
        if length > room:
            bins, room = bins + 1, CAPACITY
        room -= length
    return bins


def timed(work: Callable[[], int], repeats: int) -> tuple[int, float]:
    """Bins, and the median of CPU seconds."""
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        bins = work()
        seconds.append(time.process_time() - started)
    return bins, statistics.median(seconds)


def check(plan: Plan, count: int) -> None:
    assert np.array_equal(np.sort(plan.samples), np.arange(count)), "every index exactly once"
    assert plan.loads.max() <= CAPACITY, "capacity exceeded"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="50,000 lengths, once; writes nothing")
    quick = parser.parse_args().quick
    count, repeats = (50_000, 1) if quick else (1_000_000, 5)
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(6.2, 0.9, count), 8, CAPACITY).astype(np.int64)
    pictures = random.integers(0, 6, count)
    arms: dict[str, tuple[Callable[[], int], int]] = {
        "qvl": (lambda: len(pack(lengths, CAPACITY)), repeats),
        "qvl, pictures": (lambda: len(pack(lengths, CAPACITY, media=pictures, max_media=PICTURES)), repeats),
        "windows": (lambda: windows(lengths), 1),
        "next fit": (lambda: next_fit(lengths), 1),
    }
    check(pack(lengths, CAPACITY), count)
    check(pack(lengths, CAPACITY, media=pictures, max_media=PICTURES), count)
    total = int(lengths.sum())
    results: list[dict[str, Any]] = []
    for arm, (work, times) in arms.items():
        bins, seconds = timed(work, times)
        results.append(
            {"arm": arm, "bins": bins, "fill": round(total / bins / CAPACITY, 5), "cpu_s": round(seconds, 3)}
        )
        print(f"{arm:>14} {bins:>8} bins  fill {results[-1]['fill']:.3%}  {seconds:.3f} CPU-s")
    print(f"no packing needs fewer than {-(-total // CAPACITY)} bins")
    if quick:
        return
    record.write(
        RESULT,
        record.versions("numpy"),
        lengths=count,
        capacity=CAPACITY,
        least_bins=-(-total // CAPACITY),
        results=results,
    )
    if results[0]["cpu_s"] > 2 or results[0]["fill"] < 0.999:
        sys.exit("qvl: over 2 CPU-s or under 99.9 % fill")


if __name__ == "__main__":
    main()
