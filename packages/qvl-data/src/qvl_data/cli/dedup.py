"""`qvl-data dedup`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from qvl_core.cli import Option
from qvl_core.errors import BadInput

from .app import AllowRoot, Columns, Fresh, FromFormat, MediaRoot, Source, Split, app, columns_of


class Compare(StrEnum):
    sample = "sample"
    pictures = "pictures"
    text = "text"


class Keep(StrEnum):
    first = "first"
    largest = "largest"


@app.command()
def dedup(
    source: Source,
    out: Annotated[Path | None, Option(help="Folder for the clean data set and duplicates.jsonl.")] = None,
    compare: Annotated[Compare, Option(help="What makes two samples the same: all, the pictures, or the text.")] = (
        Compare.sample
    ),
    perceptual: Annotated[
        int | None,
        Option(min=0, max=16, help="Pictures look alike up to so many bits of 64 (try 4); default: equal files."),
    ] = None,
    similar: Annotated[
        float | None,
        Option(min=0.5, max=1, help="With --compare text: share of their runs of 5 characters in common (try 0.8)."),
    ] = None,
    embeddings: Annotated[
        Path | None, Option(help=".npy file with a vector for each sample, compared instead of all else.")
    ] = None,
    cosine: Annotated[float, Option(min=-1, max=1, help="With --embeddings: the same from this cosine on.")] = 0.95,
    against: Annotated[
        list[str] | None, Option(help="File that is only compared with, such as a test set; may be repeated.")
    ] = None,
    keep: Annotated[Keep, Option(help="Which of the same samples stays.")] = Keep.first,
    workers: Annotated[int, Option(min=1, help="Processes; the result is the same for every number.")] = 1,
    dry_run: Annotated[bool, Option("--dry-run", help="Only count; write nothing.")] = False,
    split: Split = None,
    from_format: FromFormat = None,
    columns: Columns = None,
    media_root: MediaRoot = None,
    allow_root: AllowRoot = None,
    fresh: Fresh = False,
) -> None:
    """Write a data set without its duplicates. What stands in test or validation is removed from the other splits."""
    from qvl_data.dedup import DUPLICATES
    from qvl_data.dedup import dedup as run

    if out is None and not dry_run:
        raise BadInput("qvl-data dedup: name a folder with --out, or only count with --dry-run.")
    done = run(
        source,
        out or Path(),
        compare=compare.value,
        perceptual=perceptual,
        similar=similar,
        embeddings=embeddings,
        cosine=cosine,
        against=tuple(against or ()),
        keep=keep.value,
        split=split,
        format=from_format,
        columns=columns_of(columns),
        media_root=media_root,
        allow_root=tuple(allow_root or ()),
        workers=workers,
        dry_run=dry_run,
        fresh=fresh,
    )
    removed = sum(done["removed"].values())
    same = (
        f"{removed:,} of them the same as one of {done['groups']:,} that stay" if removed else "no two of them the same"
    )
    print(f"{source}: {done['samples']:,} samples, {same}")
    for name, count in done["removed"].items():
        print(f"  {name}: {count:,} {'would be ' if dry_run else ''}removed")
    if not dry_run:
        print(f"{out}: the clean data set, and {DUPLICATES}, which tells what went where")
