"""Reading and decoding 224-pixel JPEGs in random order: our containers against `datasets`, map-style.

    python benchmarks/reading.py [--quick]

datasets          datasets.load_from_disk(...)[i], an Image() feature: Arrow mapped into memory, decoded by Pillow
datasets, RGB     the same, and converted to RGB, which the other arms give in any case
decode            Pillow alone on bytes at hand, as `datasets` calls it
decode, ours      the same as our opener calls it: what no container can go below
tar, parquet      the row (strictly parsed, pictures as bytes), its picture decoded as our opener does (jpeg_pixels)
..., Pillow       the row, its picture decoded as `datasets` does
..., sample       Dataset[i], a validated sample, its picture opened by its opener (limits, upright, RGB, stated size)

4,000 crops of the photographs that qvl-data carries, at 224 pixels and quality 75, each with a short chat; files in the
page cache. All arms read the same samples in one process, 40 at a time, in turns; the time is CPU time of the process.
Figures are the fastest tenth of the turns (others on the machine slow decoding down, up to twofold); the medians and
their ratio stand beside them. Writes benchmarks/results/reading.json. Must hold against `datasets`, row and
decode: tar >= 1.5x, parquet >= 1.2x.
"""

import argparse
import io
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path

import datasets
from arms import record
from PIL import Image

from qvl_data.dataset import Dataset
from qvl_data.jpeg_pixels import quick_picture
from qvl_data.limits import DEFAULTS
from qvl_data.sample import Media, Message, Part, Sample
from qvl_data.writers import open_writer

SIDE = 224
TURN = 40
BARS = {"tar": 1.5, "parquet": 1.2}
RESULT = Path(__file__).parent / "results" / "reading.json"


def samples(count: int) -> Iterator[Sample]:
    """Chats about random crops of the photographs."""
    chance = random.Random(0)
    folder = files("qvl_data") / "assets" / "pictures"
    photos = []
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.name.endswith(".jpg"):
            photos.append(Image.open(io.BytesIO(entry.read_bytes())).convert("RGB"))
    for number in range(count):
        photo = photos[number % len(photos)]
        side = chance.randint(min(*photo.size, SIDE) // 2, min(photo.size))
        left, top = chance.randint(0, photo.width - side), chance.randint(0, photo.height - side)
        crop = photo.resize((SIDE, SIDE), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
        content = io.BytesIO()
        crop.save(content, "JPEG", quality=75)
        yield Sample(
            id=f"crop-{number:05d}",
            task="chat",
            media=(Media(kind="image", bytes=content.getvalue(), width=SIDE, height=SIDE, mime="image/jpeg"),),
            messages=(
                Message(role="user", parts=(Part(type="image", media=0), Part(type="text", text="What is this?"))),
                Message(role="assistant", parts=(Part(type="text", text="A part of a photograph, cut out."),)),
            ),
        )


def write(folder: Path, count: int) -> float:
    """All containers; returns the mean size of a picture in kB."""
    chats = list(samples(count))
    for name in ("a.tar", "a.parquet"):
        with open_writer(folder / name) as out:
            for sample in chats:
                out.write(sample)
    rows = {
        "image": [{"bytes": sample.media[0].bytes, "path": None} for sample in chats],
        "question": [sample.messages[0].text for sample in chats],
        "answer": [sample.messages[1].text for sample in chats],
    }
    text = datasets.Value("string")
    features = datasets.Features({"image": datasets.Image(), "question": text, "answer": text})
    datasets.Dataset.from_dict(rows, features).save_to_disk(folder / "arrow")
    return statistics.mean(len(sample.media[0].bytes or b"") for sample in chats) / 1e3


def arms(folder: Path) -> dict[str, Callable[[int], object]]:
    """What is timed: functions of the number of a sample."""
    theirs = datasets.load_from_disk(folder / "arrow")
    tar, parquet = Dataset(folder / "a.tar"), Dataset(folder / "a.parquet")
    contents = [tar.rows[index]["media"][0]["bytes"] for index in range(len(tar))]

    def opened(data: Dataset) -> Callable[[int], object]:
        def read(index: int) -> object:
            sample = data[index]
            return sample.opener.open(sample.media[0])

        return read

    return {
        "datasets": theirs.__getitem__,
        "datasets, RGB": lambda index: theirs[index]["image"].convert("RGB"),
        "decode": lambda index: decode(contents[index]),
        "decode, ours": lambda index: quick(contents[index]),
        "tar": lambda index: quick(tar.rows[index]["media"][0]["bytes"]),
        "parquet": lambda index: quick(parquet.rows[index]["media"][0]["bytes"]),
        "tar, Pillow": lambda index: decode(tar.rows[index]["media"][0]["bytes"]),
        "parquet, Pillow": lambda index: decode(parquet.rows[index]["media"][0]["bytes"]),
        "tar, sample": opened(tar),
        "parquet, sample": opened(parquet),
        "tar, row only": tar.rows.__getitem__,
        "parquet, row only": parquet.rows.__getitem__,
        "tar, sample only": tar.__getitem__,
        "parquet, sample only": parquet.__getitem__,
    }


def decode(content: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(content))
    picture.load()
    return picture


def quick(content: bytes) -> Image.Image:
    picture = quick_picture(io.BytesIO(content), DEFAULTS)
    assert picture is not None
    return picture


def measure(folder: Path, count: int) -> dict[str, list[float]]:
    """CPU microseconds a sample, by arm, for each turn."""
    read = arms(folder)
    order = list(range(count))
    random.Random(1).shuffle(order)
    for function in read.values():  # first touches
        for index in order[:: max(1, count // 200)]:
            function(index)
    seconds: dict[str, list[float]] = {arm: [] for arm in read}
    for turn, start in enumerate(range(0, count, TURN)):
        names = list(read)
        for arm in names[turn % len(names) :] + names[: turn % len(names)]:
            function, indices = read[arm], order[start : start + TURN]
            began = time.process_time()
            for index in indices:
                function(index)
            seconds[arm].append((time.process_time() - began) / len(indices) * 1e6)
    return seconds


def fastest(turns: list[float]) -> float:
    """What a tenth of the turns do not exceed."""
    return statistics.quantiles(turns, n=10)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="400 samples; writes nothing")
    quick = parser.parse_args().quick
    count = 400 if quick else 4000
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        kilobytes = write(Path(folder), count)
        seconds = measure(Path(folder), count)
    results = []
    print(f"{'':>22} {'CPU us':>8} {'per CPU-s':>10} {'x datasets':>11} {'medians: us':>12} {'x datasets':>11}")
    theirs = seconds["datasets"]
    for arm, turns in seconds.items():
        fast, middle = fastest(turns), statistics.median(turns)
        result = {
            "arm": arm,
            "cpu_us": round(fast, 1),
            "per_cpu_s": round(1e6 / fast),
            "ratio": round(fastest(theirs) / fast, 3),
            "median_cpu_us": round(middle, 1),
            "median_ratio": round(statistics.median(theirs) / middle, 3),
        }
        results.append(result)
        print(
            f"{arm:>22} {fast:>8.1f} {1e6 / fast:>10.0f} {result['ratio']:>11.2f} {middle:>12.1f}"
            f" {result['median_ratio']:>11.2f}"
        )
    if quick:
        return
    record.write(
        RESULT,
        record.versions("qvl-data", "datasets", "pyarrow", "pillow", "pydantic"),
        samples=count,
        kilobytes_per_picture=round(kilobytes, 2),
        results=results,
        bars=BARS,
    )
    found = {result["arm"]: result["ratio"] for result in results}
    if missed := [arm for arm, bar in BARS.items() if found[arm] < bar]:
        sys.exit(f"below the bar: {', '.join(missed)}")


if __name__ == "__main__":
    main()
