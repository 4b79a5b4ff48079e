"""Reading stored embeddings in random order: our shards against a file for each text, as upstream's extraction writes.

    python benchmarks/embeddings.py [--quick]

What is measured is the way from samples and texts to what the transformer is given: a padded batch (B, L, D) and its
mask, in memory of its own.

files        upstream's layout as upstream reads it: `torch.load` of a .pt file, (L, D) in bf16, one for each text of
             each sample; then its `collate_fn` (train/src/data_provider.py): zeros behind each, and stacked
files once   the same files, laid into the batch as we do it: each is copied once
shards       as training reads: the key of a picture, whose file was read once and is only looked at since; two
             look-ups (what the texts of a sample share, and the text), and each is copied once, into the batch
first        the same where nothing was read before: pictures of 60 kB are read and hashed, shards are mapped, and the
             checksum of each tensor is computed
files alone, shards alone
             one text (L, D) in memory of its own, and no batch

Two sizes: 16 tokens of width 1,024 (32 KiB), and what Qwen-Image-Edit-2509 makes of one source picture, 227 tokens of
width 3,584 (1.6 MB), of which 205 are shared by a sample's three texts. All arms read the same texts in one process, in
turns; files are in the page cache, so what is measured is the work of the processor, not of a disk. Figures are texts
per second of CPU time, the fastest third of the turns.

Also the bytes on the disk. Writes benchmarks/results/embeddings.json. Must hold: shards >= 5 x files in batches of one,
which is what the command of upstream's example trains with.
"""

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from arms import record
from torch import Tensor

from qvl_core.training.store import Store
from qvl_data.dataset import Dataset
from qvl_data.hashing import SETTLED
from qvl_data.sample import Sample
from qvl_edit.embed import joined
from qvl_edit.stored import StoredEmbeddings, content, key

TEXTS = ("make it red", "把它变红", "")
SHARD = 128  # samples, as `qvl-edit extract` writes
BATCHES = (1, 4)
TURNS = 9
PICTURE = 60_000  # bytes
BAR = 5.0
RESULT = Path(__file__).parent / "results" / "embeddings.json"

Asked = Sequence[tuple[int, int]]
"""A sample and one of its texts, by number."""
Batch = tuple[Tensor, Tensor | None]
"""(B, L, D) and (B, L), true or 1 where there is a token."""


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
    before = time.time_ns() - 2 * SETTLED
    with rows.open("w", encoding="utf-8") as lines:
        for number in range(count):
            file = folder / f"{number}.jpg"
            file.write_bytes(random.Random(number).randbytes(PICTURE))
            os.utime(file, ns=(before, before))
            row = {"source_image": file.name, "target_image": file.name, "instruction": "make it red"}
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


def collated(embeddings: Sequence[Tensor]) -> Batch:
    """As upstream's `collate_fn` does it."""
    most = max(len(one) for one in embeddings)
    ones = [torch.ones(len(one), dtype=torch.long) for one in embeddings]
    mask = torch.stack([torch.cat([one, one.new_zeros(most - len(one))]) for one in ones])
    wide = [torch.cat([one, one.new_zeros(most - len(one), one.shape[1])]) for one in embeddings]
    return torch.stack(wide), mask


def measure(folder: Path, size: Size, reads: int) -> dict[str, Any]:
    samples = pictures(folder / "pictures", size.samples)
    store = write(folder, size, samples)
    chance = random.Random(0)
    asked = [(chance.randrange(size.samples), chance.randrange(len(TEXTS))) for _ in range(reads)]
    stored = StoredEmbeddings(store)

    def file(number: int, text: int) -> Tensor:
        found: Tensor = torch.load(folder / "files" / f"{number}-{text}.pt", weights_only=True)
        return found

    def pieces(number: int, text: int, stored: StoredEmbeddings = stored) -> tuple[Tensor, ...]:
        return stored.pieces(samples[number], [0], TEXTS[text])

    def first(batch: int) -> Iterator[Any]:
        samples[0].opener.known.clear()  # that of all
        fresh = partial(pieces, stored=StoredEmbeddings(Store(store.folder, store.index)))
        return (joined([fresh(*one) for one in part]) for part in parts(asked, batch))

    arms: dict[str, Callable[[int], Iterator[Any]]] = {
        "files": lambda batch: (collated([file(*one) for one in part]) for part in parts(asked, batch)),
        "files once": lambda batch: (joined([[file(*one)] for one in part]) for part in parts(asked, batch)),
        "shards": lambda batch: (joined([pieces(*one) for one in part]) for part in parts(asked, batch)),
        "first": first,
    }
    alone: dict[str, Callable[[int], Iterator[Any]]] = {
        "files alone": lambda _: (file(*one) for one in asked),
        "shards alone": lambda _: (torch.cat(pieces(*one)) for one in asked),
    }
    for both in zip(*(arm(BATCHES[-1]) for arm in arms.values()), strict=True):
        if not all(torch.equal(states, both[0][0]) for states, _ in both):
            raise AssertionError("all should read the same")
    found: dict[str, Any] = {}
    for batch in BATCHES:
        speeds = compared(arms, batch, reads)
        ratios = {f"{name} / files": speeds[name] / speeds["files"] for name in ("shards", "first")}
        ratios["shards / files once"] = speeds["shards"] / speeds["files once"]
        found[f"batches of {batch}"] = speeds | ratios
    speeds = compared(alone, 1, reads)
    found["alone"] = speeds | {"shards / files": speeds["shards alone"] / speeds["files alone"]}
    found["files_mb"] = sum(file.stat().st_size for file in (folder / "files").iterdir()) / 1e6
    found["shards_mb"] = sum(file.stat().st_size for file in (store.folder / "shards").iterdir()) / 1e6
    return found


def compared(arms: dict[str, Callable[[int], Iterator[Any]]], batch: int, reads: int) -> dict[str, float]:
    """Texts in a second of CPU time, of each arm."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _turn in range(TURNS):
        for name, arm in arms.items():
            start = time.process_time()
            for _ in arm(batch):
                pass  # as in training, nothing is kept
            seconds[name].append(time.process_time() - start)
    return {name: reads / statistics.mean(sorted(taken)[: TURNS // 3]) for name, taken in seconds.items()}


def parts(asked: Asked, batch: int) -> Iterator[Asked]:
    return (asked[at : at + batch] for at in range(0, len(asked), batch))


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
            found[name] = measure(Path(place) / name, few, 48 if quick else min(500, size.samples))
            for arm, value in found[name].items():
                print(f"{name}, {arm}: {json.dumps(value)}")
    worst = min(one["batches of 1"]["shards / files"] for one in found.values())
    if not quick:
        record.write(RESULT, record.versions("torch", "safetensors"), unit="texts per second of CPU time", **found)
    print(f"shards / files in batches of one, at least: {worst:.1f} (bar {BAR:g})")
    return 0 if worst >= BAR or quick else 1


if __name__ == "__main__":
    sys.exit(main())
