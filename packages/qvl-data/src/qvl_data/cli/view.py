"""`qvl-data view`."""

from pathlib import Path
from typing import Annotated

from qvl_core.cli import Argument

from .app import AllowRoot, FromFormat, MediaRoot, Split, app


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
