"""Pictures per CPU-second of `qvl-data validate` (headers, decoded) and `qvl-data stats`, and the memory they need.

    uv run python benchmarks/validate.py [--quick]

JPEGs of 224 pixels a side, of about 10 kB, one in each sample: as files beside JSONL, and inside Parquet and tar. Each
arm is a process of its own with one thread, warm cache; imports are not counted. Writes
benchmarks/results/validate.json. Must hold: validate from headers >= 2,000 pictures per CPU-second in each container.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
from arms import record
from PIL import Image

from qvl_data.dataset import Dataset
from qvl_data.sample import Media, Message, Meta, Part, Sample
from qvl_data.stats import stats
from qvl_data.validate import validate
from qvl_data.writers import open_writer

FILES = {"files": "data.jsonl", "parquet": "data.parquet", "tar": "data.tar"}
VERBS = ("validate --headers", "validate", "stats")
RESULT = Path(__file__).parent / "results" / "validate.json"
BAR = 2000


def samples(count: int) -> Iterator[Sample]:
    for number in range(count):
        noise = np.random.default_rng(number)
        small = Image.fromarray(noise.integers(0, 256, (28, 28, 3), dtype=np.uint8))
        file = io.BytesIO()
        small.resize((224, 224), Image.Resampling.BICUBIC).save(file, "JPEG", quality=92)
        yield Sample(
            id=f"noise-{number:05d}",
            task="chat",
            media=(Media(kind="image", bytes=file.getvalue(), mime="image/jpeg", origin=f"noise/{number:05d}.jpg"),),
            messages=(
                Message(role="user", parts=(Part(type="image", media=0), Part(type="text", text="What is this?"))),
                Message(role="assistant", parts=(Part(type="text", text=f"Noise number {number}."),)),
            ),
            meta=Meta(license="CC0-1.0"),
        )


def measure(verb: str, file: Path) -> dict[str, float]:
    """Pictures per CPU-second, and MiB that the process held more at its largest than before."""
    process = psutil.Process()
    held = process.memory_info().rss
    started = time.process_time()
    if verb == "stats":
        count = stats(Dataset(file)).samples
    else:
        result = validate(file, pixels=verb == "validate")
        count = result.samples - result.bad
    seconds = time.process_time() - started
    return {"per_cpu_second": count / seconds, "extra_mib": (peak(process) - held) / 2**20}


def peak(process: psutil.Process) -> float:
    """Most bytes held so far."""
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    return float(process.memory_info().rss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="500 samples, once; writes nothing")
    parser.add_argument("--measure", nargs=2, metavar=("VERB", "FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure[0], Path(arguments.measure[1]))))
        return

    count, repeats = (500, 1) if arguments.quick else (4000, 3)
    pairs = [(container, verb) for container in FILES for verb in VERBS]
    runs: dict[tuple[str, str], list[dict[str, float]]] = {pair: [] for pair in pairs}
    with tempfile.TemporaryDirectory() as folder:
        for container, name in FILES.items():
            with open_writer(Path(folder) / container / name) as writer:
                for sample in samples(count):
                    writer.write(sample)
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        for container, verb in pairs * repeats:
            command = [sys.executable, __file__, "--measure", verb, str(Path(folder) / container / FILES[container])]
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
            runs[container, verb].append(json.loads(done.stdout))
    results = [
        {"container": container, "verb": verb}
        | {key: round(statistics.median(run[key] for run in each), 1) for key in each[0]}
        for (container, verb), each in runs.items()
    ]
    print(f"{'container':>10} {'verb':>20} {'pictures / CPU-s':>17} {'extra MiB':>10}")
    for result in results:
        print(
            f"{result['container']:>10} {result['verb']:>20} {result['per_cpu_second']:>17,.0f}"
            f" {result['extra_mib']:>10.1f}"
        )
    if arguments.quick:
        return
    record.write(
        RESULT,
        record.versions("pillow", "pyarrow"),
        pictures=count,
        repeats=repeats,
        results=results,
        bar_headers_per_cpu_second=BAR,
    )
    slow = [result for result in results if result["verb"] == "validate --headers" and result["per_cpu_second"] < BAR]
    if slow:
        sys.exit(f"validate --headers: below {BAR} pictures per CPU-second in {slow[0]['container']}")


if __name__ == "__main__":
    main()
