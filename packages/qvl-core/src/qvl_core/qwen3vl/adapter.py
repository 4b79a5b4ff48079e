"""Adapter folders in peft's own layout: what is trained here can be used anywhere, and what is trained elsewhere here.

    save_adapter(model, folder, base_name="Qwen/Qwen3-VL-4B-Instruct", revision=commit)
    load_adapter(base, folder)       # LoRA beside the base's weights
    merge_adapter(base, folder)      # LoRA folded into them

    adapter_config.json         what was adapted, and the base's name
    adapter_model.safetensors   LoRA, and modules that were trained in full, under the keys of peft's `modules_to_save`
    qvl.json                    what peft has no word for: which weights it stands on, how they were held in training

Plain `PeftModel.from_pretrained(base, folder)` gives the same logits. Adapters of peft, Unsloth, ms-swift and
LLaMA-Factory are read as well (`foreign`).
"""

import copy
import json
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from qvl_core.errors import BadInput, QVLError, first_line
from qvl_core.files import write_atomic
from qvl_core.qwen3vl import foreign
from qvl_core.qwen3vl.foreign import CONFIG_FILE, WEIGHTS_FILE
from qvl_core.qwen3vl.groups import is_adapter, is_tied
from qvl_core.qwen3vl.initial import Start
from qvl_core.qwen3vl.load import sees_both_ways, weights_sha256
from qvl_core.qwen3vl.quantize import is_low_bit, is_quantized
from qvl_core.qwen3vl.rows import LAYER, add_rows, merge_rows, rows_of
from qvl_core.qwen3vl.rows import NAME as ROWS

M = TypeVar("M", bound=nn.Module)

RECORD_FILE = "qvl.json"
SCHEMA = "qvl.adapter/1"
EMBEDDING = "model.language_model.embed_tokens.weight"
HEAD = "lm_head.weight"
PREFIX = "base_model.model."
DELTA = ".token_adapter.trainable_tokens_delta"  # what peft calls trained rows


def save_adapter(
    model: nn.Module,
    folder: Path,
    base_name: str,
    revision: str | None = None,
    state_dict: Mapping[str, Tensor] | None = None,
) -> None:
    """Write what `apply_tune` trained as a peft adapter folder (safetensors and JSON) that stands on `base_name`.

    state_dict: the trained values by parameter name, where the model holds only shards; default: the model's own.
    Raises QVLError if the model has no LoRA: a model trained in full is saved with `save_pretrained`.
    """
    from safetensors.torch import save_file

    if not (configs := getattr(model, "peft_config", {})):
        raise QVLError("the model has no LoRA to save as an adapter; save it whole with save_pretrained.")
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    values = {name: (state_dict or trained)[name].detach().cpu() for name in trained}
    # An adapter that was frozen is one whose layer nothing depends on; its file still has to be whole.
    for name, parameter in model.named_parameters():
        if is_adapter(name) and name not in trained:
            values[name] = torch.zeros(parameter.shape)
    config = copy.copy(configs["default"])
    start: Start | None = getattr(model, "lora_start", None)
    if start is not None:
        config = copy.copy(start.config)
        values = {name: _difference(start, name, value) for name, value in values.items()}
    config.base_model_name_or_path = base_name
    config.revision = revision
    config.target_modules = sorted(config.target_modules)
    config.modules_to_save = list(_whole_modules(model, {name for name in trained if not is_adapter(name)})) or None
    if rows := rows_of(model):
        config.trainable_token_indices = {LAYER: list(rows)}
    config.ensure_weight_tying = is_tied(model) and EMBEDDING in trained
    if config.ensure_weight_tying:  # peft reads the shared matrix from both places
        values[HEAD] = values[EMBEDDING].clone()
    config.inference_mode = True
    folder.mkdir(parents=True, exist_ok=True)
    whole = {_key(name): value.contiguous() for name, value in values.items()}
    save_file(whole, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    config.save_pretrained(folder)
    _write_record(model, folder)


def load_adapter(model: M, folder: Path) -> M:
    """Put an adapter folder's values into the model, in place: LoRA (injected if need be) and fully trained modules.

    Under the LoRA of `apply_tune` an adapter is continued: all of it has to be trained on, or its export would lack it.
    Raises BadInput if the folder is no LoRA adapter or belongs to another base: no key is ever left over or left out.
    """
    config, values = foreign.read(folder)
    _check_base(model, folder)
    promised = set(_in_full(model, config.modules_to_save or ()))
    if continued := hasattr(model, "peft_config"):
        _check_continued(model, folder, config, values)
    else:
        _prepare(model, folder, config, values)

    file = folder / WEIGHTS_FILE
    own = {_key(name): parameter for name, parameter in model.named_parameters(remove_duplicate=False)}
    if unknown := sorted(values.keys() - own.keys()):
        raise BadInput(f"{file}: {unknown[0]} is not in this model; use the base that it was trained on.")
    frozen = sorted(key for key in values if not (is_adapter(key) or own[key].requires_grad))
    if continued and frozen:
        raise BadInput(
            f"{file}: {frozen[0].removeprefix(PREFIX)} was trained in full, and is frozen here; train it as well, or "
            "make the adapter part of the base by merging it."
        )
    needed = promised | {key for key in own if is_adapter(key) or key.endswith(DELTA)}
    if missing := sorted(needed & own.keys() - values.keys()):
        raise BadInput(f"{file}: {missing[0]} is missing; it is not the file that belongs to its {CONFIG_FILE}.")
    with torch.no_grad():
        for key, value in values.items():
            if is_low_bit(own[key]):
                raise BadInput(f"{file}: {key} was trained in full, and is quantised in this model; load it in full.")
            if value.shape != own[key].shape:
                raise BadInput(
                    f"{file}: {key} is {tuple(value.shape)} but {tuple(own[key].shape)} in this model; "
                    "use the base and the tune block that it was trained with."
                )
            own[key].copy_(value)
    return model


def merge_adapter(base_model: M, folder: Path) -> M:
    """Fold an adapter folder into the base's own weights, in place; what comes back has no trace of LoRA.

    The update is computed in fp32 and rounded once to the base's type. Raises BadInput for a quantised base, whose
    rounding would swallow the update.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    if is_quantized(base_model):
        raise BadInput("an adapter cannot be merged into a quantised model; load the base in bf16 or fp32.")
    load_adapter(base_model, folder)
    for name, module in list(base_model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            layer = module.get_base_layer()
            dtype = layer.weight.dtype
            layer.float()
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(base_model.get_submodule(parent), child, layer.to(dtype))
    if rows_of(base_model):
        merge_rows(base_model)
    del base_model.peft_config
    base_model.requires_grad_(False)
    return base_model


def record(folder: Path) -> dict[str, Any]:
    """What `save_adapter` noted beside an adapter: base_sha256, quantized, both_ways; each perhaps absent."""
    file = folder / RECORD_FILE
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise BadInput(f"{file}: is not readable as JSON; copy it again, or remove it.") from None


def _write_record(model: nn.Module, folder: Path) -> None:
    found: dict[str, Any] = {}
    if (base := _folder_of(model)) is not None:
        found["base_sha256"] = weights_sha256(base)
    if (quantized := getattr(model, "quantized", None)) is not None:
        found["quantized"] = asdict(quantized)
    if _sees_both_ways(model):
        found["both_ways"] = True
    if found:
        write_atomic(folder / RECORD_FILE, json.dumps({"schema": SCHEMA, **found}, indent=1) + "\n")


def _check_base(model: nn.Module, folder: Path) -> None:
    expected, base = record(folder).get("base_sha256"), _folder_of(model)
    if expected is not None and base is not None and weights_sha256(base) != expected:
        raise BadInput(f"{folder}: was trained on other weights than those in {base}; use the base that it names.")
    if record(folder).get("both_ways") and not _sees_both_ways(model):
        raise BadInput(
            f"{folder}: was trained on a model that attends both ways and writes by denoising; use qvl-mdlm."
        )


def _sees_both_ways(model: nn.Module) -> bool:
    config: Any = getattr(model, "config", None)
    return hasattr(config, "text_config") and sees_both_ways(config)


def _folder_of(model: nn.Module) -> Path | None:
    """Where the model's weights were read from; None for a model that was made in memory."""
    name = getattr(model, "name_or_path", "")
    return Path(name) if name and Path(name).is_dir() else None


def inject(model: nn.Module, config: Any, without_values: bool = False) -> None:
    """Put peft's layers around the linear layers that its configuration names; the caller's random state stays."""
    from peft import inject_adapter_in_model

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "TorchaoLoraLinear was instantiated")  # of merging, which is not done there
        inject_adapter_in_model(config, model, low_cpu_mem_usage=without_values)


def _prepare(model: nn.Module, folder: Path, config: Any, values: Mapping[str, Tensor]) -> None:
    """Inject what an adapter folder describes, all in fp32."""
    if is_tied(model) and _untied(model, values):
        _untie(model)
    # Fully trained modules are put in place by the caller, without peft's second copy.
    config.modules_to_save, config.ensure_weight_tying, config.inference_mode = None, False, True
    rows, config.trainable_token_indices = _rows(folder, config), None
    try:
        inject(model, config)
    except ValueError as error:
        problem = f"does not fit this model ({first_line(error)})"
        raise BadInput(f"{folder / CONFIG_FILE}: {problem}; use its own base.") from error
    for name, parameter in model.named_parameters():
        if is_adapter(name):
            parameter.data = parameter.data.float()
    if rows:
        add_rows(model, rows, learned=False)


def _rows(folder: Path, config: Any) -> list[int]:
    """The rows of the embedding that an adapter has trained."""
    given = config.trainable_token_indices or {}
    rows = given if isinstance(given, list) else given.get(LAYER, [])
    if isinstance(given, dict) and given.keys() - {LAYER}:
        raise BadInput(f"{folder / CONFIG_FILE}: trains tokens of other layers than {LAYER}; merge it with peft.")
    return list(rows)


def _check_continued(model: nn.Module, folder: Path, config: Any, values: Mapping[str, Tensor]) -> None:
    """Whether an adapter means the same under the LoRA that `tune` has set up; else BadInput."""
    from peft.tuners.lora import LoraLayer
    from peft.utils.other import get_pattern_key

    file = folder / CONFIG_FILE
    if hasattr(model, "lora_start"):
        raise BadInput(f"{file}: an adapter that is continued has its first values; set tune's `init` to zero.")
    if (rows := _rows(folder, config)) != (own := list(rows_of(model))):
        raise BadInput(f"{file}: rows of the embedding are trained there ({rows}) and here ({own}); train the same.")
    if config.use_dora != model.peft_config["default"].use_dora:  # type: ignore[union-attr,index]
        raise BadInput(f"{file}: dora is {str(config.use_dora).lower()} there; set tune's `dora` to the same.")
    if is_tied(model) and _untied(model, values):
        raise BadInput(f"{file}: has an lm_head of its own, this model one matrix for it and the embedding; merge it.")
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            rank = layer.r["default"]
            alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern, name), config.lora_alpha)
            scaling = alpha / (math.sqrt(rank) if config.use_rslora else rank)
            if not math.isclose(scaling, layer.scaling["default"]):
                raise BadInput(
                    f"{file}: the update of {name} is scaled by {scaling:g} there and by {layer.scaling['default']:g} "
                    "here; set tune's rank, alpha and rslora to those that it was trained with."
                )


def _untied(model: nn.Module, values: Mapping[str, Tensor]) -> bool:
    """Whether an adapter gives a model with one matrix for embedding and lm_head two different ones."""
    shared = model.get_parameter(EMBEDDING)
    embedding, head = values.get(_key(EMBEDDING), shared), values.get(_key(HEAD), shared)
    adapted = any(
        re.match(r"base_model\.model\.(lm_head|model\.language_model\.embed_tokens)\.lora_", k) for k in values
    )
    return adapted or not torch.equal(embedding.to(shared), head.to(shared))


def _untie(model: Any) -> None:
    head, config = model.get_submodule("lm_head"), model.config
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    for part in (config, config.text_config):
        part.tie_word_embeddings = False


def _in_full(model: nn.Module, saved: Iterable[str]) -> Iterator[str]:
    """Keys of the modules that `modules_to_save` names by the ends of their names, in whatever layout."""
    ends = tuple("." + foreign.today(f"{PREFIX}{name}.").removeprefix(PREFIX) for name in saved)
    for name, module in model.named_modules():
        if ends and f".{name}.".endswith(ends):
            yield from (_key(f"{name}.{inside}") for inside, _ in module.named_parameters(remove_duplicate=False))


def _difference(start: Start, name: str, value: Tensor) -> Tensor:
    match = re.fullmatch(r"(.*)\.lora_([AB])\.default\.weight", name)
    return start.difference(match[1], match[2], value) if match else value


def _whole_modules(module: nn.Module, trained: set[str], prefix: str = "") -> Iterator[str]:
    """Names of the largest modules (lists are not modules that run) whose parameters are all trained in full."""
    for name, child in module.named_children():
        path = prefix + name
        inside = {f"{path}.{key}" for key, _ in child.named_parameters(remove_duplicate=False)}
        if inside and inside <= trained and not isinstance(child, nn.ModuleList):
            yield path
        elif inside & trained:
            yield from _whole_modules(child, trained, f"{path}.")


def _key(name: str) -> str:
    """A parameter's name in adapter_model.safetensors: peft's prefix, no adapter name, no wrapper."""
    name = re.sub(r"(\.lora_\w+)\.default", r"\1", name).replace(".base_layer.", ".")
    name = re.sub(rf"\.{ROWS}$", DELTA, name)
    return PREFIX + name.replace(".lora_magnitude_vector.weight", ".lora_magnitude_vector")
