"""Where a trained model lies: a run folder, its final/, one of its checkpoints, or a folder of the same layout.

find_newest_checkpoint("runs/mine")                   # runs/mine/final, else the newest whole checkpoint
"""

from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from qvl_core.errors import BadInput
from qvl_core.files import sha256
from qvl_core.qwen3vl.load import weights_sha256
from qvl_core.recipe.load import load
from qvl_core.run import RunFolder
from qvl_core.training.checkpoint import read, trained_folder
from qvl_metaquery.recipe import RECIPE
from qvl_metaquery.settings import FILE, Settings
from qvl_metaquery.stage import stage_of
from qvl_metaquery.weights import TRANSFORMER, is_whole, own_weights, trained_transformer


@dataclass(frozen=True)
class Whole:
    """All that is not in Qwen3-VL and Sana as they were.

    own          queries and connector
    transformer  folder of a trained transformer; None: Sana's own
    trained      weights of the transformer that take the place of those in its folder (a checkpoint's)
    """

    folder: Path
    settings: Settings
    own: dict[str, Tensor]
    transformer: Path | None = None
    trained: dict[str, Tensor] = field(default_factory=dict)


def find_newest_checkpoint(path: "str | Path") -> Path:
    """The folder to load: of a run final/, or while it has none its newest whole checkpoint; else `path` itself."""
    return trained_folder(path, FILE)


def find_whole(path: Path) -> Whole:
    """What `find_newest_checkpoint` names, read. Raises BadInput for a folder that holds no model that draws."""
    folder = find_newest_checkpoint(path)
    if not folder.is_dir():
        raise BadInput(f"{path}: there is no such folder; name a run folder, its final/, or one of its checkpoints.")
    if not (folder / "manifest.json").is_file():
        return Whole(folder, Settings.read(folder), own_weights(folder), trained_transformer(folder))
    found = read(folder)
    weights = found.average() or found.weights()
    prefix = "transformer."
    own = {name: value for name, value in weights.items() if not name.startswith(prefix)}
    trained = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    run = RunFolder(folder.parent.parent)
    settings = Settings.read(run.path)
    if is_whole(own) and trained:  # nothing of an earlier stage is left
        return Whole(folder, settings, own, None, trained)
    if (before := stage_of(load(RECIPE, str(run.recipe_file), [], "qvl_metaquery"))) is None:
        return Whole(folder, settings, own, None, trained)
    own = own if is_whole(own) else own_weights(before) | own
    return Whole(folder, settings, own, None if trained else trained_transformer(before), trained)


def state_of(model: Path) -> str:
    """What two models share only if they draw alike. Raises BadInput for a folder that is none."""
    folder = find_newest_checkpoint(model)
    if (folder / "manifest.json").is_file():
        return sha256(folder / "manifest.json")
    Settings.read(folder)
    return " ".join([sha256(folder / FILE), weights_sha256(folder), weights_sha256(folder / TRANSFORMER)])
