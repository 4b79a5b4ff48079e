"""metaquery.json: what a trained model needs to draw beside weights. Written by a run, read by the pipeline."""

from typing import ClassVar

from qvl_core.recipe.blocks import Media
from qvl_core.settings import TrainedSettings

FILE = "metaquery.json"
SYSTEM = (
    "You are told what a picture is to show. Describe that picture in detail: its objects with their colours, shapes, "
    "sizes, textures and number, any text in it, where everything is, and the background."
)


class Settings(TrainedSettings):
    """Names and shapes; `mllm` and `sana` are hub ids or folders, the revisions of hub ids the commits that were
    trained with."""

    FILE: ClassVar[str] = FILE
    PARTS: ClassVar[tuple[str, ...]] = ("mllm", "sana")
    WHAT: ClassVar[str] = (
        "no model that draws; name a run folder, its final/, or a folder that `qvl-metaquery` has written."
    )

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
