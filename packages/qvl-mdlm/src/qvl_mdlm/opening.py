"""Open what training left behind, or any folder, as a masked diffusion model.

    model, processor = open_masked("runs/mine")                     # a run, an adapter, a converted or merged model
    model, processor = open_masked("Qwen/Qwen3-VL-2B-Instruct", unconverted=True)    # as it is before any training

An adapter's base is autoregressive on disk; the diffusion.json beside the adapter says how it attends.
"""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

import qvl_mdlm.model  # noqa: F401 (makes the classes known to transformers)
from qvl_core.errors import BadInput
from qvl_core.qwen3vl.load import Precision, load_model, open_config
from qvl_core.qwen3vl.lora import load_adapter
from qvl_core.qwen3vl.trained import base_of, folder_of, is_adapter, own_processor
from qvl_core.recipe.blocks import Model
from qvl_core.training.engine import DTYPES, resolve_precision
from qvl_mdlm.config import MaskedConfig, MaskedMoeConfig, masked_config
from qvl_mdlm.probe import check_sees_both_ways
from qvl_mdlm.settings import SETTINGS, read_settings, with_settings

log = logging.getLogger(__name__)
COMMAND = "qvl-mdlm"


class Found(NamedTuple):
    """Where a masked diffusion model lies.

    block      the whole model, or the base of the adapter
    adapter    None: the model is whole
    configure  makes the configuration of `block` that of the model, as `load_model` takes it
    """

    block: Model
    adapter: Path | None
    configure: Callable[[Any, Any], Any]


def open_masked(name: str, base: str | None = None, *, unconverted: bool = False) -> tuple[Any, Any]:
    """Model (in evaluation mode, on the best device, in its 16-bit type there) and processor.

    base         what to put an adapter on, in place of the base that it names
    unconverted  also open an autoregressive model, which then attends both ways without having learned to

    Raises BadInput for a name that is none of these.
    """
    found = find(name, base, unconverted)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = resolve_precision("auto", device)
    model, processor = load_found(found, precision, device)
    if found.adapter:
        load_adapter(model, found.adapter)
        for key, parameter in model.named_parameters():
            if ".lora_" in key:  # fp32 until now
                parameter.data = parameter.data.to(DTYPES[precision])
        processor = own_processor(found.adapter) or processor
    check_sees_both_ways(model)
    return model.eval(), processor


def load_found(found: Found, precision: Precision, device: "torch.device | str") -> tuple[Any, Any]:
    """The model, or an adapter's base that attends as the adapter needs, and its processor."""
    return load_model(found.block, precision=precision, device=device, configure=found.configure)


def find(name: str, base: str | None = None, unconverted: bool = False) -> Found:
    """Where the model lies and how it attends; no weights are read. Raises BadInput as `open_masked` does."""
    folder = folder_of(name, COMMAND)
    if folder is None:
        raise BadInput(f"tiny: is no folder; write one with `{COMMAND} tiny FOLDER`.")
    if is_adapter(folder):
        return _adapter(folder, base)
    if base is not None:
        raise BadInput(f"--base: {name} is no adapter and has no base; leave it out.")
    block = Model(name=str(folder))
    masked = is_masked(block)
    if not masked and not unconverted:
        raise BadInput(
            f"{name}: is an autoregressive model, which has not learned to denoise; convert it with `{COMMAND} convert "
            f"{name} --out FOLDER` and train that, or train with model.name={name}."
        )
    if not masked:
        log.warning("note: %s is autoregressive; it now attends both ways (full), which it has not learned to.", name)
    return Found(block, None, _masked)


def is_masked(block: Model) -> bool:
    """Whether a model's own configuration is that of a masked diffusion model."""
    return isinstance(open_config(block.name, block.revision), MaskedConfig | MaskedMoeConfig)


def _adapter(folder: Path, base: str | None) -> Found:
    block, settings = base_of(folder, base), read_settings(folder)
    if settings is None and not is_masked(block):
        raise BadInput(
            f"{folder}: no {SETTINGS} there, which says how its base attends; copy it from the run's final/, or, if "
            "the adapter is autoregressive, merge it with `qvl-sft merge` and convert the result."
        )
    return Found(block, folder, partial(_as_trained, settings=settings) if settings else _masked)


def _as_trained(config: Any, processor: Any, settings: dict[str, Any]) -> Any:
    return with_settings(config, processor.tokenizer, settings)


def _masked(config: Any, processor: Any) -> Any:
    return masked_config(config, processor.tokenizer)
