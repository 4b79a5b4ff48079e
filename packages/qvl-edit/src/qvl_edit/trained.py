"""Where a model that edits lies, and its transformer with all that was trained.

runs/mine                     its final/, or while there is none its newest checkpoint
runs/mine/final               adapters, or a transformer, and edit.json, which names the rest
runs/mine/checkpoints/step-*  what is trained, by name; the run's recipe and edit.json say of what
exported                      a whole folder in the layout of diffusers, ours or anyone's
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders import QwenImageLoraLoaderMixin
from safetensors import SafetensorError
from torch import Tensor

from qvl_core.errors import BadInput, first_line
from qvl_core.qwen3vl.groups import is_adapter
from qvl_core.qwen3vl.load import find_folder, quiet
from qvl_core.qwen3vl.lora import apply_tune
from qvl_core.recipe.load import load
from qvl_core.run import RunFolder
from qvl_core.training.checkpoint import read, trained_folder
from qvl_edit.groups import groups
from qvl_edit.opening import EVERY_PART
from qvl_edit.parts import load_transformer, transformer_without_weights
from qvl_edit.profile import read_profile
from qvl_edit.recipe import RECIPE, EditRecipe
from qvl_edit.sampling import Sampling
from qvl_edit.saving import LORA
from qvl_edit.settings import FILE, Settings


@dataclass(frozen=True)
class Trained:
    """What was found.

    checkpoint   folder in the layout of diffusers, for all but the transformer
    transformer  folder of the transformer that the rest is put upon
    adapters     file of adapters, in diffusers' keys
    weights      of a checkpoint of training, by name, and the recipe that says what they are
    """

    folder: Path
    settings: Settings
    checkpoint: Path
    transformer: Path
    adapters: Path | None = None
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    recipe: EditRecipe | None = None

    @property
    def sampling(self) -> Sampling:
        """How it draws if nothing else is said."""
        return Sampling.of(self.settings.sampling, read_profile(self.checkpoint).guidance)


def find_trained(path: "str | Path") -> Trained:
    """The model that a path names: a run, its final/, a checkpoint, a folder in the layout of diffusers, or a hub id.

    Raises BadInput for what holds none.
    """
    folder = trained_folder(path, FILE)
    if (folder / "manifest.json").is_file():
        run, found = RunFolder(folder.parent.parent), read(folder)
        settings = _settings(run.path)
        base = _base(settings)
        recipe = load(RECIPE, str(run.recipe_file), [], "qvl_edit")
        weights = found.average() or found.weights()
        return Trained(folder, settings, base, _begun(settings, base), weights=weights, recipe=recipe)
    if (folder / "model_index.json").is_file() or not folder.is_dir():
        base = find_folder(str(path), None, "model", EVERY_PART)
        ours = (base / FILE).is_file()
        own = _settings(base) if ours else Settings(base=str(base))
        adapters = base / LORA if ours and (base / LORA).is_file() else None
        return Trained(base, own, base, base / "transformer", adapters)
    settings = _settings(folder)
    base = _base(settings)
    transformer = folder / "transformer"
    adapters = folder / LORA
    return Trained(
        folder,
        settings,
        base,
        transformer if transformer.is_dir() else _begun(settings, base),
        adapters if adapters.is_file() else None,
    )


def open_trained(
    found: Trained, dtype: torch.dtype, lora: Sequence[Path] = (), adapter_type: torch.dtype | None = None
) -> Any:
    """Its transformer, frozen, on the CPU, with adapters beside the weights that they change.

    lora          more adapters, files or folders, in keys of diffusers, ComfyUI or Kohya
    adapter_type  default: as the weights

    Raises BadInput for what does not belong together.
    """
    transformer = load_transformer(found.transformer, dtype)
    if found.recipe is not None:
        _put(transformer, found.recipe, found.weights, found.folder)
    for number, file in enumerate([*([found.adapters] if found.adapters else []), *lora]):
        add_adapters(transformer, file, f"adapter_{number}")
    for name, parameter in transformer.named_parameters():  # what is trained is in fp32
        parameter.data = parameter.data.to((adapter_type or dtype) if is_adapter(name) else dtype)
    return transformer.eval().requires_grad_(False)


def add_adapters(transformer: Any, file: Path, name: str) -> None:
    """Put adapters beside a transformer's weights, and use them with all that are there. Raises BadInput."""
    if not file.exists():
        raise BadInput(f"{file}: there is no such file of adapters.")
    where = {"weight_name": file.name} if file.is_file() else {}
    try:
        with quiet(bars=False):
            weights, metadata = QwenImageLoraLoaderMixin.lora_state_dict(
                str(file.parent if file.is_file() else file),
                return_lora_metadata=True,
                local_files_only=True,
                use_safetensors=True,
                **where,
            )
            QwenImageLoraLoaderMixin.load_lora_into_transformer(dict(weights), transformer, name, metadata=metadata)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise BadInput(
            f"{file}: cannot be put upon this transformer ({first_line(error)}); name adapters of the same model."
        ) from None
    places = dict(transformer.named_parameters())
    lost = [key for key in weights if _place(key, name) not in places]  # the library leaves them out
    if lost:
        raise BadInput(
            f"{file}: {len(lost)} of its {len(weights)} weights, such as {lost[0]}, have no place in this transformer; "
            "name adapters of the same model."
        )
    transformer.set_adapters(list(transformer.peft_config))
    for key, value in weights.items():  # peft has rounded them to the type of the weights beside them
        place = places[_place(key, name)]
        place.data = value.to(place.device)


def _place(key: str, adapter: str) -> str:
    """The name that peft gives the parameter of a key in diffusers' spelling."""
    stem, _, kind = key.removeprefix("transformer.").rpartition(".")
    return f"{stem}.{kind}.{adapter}.weight" if kind.startswith("lora_") else f"{stem}.{adapter}.{kind}"


def adapter_config(found: Trained) -> Any:
    """Peft's, of the adapters of a checkpoint of training. No weights are read."""
    assert found.recipe is not None
    transformer = transformer_without_weights(found.transformer)
    _tune(transformer, found.recipe)
    return transformer.peft_config["default"]


def _tune(transformer: Any, recipe: EditRecipe) -> None:
    """Bring a transformer to the form in which a run trains it."""
    patterns = groups(recipe.tune, len(transformer.transformer_blocks))
    apply_tune(transformer, recipe.tune, recipe.train.seed, recipe.optim, patterns, wide=False)


@torch.no_grad()
def _put(transformer: Any, recipe: EditRecipe, weights: Mapping[str, Tensor], where: Path) -> None:
    """Tune a transformer as a run does, and put a checkpoint's weights into it."""
    _tune(transformer, recipe)
    places = dict(transformer.named_parameters())
    for name, value in weights.items():
        if name not in places or places[name].shape != value.shape:
            raise BadInput(
                f"{where}: {name} {tuple(value.shape)} has no place in the transformer; its base is another."
            )
        places[name].copy_(value)


def _settings(folder: Path) -> Settings:
    settings = Settings.read(folder)
    settings.check_parts(folder)
    return settings


def _base(settings: Settings) -> Path:
    return find_folder(settings.base, settings.revision, "base", EVERY_PART)


def _begun(settings: Settings, base: Path) -> Path:
    return base / "transformer" if settings.transformer is None else Path(settings.transformer)
