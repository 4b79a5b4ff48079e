"""`qvl-data validate`."""

from pathlib import Path
from typing import Annotated

from qvl_core.cli import Option

from .app import AllowRoot, Columns, Fresh, FromFormat, MediaRoot, Source, Split, app, columns_of


@app.command()
def validate(
    source: Source,
    split: Split = None,
    from_format: FromFormat = None,
    columns: Columns = None,
    media_root: MediaRoot = None,
    allow_root: AllowRoot = None,
    headers: Annotated[
        bool, Option("--headers", help="Read only the headers of pictures; default: decode all.")
    ] = False,
    model: Annotated[Path | None, Option(help="Folder of a model, to count tokens.")] = None,
    max_length: Annotated[int | None, Option(min=1, help="Longest sample in tokens; needs --model.")] = None,
    out: Annotated[Path | None, Option(help="Folder for findings.jsonl and validation.json.")] = None,
    quarantine: Annotated[Path | None, Option(help="Folder for the bad rows, verbatim, with their reasons.")] = None,
    fix_to: Annotated[Path | None, Option(help="Folder for a clean data set; safe mendings are listed in it.")] = None,
    workers: Annotated[int, Option(min=1, help="Processes; the result is the same for every number.")] = 1,
    as_json: Annotated[bool, Option("--json", help="Print one JSON object (qvl.validation/1).")] = False,
    fresh: Fresh = False,
) -> int:
    """Check every sample: 0 if all can be used, 1 if some cannot. Each finding names its place and the fix."""
    import json

    from qvl_data.validate import validate as run
    from qvl_data.validate.show import show

    found = run(
        source,
        split,
        format=from_format,
        columns=columns_of(columns),
        media_root=media_root,
        allow_root=tuple(allow_root or ()),
        pixels=not headers,
        model=model,
        max_length=max_length,
        out=out,
        quarantine=quarantine,
        fix_to=fix_to,
        workers=workers,
        fresh=fresh,
    )
    if as_json:
        print(json.dumps(found.to_dict(), ensure_ascii=False, indent=1))
    else:
        show(found)
    return 1 if found.bad else 0
