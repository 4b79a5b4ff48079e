"""Reading stored embeddings in random order: our shards against a file for each text, as upstream's extraction writes.

    python benchmarks/embeddings.py [--quick]

files    `torch.load` of a .pt file, (L, D) in bf16, one for each text of each sample
shards   two look-ups by key (what the texts of a sample share, and the text), put together
first    the same where nothing was read before: shards are mapped, and the checksum of each tensor is computed
found    `StoredEmbeddings.whole`, as training reads: the keys are made of the picture's file, 60 kB, which is hashed

Two sizes: 16 tokens of width 1,024 (32 KiB), and what Qwen-Image-Edit-2509 makes of one source picture, 227 tokens of
width 3,584 (1.6 MB), of which 205 are shared by a sample's three texts. All arms read the same texts in one process, in
turns; files are in the page cache, so what is measured is the work of the processor, not of a disk. Figures are texts
per second of CPU time, the fastest third of the turns.

Also the bytes on the disk. Writes benchmarks/results/embeddings.json. Must hold: shards >= 5 x files at 32 KiB. At
1.6 MB all copy most of the time, and the factor is what it is.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from arms import record
from torch import Tensor

from qvl_core.training.store import Store
from qvl_data.dataset import Dataset
from qvl_data.sample import Sample
from qvl_edit.stored import StoredEmbeddings, content, key

TEXTS = ("make it red", "把它变红", "")
SHARD = 128  # samples, as `qvl-edit extract` writes
TURNS = 9
PICTURE = 60_000  # bytes
BAR = 5.0
RESULT = Path(__file__).parent / "results" / "embeddings.json"


class Size(NamedTuple):
    """Of an embedding, and how many samples there are."""

    tokens: int
    shared: int
    width: int
    samples: int


SIZES = {"32 KiB": Size(16, 0, 1024, 2000), "one source": Size(227, 205, 3584, 200)}


def pictures(folder: Path, count: int) -> list[Sample]:
    """Samples of one picture each. It is never opened: 60 kB of anything do."""
    folder.mkdir(parents=True)
    rows = folder / "rows.jsonl"
    with rows.open("w", encoding="utf-8") as lines:
        for number in range(count):
            (folder / f"{number}.jpg").write_bytes(random.Random(number).randbytes(PICTURE))
            row = {"source_image": f"{number}.jpg", "target_image": f"{number}.jpg", "instruction": "make it red"}
            lines.write(json.dumps(row) + "\n")
    return [*Dataset(rows)]


def write(folder: Path, size: Size, samples: Sequence[Sample]) -> Store:
    """Both layouts of the same embeddings."""
    (folder / "files").mkdir(parents=True)
    store = Store.begin(folder / "store", {}, "choose another folder")
    for first in range(0, size.samples, SHARD):
        entries: dict[bytes, Tensor] = {}
        for number in range(first, min(first + SHARD, size.samples)):
            shown = content(samples[number], [0])
            entries[key(shown)] = torch.randn(size.shared, size.width).bfloat16()
            for place, text in enumerate(TEXTS):
                entries[key(shown, text)] = torch.randn(size.tokens - size.shared, size.width).bfloat16()
                whole = torch.cat([entries[key(shown)], entries[key(shown, text)]])
                torch.save(whole, folder / "files" / f"{number}-{place}.pt")
        store.write(f"{first:06d}", entries)
    return store.again()


def measure(folder: Path, size: Size, reads: int) -> dict[str, float]:
    samples = pictures(folder / "pictures", size.samples)
    store = write(folder, size, samples)
    chance = random.Random(0)
    asked = [(chance.randrange(size.samples), chance.randrange(len(TEXTS))) for _ in range(reads)]
    keys = [content(one, [0]) for one in samples]

    def files() -> Iterator[Tensor]:
        for number, at in asked:
            yield torch.load(folder / "files" / f"{number}-{at}.pt", weights_only=True)

    def shards(store: Store = store) -> Iterator[Tensor]:
        for number, at in asked:
            yield torch.cat([store.get(key(keys[number])), store.get(key(keys[number], TEXTS[at]))])

    def first() -> Iterator[Tensor]:
        return shards(Store(store.folder, store.index))

    def by_pictures() -> Iterator[Tensor]:
        stored = StoredEmbeddings(store)
        for number, at in asked:
            yield stored.whole(samples[number], [0], TEXTS[at])

    for one, other, again in zip(files(), shards(), by_pictures(), strict=True):
        if not (torch.equal(one, other) and torch.equal(one, again)):
            raise AssertionError("all should read the same")
    arms: dict[str, Callable[[], Iterator[Tensor]]] = {
        "files": files,
        "shards": shards,
        "first": first,
        "found": by_pictures,
    }
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _turn in range(TURNS):
        for name, arm in arms.items():
            start = time.process_time()
            for _ in arm():
                pass  # as in training, nothing is kept
            seconds[name].append(time.process_time() - start)
    found = {name: reads / statistics.mean(sorted(taken)[: TURNS // 3]) for name, taken in seconds.items()}
    found |= {f"{name} / files": found[name] / found["files"] for name in ("shards", "first", "found")}
    found["files_mb"] = sum(file.stat().st_size for file in (folder / "files").iterdir()) / 1e6
    found["shards_mb"] = sum(file.stat().st_size for file in (store.folder / "shards").iterdir()) / 1e6
    return found


def main() -> int:
    options = argparse.ArgumentParser()
    options.add_argument("--quick", action="store_true", help="few samples; nothing is written")
    quick = options.parse_args().quick
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found = {}
    with tempfile.TemporaryDirectory() as place:
        for name, size in SIZES.items():
            few = size._replace(samples=size.samples // 10) if quick else size
            found[name] = measure(Path(place) / name, few, 50 if quick else min(500, size.samples))
            said = ", ".join(f"{arm} {value:,.4g}" for arm, value in found[name].items())
            print(f"{name}: {said}")
    factor = found["32 KiB"]["shards / files"]
    if not quick:
        record.write(RESULT, record.versions("torch", "safetensors"), unit="texts per second of CPU time", **found)
    print(f"shards / files at 32 KiB: {factor:.1f} (bar {BAR:g})")
    return 0 if factor >= BAR or quick else 1


if __name__ == "__main__":
    sys.exit(main())
