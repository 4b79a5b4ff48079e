"""Open what training left behind, or any Qwen3-VL: a run folder, an adapter folder, a model folder or a hub id.

Which folder is what is told by `qvl_core.qwen3vl.trained`.
"""

from typing import Any

import torch

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.load import load_model
from qvl_core.qwen3vl.lora import load_adapter
from qvl_core.qwen3vl.quantize import is_quantized
from qvl_core.qwen3vl.trained import base_of, folder_of, is_adapter, own_processor
from qvl_core.recipe.blocks import Model, Quantization
from qvl_core.training.engine import DTYPES, resolve_precision


def load_trained(
    name: str, base: str | None = None, *, quantization: str | None = None, spread: bool = False
) -> tuple[Any, Any]:
    """Model (in evaluation mode, on the best device, in its 16-bit type there) and processor.

    base          what to put an adapter on, in place of the base that it names
    quantization  nf4 or int8: hold the language model in fewer bits
    spread        lay the layers on all GPUs, then on the host's memory (accelerate); for models larger than one GPU

    A folder in 4 bits, as `export --quantize nf4` and Unsloth write it, is opened as it is. Raises BadInput for a name
    that is none of these.
    """
    if quantization and spread:
        raise BadInput("--quant and --device-map exclude each other; a model in fewer bits stays on one device.")
    best = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device, precision = torch.device("cpu") if spread else best, resolve_precision("auto", best)
    quantized = Quantization.model_validate({"kind": quantization}) if quantization else None
    folder = folder_of(name, "qvl-sft")
    adapter = folder if folder is not None and is_adapter(folder) else None
    block = base_of(adapter, base) if adapter else Model(name=str(folder or name))
    model, processor = load_model(
        block.model_copy(update={"quantization": quantized}), precision=precision, device=device, low_bit=True
    )
    if spread and is_quantized(model):
        raise BadInput(f"{block.name}: is in 4 bits, which stay on one device; leave out --device-map.")
    if adapter:
        load_adapter(model, adapter)
        for key, parameter in model.named_parameters():
            if ".lora_" in key:  # fp32 until now
                parameter.data = parameter.data.to(DTYPES[precision])
        processor = own_processor(adapter) or processor
    return (_spread(model) if spread else model).eval(), processor


def _spread(model: Any) -> Any:
    """Layers on the GPUs as far as they fit, evenly, and the rest in the host's memory, fetched when they run."""
    from accelerate import dispatch_model, infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    whole = model._no_split_modules
    memory = get_balanced_memory(model, no_split_module_classes=whole)
    return dispatch_model(model, infer_auto_device_map(model, memory, no_split_module_classes=whole))
