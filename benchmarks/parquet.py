"""Reading samples of a Parquet file with embedded pictures, in order and shuffled.

    python benchmarks/parquet.py [--quick]

whole groups   the row group of a sample is read whole, and kept in a cache of 128 MiB
qvl            qvl_data.parquet on a file that it wrote: texts by row group, each picture by itself
qvl, foreign   the same rows written by others (snappy, pages of version 2): pictures by row group, the same cache

3,000 samples of one picture (100 to 200 kB of noise behind a JPEG's first bytes) and a short chat; row groups of 16 MiB
everywhere; the file is in the page cache. Every arm and order is a process of its own that reads 600 samples; they take
turns, three times. Time is CPU time to the validated sample; "plan" reads what a length is made of, which of whole
groups is the same as shuffled. Writes benchmarks/results/parquet.json. Must hold for qvl: shuffled <= 3x the time of in
order.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from arms import record

from qvl_data import parquet
from qvl_data.dataset import Dataset
from qvl_data.sample import Media, Message, Part, Sample, read_sample

ARMS = {"whole groups": "qvl.parquet", "qvl": "qvl.parquet", "qvl, foreign": "foreign.parquet"}
ORDERS = ("in order", "shuffled", "plan, shuffled")
READS = 600
RESULT = Path(__file__).parent / "results" / "parquet.json"


class WholeGroups:
    """Samples by number from whole row groups, the newest 128 MiB of which are kept."""

    def __init__(self, path: Path) -> None:
        self.file = pq.ParquetFile(path)
        groups = range(self.file.num_row_groups)
        self.starts = [0, *accumulate(self.file.metadata.row_group(group).num_rows for group in groups)]
        self.cache: OrderedDict[int, pa.Table] = OrderedDict()

    def __getitem__(self, index: int) -> Sample:
        group = bisect_right(self.starts, index) - 1
        if group not in self.cache:
            self.cache[group] = self.file.read_row_group(group, use_threads=False)
            while len(self.cache) > 1 and sum(table.nbytes for table in self.cache.values()) > 128 << 20:
                self.cache.popitem(last=False)
        self.cache.move_to_end(group)
        row = self.cache[group].slice(index - self.starts[group], 1).to_pylist()[0]
        return read_sample({**row, "schema": "qvl.sample/1"})


def samples(count: int) -> Iterator[Sample]:
    noise = random.Random(0)
    for number in range(count):
        content = b"\xff\xd8\xff\xe0" + noise.randbytes(noise.randint(100_000, 200_000))
        question = "What is in this picture? " + "Look at it closely. " * noise.randint(0, 20)
        answer = "A thing beside another thing. " * noise.randint(1, 20)
        yield Sample(
            id=f"noise-{number:05d}",
            task="chat",
            media=(Media(kind="image", bytes=content, width=640, height=480, origin=f"noise/{number:05d}.jpg"),),
            messages=(
                Message(role="user", parts=(Part(type="image", media=0), Part(type="text", text=question))),
                Message(role="assistant", parts=(Part(type="text", text=answer),)),
            ),
        )


def write(folder: Path, count: int) -> None:
    parquet.write_parquet(samples(count), folder / "qvl.parquet")
    source = pq.ParquetFile(folder / "qvl.parquet")
    with pq.ParquetWriter(
        folder / "foreign.parquet", source.schema_arrow, compression="snappy", data_page_version="2.0"
    ) as writer:
        for group in range(source.num_row_groups):
            writer.write_table(source.read_row_group(group))


def read(arm: str, order: str, folder: Path, count: int) -> dict[str, float]:
    """Figures per sample of READS of the `count` samples; memory is what the process held more than before."""
    file = folder / ARMS[arm]
    indices = list(range(count))
    if order != "in order":
        random.Random(1).shuffle(indices)
    indices = indices[:READS]
    process = psutil.Process()
    held, read_before, started = process.memory_info().rss, bytes_read(process), time.process_time()
    get: Callable[[int], Sample]
    if arm == "whole groups":
        get = WholeGroups(file).__getitem__
    else:
        data = Dataset(file)
        get = data.outline if order.startswith("plan") else data.__getitem__
    most = held
    for number, index in enumerate(indices):
        get(index)
        if number % 10 == 0:
            most = max(most, process.memory_info().rss)
    seconds = time.process_time() - started
    return {
        "cpu_ms": seconds / len(indices) * 1e3,
        "read_kb": (bytes_read(process) - read_before) / len(indices) / 1e3,
        "extra_mib": (most - held) / 2**20,
    }


def bytes_read(process: psutil.Process) -> float:
    """Bytes this process has read so far, whether from disk or page cache; Linux only."""
    return process.io_counters().read_chars if sys.platform == "linux" else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="300 samples, once; writes nothing")
    parser.add_argument("--read", nargs=4, metavar=("ARM", "ORDER", "FOLDER", "COUNT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read:
        arm, order, folder, count = arguments.read
        print(json.dumps(read(arm, order, Path(folder), int(count))))
        return

    count, repeats = (300, 1) if arguments.quick else (3000, 3)
    pairs = [(arm, order) for arm in ARMS for order in ORDERS if (arm, order) != ("whole groups", "plan, shuffled")]
    runs: dict[tuple[str, str], list[dict[str, float]]] = {pair: [] for pair in pairs}
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), count)
        sizes = {file.stem: round(file.stat().st_size / 1e6, 1) for file in Path(folder).iterdir()}
        footer = pq.read_metadata(Path(folder) / "qvl.parquet").serialized_size
        for arm, order in pairs * repeats:
            command = [sys.executable, __file__, "--read", arm, order, folder, str(count)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            runs[arm, order].append(json.loads(done.stdout))
    results = [
        {"arm": arm, "order": order, **{key: round(statistics.median(run[key] for run in each), 3) for key in each[0]}}
        for (arm, order), each in runs.items()
    ]
    print(f"{'arm':>14} {'order':>15} {'CPU ms':>8} {'kB read':>9} {'extra MiB':>10}")
    for result in results:
        print(
            f"{result['arm']:>14} {result['order']:>15} {result['cpu_ms']:>8.3f} {result['read_kb']:>9.1f} "
            f"{result['extra_mib']:>10.1f}"
        )
    cpu = {(result["arm"], result["order"]): result["cpu_ms"] for result in results}
    ratio = round(cpu["qvl", "shuffled"] / cpu["qvl", "in order"], 3)
    print(f"qvl: shuffled / in order {ratio}")
    if arguments.quick:
        return
    record.write(
        RESULT,
        record.versions("pyarrow"),
        samples=count,
        reads=READS,
        repeats=repeats,
        megabytes=sizes,
        footer_bytes=footer,
        results=results,
        qvl_shuffled_to_in_order=ratio,
    )
    if ratio > 3:
        sys.exit("qvl: shuffled takes more than 3x the time of in order")


if __name__ == "__main__":
    main()
