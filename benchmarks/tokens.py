"""Counting the tokens of pictures: from their headers, and by opening them and running Qwen's processor.

    python benchmarks/tokens.py [--quick]

headers     qvl_data: path below the media root checked, size and orientation from the header, token arithmetic
processor   Pillow opens the file and decodes it to RGB, transformers' Qwen2VLImageProcessor makes the patches
validation  qvl_data.media.image_size alone, which is what `validate` asks of each picture when pixels are not decoded

JPEG (quality 90, smooth noise) and PNG files of 224 and 1024 pixels a side, in folders two levels below the root, in
the page cache; one process, one thread; the arms take turns. Time is CPU time per picture (median over the repeats).
Both arms must count the same tokens. Writes benchmarks/results/tokens.json. Must hold for JPEG: headers at least 30x as
fast at 224 px and 100x at 1024 px; for both: validation of at least 2,000 pictures per CPU-second.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from arms import record
from PIL import Image
from transformers import Qwen2VLImageProcessor

from qvl_data.media import Opener, image_size
from qvl_data.sample import Media
from qvl_data.tokens import Images

BARS = {224: 30, 1024: 100}
VALIDATION_BAR = 2000
RESULT = Path(__file__).parent / "results" / "tokens.json"


def write(root: Path, side: int, suffix: str, count: int) -> list[Media]:
    folder = root / "photos" / f"{side}-{suffix}"
    folder.mkdir(parents=True)
    random = np.random.default_rng(side)
    for number in range(count):
        noise = Image.fromarray(random.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8))
        noise.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{number:04d}.{suffix}", quality=90)
    return [Media(kind="image", path=f"photos/{side}-{suffix}/{number:04d}.{suffix}") for number in range(count)]


def timed(count_one: Callable[[Media], int], pictures: list[Media]) -> tuple[float, list[int]]:
    started = time.process_time()
    tokens = [count_one(media) for media in pictures]
    return (time.process_time() - started) / len(pictures) * 1e6, tokens


def measure(root: Path, pictures: list[Media], repeats: int, processed: int) -> dict[str, float]:
    opener, images, processor = (
        Opener(root),
        Images(),
        Qwen2VLImageProcessor(
            patch_size=16, size={"shortest_edge": Images().min_pixels, "longest_edge": Images().max_pixels}
        ),
    )

    def from_header(media: Media) -> int:
        return images.tokens(*opener.size(media))

    def from_pixels(media: Media) -> int:
        with Image.open(root / str(media.path)) as picture:
            grid = processor([picture.convert("RGB")], return_tensors="pt")["image_grid_thw"]
        return int(grid.prod()) // 4

    def validated(media: Media) -> int:
        return image_size(media, root)[0]

    times: dict[str, list[float]] = {"headers": [], "processor": [], "validation": []}
    for _ in range(repeats):
        fast, ours = timed(from_header, pictures)
        slow, theirs = timed(from_pixels, pictures[:processed])
        checked, _ = timed(validated, pictures)
        assert ours[:processed] == theirs
        for name, value in zip(times, (fast, slow, checked), strict=True):
            times[name].append(value)
    figures = {f"{name}_us": round(statistics.median(values), 2) for name, values in times.items()}
    ratio = statistics.median(slow / fast for fast, slow in zip(times["headers"], times["processor"], strict=True))
    per_second = 1e6 / statistics.median(times["validation"])
    return figures | {"ratio": round(ratio, 1), "validated_per_second": round(per_second)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="40 pictures, twice; writes nothing")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    count, repeats, processed = (40, 2, 10) if quick else (500, 7, 60)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for side in BARS:
            for suffix in ("jpg", "png"):
                pictures = write(Path(folder), side, suffix, count)
                result = {"side": side, "format": suffix, **measure(Path(folder), pictures, repeats, processed)}
                results.append(result)
                print(json.dumps(result))
    if not quick:
        record.write(
            RESULT,
            record.versions("pillow", "torch", "transformers"),
            pictures=count,
            repeats=repeats,
            processed=processed,
            results=results,
        )
    for result in results:
        if result["format"] == "jpg" and result["ratio"] < BARS[result["side"]]:
            sys.exit(f"{result['side']} px: headers are only {result['ratio']}x as fast as the processor")
        if result["validated_per_second"] < VALIDATION_BAR:
            sys.exit(
                f"{result['side']} px {result['format']}: {result['validated_per_second']} validated per CPU-second"
            )


if __name__ == "__main__":
    main()
