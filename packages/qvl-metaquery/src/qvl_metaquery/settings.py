"""metaquery.json: what a trained model needs to draw beside weights. Written by a run, read by the pipeline."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from qvl_core.errors import BadInput
from qvl_core.files import write_atomic
from qvl_core.recipe.blocks import Media

FILE = "metaquery.json"
SYSTEM = (
    "You are told what a picture is to show. Describe that picture in detail: its objects with their colours, shapes, "
    "sizes, textures and number, any text in it, where everything is, and the background."
)


class Settings(BaseModel):
    """Names and shapes; `mllm` and `sana` are hub ids or folders."""

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

    def write(self, folder: Path) -> None:
        write_atomic(folder / FILE, self.model_dump_json(indent=2) + "\n")


def read_settings(folder: Path) -> Settings:
    """The settings in a folder. Raises BadInput if there are none, or they are not understood."""
    try:
        return Settings.model_validate_json((folder / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(
            f"{folder}: no {FILE} there, so it is no model that draws; name a run folder, its final/, or a folder that "
            "`qvl-metaquery` has written."
        ) from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise BadInput(f"{folder / FILE}: {where}: {first['msg']}; copy it again.") from None
