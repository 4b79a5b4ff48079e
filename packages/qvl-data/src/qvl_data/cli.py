"""`qvl-data`: example data sets, conversion between formats and containers, a look at one sample."""

from pathlib import Path
from typing import Annotated

from qvl_core.cli import App, Argument, Option

app = App("qvl-data", package="qvl_data", help="Samples, formats, media and chat encoding for fine-tuning Qwen3-VL.")
example = app.group("example", help="Write a small real data set.")

Format = Annotated[str, Option(help="Format to write: qvl, openai or qwenvl.")]
FromFormat = Annotated[str | None, Option(help="Format to read; default: recognised from the first sample.")]
Split = Annotated[str | None, Option(help="Split of a data set folder.")]
MediaRoot = Annotated[Path | None, Option(help="Folder that relative media paths start from; default: the file's own.")]
AllowRoot = Annotated[
    list[Path] | None, Option(help="Folder from which media may be read by absolute path; may be repeated.")
]


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


@app.command()
def convert(
    source: Annotated[Path, Argument(help="File, or data set folder.")],
    target: Annotated[Path, Argument(help="New .parquet or .jsonl file; a folder if all splits are converted.")],
    format: Format = "qvl",
    from_format: FromFormat = None,
    split: Split = None,
    media_root: MediaRoot = None,
    allow_root: AllowRoot = None,
) -> None:
    """Convert between formats and containers. Parquet carries the pictures inside, JSONL has them laid beside it."""
    from qvl_data.convert import convert as run

    counts = run(
        source,
        target,
        format,
        split=split,
        from_format=from_format,
        media_root=media_root,
        allow_root=tuple(allow_root or ()),
    )
    for file, count in counts.items():
        print(f"{file}: {count} samples")


@app.command()
def view(
    source: Annotated[Path, Argument(help="File, or data set folder.")],
    number: Annotated[int, Argument(min=0, help="Which sample, from 0.")] = 0,
    split: Split = None,
    from_format: FromFormat = None,
    media_root: MediaRoot = None,
    allow_root: AllowRoot = None,
) -> None:
    """Print one sample; what is learned from is green, and every picture is opened."""
    from qvl_data.dataset import Dataset
    from qvl_data.view import view as show

    dataset = Dataset(source, split, from_format, media_root, tuple(allow_root or ()))
    show(dataset, number)


main = app.main
