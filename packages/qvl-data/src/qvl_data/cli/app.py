"""The command, and the options that several verbs share."""

from pathlib import Path
from typing import Annotated

from qvl_core.cli import App, Argument, Option
from qvl_core.errors import BadInput

app = App("qvl-data", package="qvl_data", help="Samples, formats, media and chat encoding for fine-tuning Qwen3-VL.")

Source = Annotated[
    str, Argument(help='File, folder, registered name, or text such as "digits%50 + a.jsonl"; of a folder, all splits.')
]
Format = Annotated[str, Option(help="Format to write (qvl, openai, qwenvl, ...).")]
FromFormat = Annotated[str | None, Option(help="Format to read; default: recognised from the first sample.")]
Columns = Annotated[
    str | None, Option("--map", help="Columns of the data by field, such as image=image_path,user=question.")
]
Split = Annotated[str | None, Option(help="Split of a data set folder.")]
MediaRoot = Annotated[Path | None, Option(help="Folder that relative media paths start from; default: the file's own.")]
AllowRoot = Annotated[
    list[Path] | None, Option(help="Folder from which media may be read by absolute path; may be repeated.")
]
RegistryFile = Annotated[
    Path | None, Option("--registry", help="File of registered data sets; default: QVL_REGISTRY, else datasets.yaml.")
]
Fresh = Annotated[bool, Option("--fresh", help="Start over where an earlier output is there, even a finished one.")]


def columns_of(map: str | None) -> dict[str, str] | None:
    """What `--map image=image_path,user=question` says. Raises BadInput."""
    if map is None:
        return None
    pairs = [pair.partition("=") for pair in map.split(",")]
    for field, equals, column in pairs:
        if not (field.strip() and equals and column.strip()):
            raise BadInput(
                f'--map: "{field}{equals}{column}" is no field=column; write image=image_path,user=question.'
            )
    columns = {field.strip(): column.strip() for field, _, column in pairs}
    if len(columns) < len(pairs):
        raise BadInput("--map: a field is named twice; name each once.")
    return columns
