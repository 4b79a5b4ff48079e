"""`qvl-data example`: small real data sets."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from qvl_core.cli import Argument, Option

from .app import Format, app

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from qvl_data.example.split import Split
    from qvl_data.sample import Sample

example = app.group("example", help="Write a small real data set: train, validation and test.")

Folder = Annotated[Path, Argument(metavar="DIR", help="Folder to write train, validation and test into.")]
Container = Annotated[
    str | None, Option(help="parquet (default for qvl), tar or jsonl (default for every other format).")
]
Seed = Annotated[int, Option(min=0, help="Decides everything that is random.")]


@example.command()
def digits(
    folder: Folder,
    format: Format = "qvl",
    container: Container = None,
    kind: Annotated[
        list[str] | None, Option(help="Kind of question: digit, parity, size, next, larger; repeatable; default: all.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Write the 1,797 handwritten digits of the UCI set, with several kinds of questions."""
    from qvl_data.example.digits import check_kinds
    from qvl_data.example.digits import digits as samples

    kinds = check_kinds(kind)
    choice = {"kinds": list(kinds), "seed": seed}
    _write("digits", folder, format, container, choice, lambda split: samples(split, kinds, seed))


@example.command()
def images(folder: Folder, format: Format = "qvl", container: Container = None, seed: Seed = 0) -> None:
    """Write crops of 15 photographs, asked about in English and Chinese."""
    _write_set("images", folder, format, container, seed)


@example.command()
def video(folder: Folder, format: Format = "qvl", container: Container = None, seed: Seed = 0) -> None:
    """Write short videos of a moving digit, asked which digit and which way (needs PyAV)."""
    _write_set("video", folder, format, container, seed)


@example.command()
def grounding(folder: Folder, format: Format = "qvl", container: Container = None, seed: Seed = 0) -> None:
    """Write pictures of several digits whose answers are boxes."""
    _write_set("grounding", folder, format, container, seed)


@example.command()
def edit(folder: Folder, format: Format = "qvl", container: Container = None, seed: Seed = 0) -> None:
    """Write photographs before and after an edit, with instructions in English and Chinese."""
    _write_set("edit", folder, format, container, seed)


@example.command(name="multi_turn")
def multi_turn(folder: Folder, format: Format = "qvl", container: Container = None, seed: Seed = 0) -> None:
    """Write conversations of three turns about two digits."""
    _write_set("multi_turn", folder, format, container, seed)


def _write_set(name: str, folder: Path, format: str, container: str | None, seed: int) -> None:
    from qvl_data.example import samples

    _write(name, folder, format, container, {"seed": seed}, lambda split: samples(name, split, seed))


def _write(
    name: str,
    folder: Path,
    format: str,
    container: str | None,
    choice: dict[str, Any],
    samples: "Callable[[Split], Iterable[Sample]]",
) -> None:
    """Write a set, split by split; a split that is there from an interrupted run is kept."""
    from functools import partial

    from qvl_core.errors import BadInput
    from qvl_data.example import SPLITS
    from qvl_data.job import NAME, Job
    from qvl_data.writers import check_target, write

    suffix = container or ("parquet" if format == "qvl" else "jsonl")
    files = {split: folder / f"{split}.{suffix}" for split in SPLITS}
    for file in files.values():
        check_target(file, format)
        if file.exists() and not (folder / NAME).exists():
            raise BadInput(f"{file}: is already there; remove it or choose another folder.")
    job = Job(folder, "example", (), {"set": name, "format": format, "container": suffix, **choice})
    if job.result is None:
        counts = {split: job.step(split, partial(write, samples(split), file, format)) for split, file in files.items()}
        job.finish(counts, files.values())
    for split, file in files.items():
        print(f"{file}: {job.result[split]} samples")
