"""What a run leaves for the ecosystem: an adapter folder if LoRA was trained, else a whole model; and the processor."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qvl_core.qwen3vl.load import commit_of, load_model, quiet, stored_precision
from qvl_core.qwen3vl.lora import CONFIG_FILE, save_adapter
from qvl_core.recipe.blocks import Model
from qvl_core.training.engine import DTYPES


def export(
    model: Any,
    processor: Any,
    base: Model,
    folder: Path,
    weights: Mapping[str, Tensor],
    *,
    configure: Callable[[Any, Any], Any] | None = None,
    finish: Callable[[Any], None] | None = None,
) -> None:
    """Write trained `weights`, by name, to `folder`.

    base       what the run stands on
    configure  as `load_model` takes it
    finish     what a method has to say to the whole model before it is saved

    A model trained in full is put together on the CPU from its base, because the one in training may be sharded.
    """
    if hasattr(model, "peft_config"):
        start = base.init_from
        if start is not None and not (Path(start) / CONFIG_FILE).is_file():  # then it has the weights
            base = base.model_copy(update={"name": start, "revision": None})
        name = str(Path(base.name).resolve()) if Path(base.name).is_dir() else base.name  # found from anywhere
        save_adapter(model, folder, name, commit_of(base.name, base.revision), weights)
    else:
        plain = base.model_copy(update={"quantization": None})
        whole, _ = load_model(plain, precision="fp32", device="cpu", configure=configure)
        with torch.no_grad():
            own = dict(whole.named_parameters())
            for name, value in weights.items():
                own[name].copy_(value)
        if finish is not None:
            finish(whole)
        with quiet(bars=False):
            whole.to(DTYPES[stored_precision(base.name, base.revision)]).save_pretrained(folder)
    processor.save_pretrained(folder)
