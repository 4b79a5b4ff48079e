"""What a run leaves: metaquery.json, the queries and the connector, and Sana's transformer if it was trained.

FOLDER/metaquery.json           names of Qwen3-VL and Sana, shapes, layout of prompts
FOLDER/connector.safetensors    `queries` and `connector.*`
FOLDER/transformer/             as diffusers has it; absent where Sana stayed as it was
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qvl_core.errors import BadInput, first_line
from qvl_core.qwen3vl.load import quiet
from qvl_metaquery.settings import Settings

OWN = "connector.safetensors"
TRANSFORMER = "transformer"


def save(
    folder: Path,
    settings: Settings,
    own: Mapping[str, Tensor],
    transformer: "Any | None",
    processor: Any,
    run: Path | None = None,
) -> None:
    """Write a model to `folder`; `own` are the queries and the connector, `transformer` None leaves Sana's out.

    run  the folder that is moved as a whole, with `folder` in it (see `Settings.write`)
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.detach().cpu().contiguous() for name, value in own.items()}, folder / OWN)
    if transformer is not None:
        with quiet(bars=False):
            transformer.save_pretrained(folder / TRANSFORMER)
    processor.save_pretrained(folder)
    settings.write(folder, run)


def own_weights(folder: Path) -> dict[str, Tensor]:
    """The queries and the connector in a folder. Raises BadInput if they are not there or cannot be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(folder / OWN)
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{folder / OWN}: cannot be read ({first_line(error)}); copy it again.") from None


def is_whole(own: Mapping[str, Tensor]) -> bool:
    """Whether these weights have the queries and the connector: each is trained whole or not at all."""
    return "queries" in own and any(name.startswith("connector.") for name in own)


def trained_transformer(folder: Path) -> "Path | None":
    """Sana's transformer among a model's files; None where it stayed as it was."""
    return folder / TRANSFORMER if (folder / TRANSFORMER / "config.json").is_file() else None


@torch.no_grad()
def put(model: torch.nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Put the queries and the connector into a model, all of them and nothing else. Raises BadInput naming `where`."""
    places = {name: p for name, p in model.named_parameters() if name == "queries" or name.startswith("connector.")}
    if lost := sorted(places.keys() - weights.keys()):
        raise BadInput(f"{where}: has no {lost[0]} ({len(lost)} lacking); it is of another depth or width.")
    if extra := sorted(weights.keys() - places.keys()):
        raise BadInput(f"{where}: {extra[0]} has no place in the model ({len(extra)} such); it is of another depth.")
    for name, place in places.items():
        if weights[name].shape != place.shape:
            raise BadInput(
                f"{where}: {name} is {tuple(weights[name].shape)} and should be {tuple(place.shape)}; set the queries, "
                "the connector and the model as they were there."
            )
        place.copy_(weights[name])


@torch.no_grad()
def put_in(transformer: torch.nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Put what was trained of Sana's transformer into one. Raises BadInput naming `where` for what has no place."""
    places = dict(transformer.named_parameters())
    for name, value in weights.items():
        if name not in places or places[name].shape != value.shape:
            shape = f"is {tuple(places[name].shape)} there" if name in places else "is not there"
            raise BadInput(
                f"{where}: transformer.{name} {tuple(value.shape)} {shape}; sana.name is another Sana than it was."
            )
        places[name].copy_(value)
