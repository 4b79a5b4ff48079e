"""`qvl-data audit`."""

from pathlib import Path
from typing import Annotated

from qvl_core.cli import Option

from .app import AllowRoot, Columns, Fresh, FromFormat, MediaRoot, Source, Split, app, columns_of


@app.command()
def audit(
    source: Source,
    out: Annotated[Path, Option(help="The report: one HTML file.")] = Path("report.html"),
    split: Split = None,
    from_format: FromFormat = None,
    columns: Columns = None,
    media_root: MediaRoot = None,
    allow_root: AllowRoot = None,
    model: Annotated[Path | None, Option(help="Folder of a model, to count tokens, too.")] = None,
    samples: Annotated[int, Option(min=0, help="How many samples are shown.")] = 24,
    workers: Annotated[int, Option(min=1, help="Processes; the page is the same for every number.")] = 1,
    fresh: Fresh = False,
) -> None:
    """Write one page on a data set: samples, lengths and sizes, answers, duplicates, and what is wrong."""
    from qvl_data.audit import audit as run

    done = run(
        source,
        out,
        split=split,
        format=from_format,
        columns=columns_of(columns),
        media_root=media_root,
        allow_root=tuple(allow_root or ()),
        model=model,
        samples=samples,
        workers=workers,
        fresh=fresh,
    )
    found = f"{done['samples']:,} samples, {done['bad']:,} with errors, {done['duplicates']:,} look like another"
    print(f"{out}: {found}")
