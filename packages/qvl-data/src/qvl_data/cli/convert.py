"""`qvl-data convert`."""

from pathlib import Path
from typing import Annotated

from qvl_core.cli import Argument

from .app import AllowRoot, Format, FromFormat, MediaRoot, Split, app


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
