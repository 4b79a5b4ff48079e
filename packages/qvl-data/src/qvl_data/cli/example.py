"""`qvl-data example`: small real data sets."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from qvl_core.cli import Argument, Option

from .app import Format, Fresh, app

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from qvl_data.example.split import Split
    from qvl_data.sample import Sample

example = app.group("example", help="Write a small real data set: train, validation and test.")

Folder = Annotated[Path, Argument(metavar="DIR", help="Folder to write train, validation and test into.")]
Container = Annotated[str | None, Option(help="parquet (default for qvl), tar (for wds) or jsonl (otherwise).")]
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
    fresh: Fresh = False,
) -> None:
    """Write the 1,797 handwritten digits of the UCI set, with several kinds of questions."""
    from qvl_data.example.digits import check_kinds
    from qvl_data.example.digits import digits as samples

    kinds = check_kinds(kind)
    choice = {"kinds": list(kinds), "seed": seed}
    _write("digits", folder, format, container, choice, fresh, lambda split: samples(split, kinds, seed))


@example.command()
def images(
    folder: Folder, format: Format = "qvl", container: Container = None, seed: Seed = 0, fresh: Fresh = False
) -> None:
    """Write crops of 15 photographs, asked about in English and Chinese."""
    _write_set("images", folder, format, container, seed, fresh)


@example.command()
def video(
    folder: Folder, format: Format = "qvl", container: Container = None, seed: Seed = 0, fresh: Fresh = False
) -> None:
    """Write short videos of a moving digit, asked which digit and which way (needs PyAV)."""
    _write_set("video", folder, format, container, seed, fresh)


@example.command()
def grounding(
    folder: Folder, format: Format = "qvl", container: Container = None, seed: Seed = 0, fresh: Fresh = False
) -> None:
    """Write pictures of several digits whose answers are boxes."""
    _write_set("grounding", folder, format, container, seed, fresh)


@example.command()
def edit(
    folder: Folder, format: Format = "qvl", container: Container = None, seed: Seed = 0, fresh: Fresh = False
) -> None:
    """Write photographs before and after an edit, with instructions in English and Chinese."""
    _write_set("edit", folder, format, container, seed, fresh)


@example.command(name="multi_turn")
def multi_turn(
    folder: Folder, format: Format = "qvl", container: Container = None, seed: Seed = 0, fresh: Fresh = False
) -> None:
    """Write conversations of three turns about two digits."""
    _write_set("multi_turn", folder, format, container, seed, fresh)


@example.command(name="thinking")
def thinking(
    folder: Folder, format: Format = "qvl", container: Container = None, seed: Seed = 0, fresh: Fresh = False
) -> None:
    """Write questions about digits whose answers begin with reasoning."""
    _write_set("thinking", folder, format, container, seed, fresh)


@example.command()
def drawings(
    folder: Folder,
    format: Format = "qvl",
    container: Container = None,
    kind: Annotated[
        list[str] | None, Option(help="What is asked for: named, inverted; repeatable; default: both.")
    ] = None,
    seed: Seed = 0,
    fresh: Fresh = False,
) -> None:
    """Write the handwritten digits as pictures to be drawn: by name, or inverted from a picture."""
    from qvl_data.example.digits import check_kinds
    from qvl_data.example.drawings import KINDS
    from qvl_data.example.drawings import drawings as samples

    kinds = check_kinds(kind, KINDS, "drawing")
    choice = {"kinds": list(kinds), "seed": seed}
    _write("drawings", folder, format, container, choice, fresh, lambda split: samples(split, kinds, seed))


@example.command()
def coloured(
    folder: Folder, format: Format = "qvl", container: Container = None, seed: Seed = 0, fresh: Fresh = False
) -> None:
    """Write the handwritten digits in five colours, to be drawn by name: a red seven."""
    _write_set("coloured", folder, format, container, seed, fresh)


@example.command()
def recoloured(
    folder: Folder, format: Format = "qvl", container: Container = None, seed: Seed = 0, fresh: Fresh = False
) -> None:
    """Write the handwritten digits in random colours, and three edits: made red, inverted, flipped."""
    _write_set("recoloured", folder, format, container, seed, fresh)


def _write_set(name: str, folder: Path, format: str, container: str | None, seed: int, fresh: bool) -> None:
    from qvl_data.example import samples

    _write(name, folder, format, container, {"seed": seed}, fresh, lambda split: samples(name, split, seed))


def _write(
    name: str,
    folder: Path,
    format: str,
    container: str | None,
    choice: dict[str, Any],
    fresh: bool,
    samples: "Callable[[Split], Iterable[Sample]]",
) -> None:
    """Write a set, split by split; a split that is there from an interrupted run is kept."""
    from functools import partial

    from qvl_core.errors import BadInput
    from qvl_data.example import SPLITS
    from qvl_data.job import NAME, Job, clear
    from qvl_data.writers import check_target, suffix_for, write

    suffix = f".{container}" if container else suffix_for(format)
    files = {split: folder / f"{split}{suffix}" for split in SPLITS}
    for file in files.values():
        check_target(file, format)
        if not fresh and file.exists() and not (folder / NAME).exists():
            raise BadInput(f"{file}: is already there; remove it, choose another folder, or add --fresh.")
    job = Job(folder, "example", (), {"set": name, "format": format, "container": suffix, **choice}, fresh)
    if job.result is None:
        clear(folder, {*job.dropped} - {file.name for file in files.values()})
        counts = {
            split: job.step(file.name, partial(write, samples(split), file, format), file)
            for split, file in files.items()
        }
        job.finish(counts, files.values())
    else:
        print("all was written before; nothing was done.")
    for split, file in files.items():
        print(f"{file}: {job.result[split]} samples")
