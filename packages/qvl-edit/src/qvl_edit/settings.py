"""edit.json: what a trained model needs to edit beside weights. A run and `export` write it, the pipeline reads it."""

from typing import ClassVar

from qvl_core.settings import TrainedSettings
from qvl_edit.recipe import Pictures, Sampling

FILE = "edit.json"


class Settings(TrainedSettings):
    """`base` is a checkpoint in the layout of diffusers, a folder or a hub id, `revision` of a hub id the commit that
    was trained, `transformer` the folder of the transformer that training began with, where that is another."""

    FILE: ClassVar[str] = FILE
    PARTS: ClassVar[tuple[str, ...]] = ("base", "transformer")
    WHAT: ClassVar[str] = (
        "no model that edits; name a run folder, its final/, one of its checkpoints, or a folder in the layout of "
        "diffusers."
    )

    format: str = "qvl.edit/1"
    base: str
    revision: str | None = None
    transformer: str | None = None
    pictures: Pictures = Pictures()
    sampling: Sampling = Sampling()
