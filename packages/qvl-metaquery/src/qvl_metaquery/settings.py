"""metaquery.json: what a trained model needs to draw beside weights. Written by a run, read by the pipeline."""

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from qvl_core.errors import BadInput
from qvl_core.files import write_atomic
from qvl_core.recipe.blocks import Media

FILE = "metaquery.json"
PARTS = ("mllm", "sana")
SYSTEM = (
    "You are told what a picture is to show. Describe that picture in detail: its objects with their colours, shapes, "
    "sizes, textures and number, any text in it, where everything is, and the background."
)


class Settings(BaseModel):
    """Names and shapes; `mllm` and `sana` are hub ids or folders, in the file relative ones where they move with it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: str = "qvl.metaquery/1"
    mllm: str
    mllm_revision: str | None = None
    sana: str
    sana_revision: str | None = None
    queries: int
    system: str = SYSTEM
    caption_tokens: int = 256
    image_tokens: int | None = None
    layers: int
    width: int | None = None
    size: int
    train_shift: float = 1.0
    sample_shift: float | None = None
    media: Media = Media()

    def write(self, folder: Path, run: Path | None = None) -> None:
        """Write the file; parts that lie in `run` (default: `folder`) are named as seen from `folder`."""
        root = (run or folder).resolve()
        named = {part: _seen_from(folder.resolve(), getattr(self, part), root) for part in PARTS}
        write_atomic(folder / FILE, self.model_copy(update=named).model_dump_json(indent=2) + "\n")

    def check_parts(self, folder: Path) -> None:
        """Raise BadInput if a part of the model in `folder` is gone."""
        for name in (getattr(self, part) for part in PARTS):
            if Path(name).is_absolute() and not Path(name).is_dir():
                raise BadInput(
                    f"{folder}: draws with {name}, and there is no such folder; put it there, or take a run as a whole."
                )


def _seen_from(folder: Path, name: str, root: Path) -> str:
    """A folder in `root` relative to `folder`, with a dot before it that no hub id has; another name as it is."""
    if not Path(name).is_absolute() or not Path(name).is_relative_to(root):
        return name
    seen = Path(os.path.relpath(name, folder)).as_posix()
    return seen if seen.startswith("..") else f"./{seen}"


def read_settings(folder: Path) -> Settings:
    """The settings in a folder, parts by their whole paths. Raises BadInput if there are none, or they are no such."""
    try:
        settings = Settings.model_validate_json((folder / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(
            f"{folder}: no {FILE} there, so it is no model that draws; name a run folder, its final/, or a folder that "
            "`qvl-metaquery` has written."
        ) from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise BadInput(f"{folder / FILE}: {where}: {first['msg']}; copy it again.") from None
    named = {part: name for part in PARTS if (name := getattr(settings, part)).startswith(".")}
    return settings.model_copy(update={part: str((folder / name).resolve()) for part, name in named.items()})
