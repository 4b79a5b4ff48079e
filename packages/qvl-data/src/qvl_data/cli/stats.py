"""`qvl-data stats`."""

from pathlib import Path
from typing import Annotated

from qvl_core.cli import Option

from .app import AllowRoot, Columns, FromFormat, MediaRoot, Source, Split, app, columns_of


@app.command()
def stats(
    source: Source,
    split: Split = None,
    from_format: FromFormat = None,
    columns: Columns = None,
    media_root: MediaRoot = None,
    allow_root: AllowRoot = None,
    model: Annotated[Path | None, Option(help="Folder of a model, to count tokens, too.")] = None,
    top: Annotated[int, Option(min=1, help="How many of the most frequent values are listed.")] = 20,
    workers: Annotated[int, Option(min=1, help="Processes; the result is the same for every number.")] = 1,
    as_json: Annotated[bool, Option("--json", help="Print one JSON object (qvl.stats/1).")] = False,
) -> None:
    """Show what is in a data set: sizes, lengths, languages, answers and how evenly they are spread."""
    import json

    from qvl_data.stats import stats as run
    from qvl_data.stats.show import show
    from qvl_data.walk import open_splits

    reading = {"format": from_format, "columns": columns_of(columns), "media_root": media_root}
    sets, broken = open_splits(source, split, allow_root=tuple(allow_root or ()), **reading)
    if broken:
        raise broken[0]
    processor = None
    if model is not None:
        from qvl_data.processor import open_processor

        processor = open_processor(model)
    result = run(sets, processor, source=str(source), workers=workers, top=top)
    if as_json:
        print(json.dumps(result.to_dict(), ensure_ascii=False, indent=1))
    else:
        show(result)
