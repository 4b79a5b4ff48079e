"""`qvl-mdlm convert` and `merge`: folders of whole masked diffusion models, which open without a base or an adapter."""

import shlex
from functools import partial
from pathlib import Path
from typing import Any

from qvl_core.errors import BadInput
from qvl_core.files import new_folder
from qvl_core.qwen3vl.adapter import merge_adapter
from qvl_core.qwen3vl.groups import is_tied
from qvl_core.qwen3vl.load import load_model, quiet, stored_precision
from qvl_core.qwen3vl.trained import adapter_config, folder_of, is_adapter, own_processor
from qvl_core.recipe.blocks import Model
from qvl_core.training.engine import DTYPES
from qvl_mdlm.config import Pattern, masked_config
from qvl_mdlm.opening import COMMAND, find, is_masked, load_found
from qvl_mdlm.probe import check_sees_both_ways


def convert(
    base: str,
    out: Path,
    attention: Pattern | None = None,
    block_size: int | None = None,
    mask_token_id: int | None = None,
) -> Path:
    """Write an autoregressive model as a masked diffusion model to the new folder `out`, whole or not at all.

    The weights are the same; what it has to learn yet is to denoise. The other options are those of `masked_config`.
    Raises BadInput for what cannot be meant.
    """
    folder = folder_of(base, COMMAND)
    if folder is None:
        raise BadInput(f"tiny: is no folder; write one with `{COMMAND} tiny FOLDER`.")
    if is_adapter(folder):
        raise BadInput(f"{base}: is an adapter; merge it with `qvl-sft merge {base} --out FOLDER` and convert that.")
    block = Model(name=str(folder))
    if is_masked(block):
        raise BadInput(f"{base}: is a masked diffusion model already; train it as it is, with model.name={base}.")
    configure = partial(_configured, pattern=attention, block_size=block_size, mask_token_id=mask_token_id)
    model, processor = load_model(block, precision=stored_precision(block.name), device="cpu", configure=configure)
    check_sees_both_ways(model)
    _write(model, processor, out)
    config = model.config
    told = {"attention": config.pattern, "block_size": config.block_size} if config.pattern != "full" else {}
    keys = [f"model.name={out}", *(f"diffusion.{key}={value}" for key, value in told.items() if value is not None)]
    print(f"{out}: attention {config.pattern}, mask token {config.mask_token_id}; train it with {shlex.join(keys)}.")
    return out


def merge(adapter: str, out: Path, base: str | None = None) -> Path:
    """Fold an adapter into its full-precision base, in the new folder `out`, whole or not at all.

    Computed in fp32 and rounded once to the base's type. A head that shares the embedding gets a trained row of the
    mask token with it: that token's own logit changes, which is never written, and no other (`qvl_core.qwen3vl.rows`).
    Raises BadInput for what is no adapter.
    """
    folder = folder_of(adapter, COMMAND)
    if folder is None or not is_adapter(folder):
        raise BadInput(f"{adapter}: is no adapter; a model trained in full needs no merging.")
    found = find(adapter, base)
    stored = stored_precision(found.block.name, found.block.revision)
    model, processor = load_found(found, stored, "cpu")
    merge_adapter(model, folder)
    check_sees_both_ways(model)
    _write(model.to(DTYPES[stored]), own_processor(folder) or processor, out)
    print(f"{out}: model and processor; sample from it with `{COMMAND} sample {shlex.quote(str(out))} QUESTION`.")
    if is_tied(model) and adapter_config(folder).get("trainable_token_indices"):
        print("note: the head has the mask token's trained row now; no other logit differs from the adapter's.")
    return out


def _configured(config: Any, processor: Any, **how: Any) -> Any:
    return masked_config(config, processor.tokenizer, **how)


def _write(model: Any, processor: Any, out: Path) -> None:
    """Weights, configuration, generation settings and processor."""
    with new_folder(out) as aside, quiet(bars=False):
        model.save_pretrained(aside)
        processor.save_pretrained(aside)
