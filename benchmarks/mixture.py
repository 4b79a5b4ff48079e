"""A mixture of ten million samples: opening it, resuming anywhere, and what a position costs.

    python benchmarks/mixture.py [--quick]

Three sources of 6, 3 and 1 million rows with weights 0.5, 1 and 2.5, a fifth of the last one chosen. The rows say how
many they are and are never read, so that the figures are the mixture's own. Each figure is the median CPU time of five
processes; sequential and random are for 100,000 positions. Writes benchmarks/results/mixture.json. Must hold: opening
and resuming at the worst position together take less than 1 s.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

from arms import record

from qvl_core.recipe.blocks import Source
from qvl_data import dataset
from qvl_data.sources import Mixture

ROWS = {"6000000": Source(source="6000000", weight=0.5), "3000000": Source(source="3000000")}
ROWS["1000000"] = Source(source="1000000", percent=20, weight=2.5)
POSITIONS = (0, 1, 6_499_999, 10**9 + 7, 10**12)
RESULT = Path(__file__).parent / "results" / "mixture.json"


class Rows:
    """So many rows, none of which is ever read."""

    format = "qvl"

    def __init__(self, file: Path) -> None:
        self.count = int(file.name)

    def __len__(self) -> int:
        return self.count


def measure(count: int) -> dict[str, float]:
    """CPU seconds in this process."""
    started = time.process_time()
    with mock.patch.object(dataset, "data_files", lambda path, split: (path,)), \
            mock.patch.object(dataset, "open_rows", Rows):  # fmt: skip
        mixture = Mixture(list(ROWS.values()))
    opened = time.process_time()
    resumed = []
    for position in POSITIONS:
        before = time.process_time()
        mixture.locate(1, position)
        resumed.append(time.process_time() - before)
    before = time.process_time()
    for position in range(10**9, 10**9 + count):
        mixture.locate(1, position)
    sequential = time.process_time() - before
    noise = random.Random(0)
    places = [noise.randrange(10**9) for _ in range(count // 100)]
    before = time.process_time()
    for position in places:
        mixture.locate(1, position)
    scattered = (time.process_time() - before) * count / len(places)
    figures = {"open": opened - started, "resume_worst": max(resumed)}
    return figures | {"sequential_100k": sequential * 1e5 / count, "random_100k": scattered * 1e5 / count}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="10,000 positions, once; writes nothing")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
        return
    count, repeats = (10_000, 1) if arguments.quick else (100_000, 5)
    command = [sys.executable, __file__, "--measure", str(count)]
    runs = [
        json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(repeats)
    ]
    figures = {name: round(statistics.median(run[name] for run in runs), 4) for name in runs[0]}
    for name, seconds in figures.items():
        print(f"{name:>16} {seconds:.4f} CPU-s")
    if arguments.quick:
        return
    record.write(
        RESULT,
        record.versions("numpy"),
        rows=sum(map(int, ROWS)),
        repeats=repeats,
        cpu_s=figures,
    )
    if figures["open"] + figures["resume_worst"] >= 1:
        sys.exit("opening and resuming take 1 s or more")


if __name__ == "__main__":
    main()
