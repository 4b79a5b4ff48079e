"""What a trained model needs beside weights: a JSON file, written by a run and read by what uses the model.

class Settings(TrainedSettings):
    FILE = "edit.json"
    PARTS = ("base",)
    base: str
"""

import os
from pathlib import Path
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from qvl_core.errors import BadInput
from qvl_core.files import write_atomic


class TrainedSettings(BaseModel):
    """Values of a method. Those that PARTS names are other models: hub ids or folders, or None; in the file, folders
    are relative ones where they move with it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    FILE: ClassVar[str]
    PARTS: ClassVar[tuple[str, ...]]
    WHAT: ClassVar[str]
    """What a folder is that has no such file, and what to name instead: the end of a sentence."""

    def write(self, folder: Path, run: Path | None = None) -> None:
        """Write the file; parts that lie in `run` (default: `folder`) are named as seen from `folder`."""
        root = (run or folder).resolve()
        named = {part: _seen_from(folder.resolve(), name, root) for part, name in self._parts().items()}
        write_atomic(folder / self.FILE, self.model_copy(update=named).model_dump_json(indent=2) + "\n")

    def check_parts(self, folder: Path) -> None:
        """Raise BadInput if a part of the model in `folder` is gone."""
        for name in self._parts().values():
            if Path(name).is_absolute() and not Path(name).is_dir():
                raise BadInput(
                    f"{folder}: is used with {name}, and there is no such folder; put it there, or take a run as a "
                    "whole."
                )

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The settings in a folder, parts by their whole paths. Raises BadInput if there are none, or no such."""
        try:
            settings = cls.model_validate_json((folder / cls.FILE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise BadInput(f"{folder}: no {cls.FILE} there, so it is {cls.WHAT}") from None
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise BadInput(f"{folder / cls.FILE}: {where}: {first['msg']}; copy it again.") from None
        named = {part: name for part, name in settings._parts().items() if name.startswith(".")}
        return settings.model_copy(update={part: str((folder / name).resolve()) for part, name in named.items()})

    def _parts(self) -> dict[str, str]:
        return {part: name for part in self.PARTS if (name := getattr(self, part)) is not None}


def _seen_from(folder: Path, name: str, root: Path) -> str:
    """A folder in `root` relative to `folder`, with a dot before it that no hub id has; another name as it is."""
    if not Path(name).is_absolute() or not Path(name).is_relative_to(root):
        return name
    seen = Path(os.path.relpath(name, folder)).as_posix()
    return seen if seen.startswith("..") else f"./{seen}"
