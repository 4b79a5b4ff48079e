"""`qvl-data view`."""

from pathlib import Path
from typing import Annotated

from qvl_core.cli import Argument, Option
from qvl_core.errors import BadInput

from .app import AllowRoot, Columns, Fresh, FromFormat, MediaRoot, Source, Split, app, columns_of


@app.command()
def view(
    source: Source,
    number: Annotated[int, Argument(min=0, help="Which sample, from 0.")] = 0,
    browser: Annotated[
        bool, Option("--browser", help="Look through all samples in the browser, and mark them.")
    ] = False,
    port: Annotated[
        int | None, Option(min=0, max=65535, help="The same on this port, without opening a browser.")
    ] = None,
    marks: Annotated[Path | None, Option(help="File of the marks; default: .marks/NAME.jsonl beside the data.")] = None,
    write_clean: Annotated[
        Path | None, Option(help="Write the samples that are not rejected to this .parquet, .tar or .jsonl file.")
    ] = None,
    only_accepted: Annotated[bool, Option("--only-accepted", help="With --write-clean: only accepted ones.")] = False,
    split: Split = None,
    from_format: FromFormat = None,
    columns: Columns = None,
    media_root: MediaRoot = None,
    allow_root: AllowRoot = None,
    fresh: Fresh = False,
) -> None:
    """Print one sample; what is learned from is green. With --browser: look through all, accept and reject."""
    from qvl_data.chosen import Chosen
    from qvl_data.view import Marks, marks_file
    from qvl_data.view import view as show
    from qvl_data.view import write_clean as write
    from qvl_data.walk import open_split

    if only_accepted and write_clean is None:
        raise BadInput("--only-accepted belongs to --write-clean OUT.")
    roots = tuple(allow_root or ())
    data = open_split(
        source, split, format=from_format, media_root=media_root, allow_root=roots, columns=columns_of(columns)
    )
    if isinstance(data, Chosen) and (write_clean is not None or browser or port is not None):
        raise BadInput(
            f"{source}: marks belong to samples of one file or split; name one, or write this choice first:"
            f' qvl-data mix "{source}" --out DIR.'
        )
    file = marks or marks_file(data, split or "")
    if write_clean is not None:
        count = write(data, Marks(file), write_clean, only_accepted, fresh)
        print(f"{write_clean}: {count:,} of {len(data):,} samples, by the marks of {file}")
    elif browser or port is not None:
        if number >= len(data):
            raise BadInput(f"{data.file}: sample {number} of {len(data)}; the last is {len(data) - 1}.")
        from qvl_data.view.server import serve

        serve(data, Marks(file), number, port or 0, open_it=port is None)
    else:
        show(data, number)
