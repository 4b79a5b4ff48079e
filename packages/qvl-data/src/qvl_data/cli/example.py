"""`qvl-data example`: small real data sets."""

from pathlib import Path
from typing import Annotated

from qvl_core.cli import Argument, Option

from .app import Format, app

example = app.group("example", help="Write a small real data set.")


@example.command()
def digits(
    folder: Annotated[Path, Argument(metavar="DIR", help="Folder to write train, validation and test into.")],
    format: Format = "qvl",
    container: Annotated[str | None, Option(help="parquet (default for qvl) or jsonl (default otherwise).")] = None,
    kind: Annotated[
        list[str] | None, Option(help="Kind of question: digit, parity, size, next, larger; repeatable; default: all.")
    ] = None,
    seed: Annotated[int, Option(min=0, help="Which pictures go into which split.")] = 0,
) -> None:
    """Write the 1,797 handwritten digits of the UCI set, with several kinds of questions."""
    from qvl_data.convert import write_samples
    from qvl_data.example import SPLITS, check_kinds
    from qvl_data.example import digits as samples

    kinds = check_kinds(kind)
    suffix = container or ("parquet" if format == "qvl" else "jsonl")
    for split in SPLITS:
        file = folder / f"{split}.{suffix}"
        print(f"{file}: {write_samples(samples(split, kinds, seed), file, format)} samples")
