"""`qvl-data example`: small real data sets."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    _write(folder, format, container, lambda split: samples(split, kinds, seed))


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

    _write(folder, format, container, lambda split: samples(name, split, seed))


def _write(folder: Path, format: str, container: str | None, samples: "Callable[[Split], Iterable[Sample]]") -> None:
    from qvl_data.convert import write_samples
    from qvl_data.example import SPLITS

    suffix = container or ("parquet" if format == "qvl" else "jsonl")
    for split in SPLITS:
        file = folder / f"{split}.{suffix}"
        print(f"{file}: {write_samples(samples(split), file, format)} samples")
