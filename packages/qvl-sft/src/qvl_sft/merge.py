"""Fold an adapter into its full-precision base: a plain model folder for transformers, vLLM and others."""

from pathlib import Path

from qvl_core.errors import BadInput
from qvl_core.files import new_folder
from qvl_core.qwen3vl.load import load_model, quiet
from qvl_core.qwen3vl.lora import merge_adapter
from qvl_core.training.engine import DTYPES
from qvl_sft.trained import adapter_config, base_of, final_folder, is_adapter, own_processor
from qvl_vision.checkpoint import mark_merger_trained


def merge(adapter: Path, out: Path, base: str | None = None, dtype: str = "bf16") -> Path:
    """Write base + adapter, with the adapter's processor, to the new folder `out` and return it.

    The sum is computed in fp32 and rounded once to `dtype`. Raises BadInput if nothing can be merged or `out` exists.
    """
    if dtype not in DTYPES:
        raise BadInput(f"--dtype {dtype}: choose one of {', '.join(DTYPES)}.")
    folder = final_folder(adapter)
    if folder is None:
        raise BadInput(f"{adapter}: there is no such folder.")
    if not is_adapter(folder):
        raise BadInput(f"{adapter}: is no adapter (no adapter_config.json); a model trained in full needs no merging.")
    with new_folder(out) as aside:
        model, processor = load_model(base_of(folder, base), precision="fp32", device="cpu")
        merge_adapter(model, folder)
        if any(name.endswith("merger") for name in adapter_config(folder).get("modules_to_save") or ()):
            mark_merger_trained(model)
        with quiet(bars=False):
            model.to(DTYPES[dtype]).save_pretrained(aside)
        (own_processor(folder) or processor).save_pretrained(aside)
    print(f"{out}: merged model and processor; talk to it with `qvl-sft chat {out}`.")
    return out
