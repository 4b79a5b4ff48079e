"""What a recipe's `tune` block does to a model: freeze, adapt with LoRA (Hu et al. 2021, arXiv:2106.09685), train.

    table = apply_tune(model, recipe.tune, seed=recipe.train.seed, optim=recipe.optim)
    groups = parameter_groups(model, recipe.tune, recipe.optim)
    save_adapter(model, folder, base_name="Qwen/Qwen3-VL-4B-Instruct", revision=commit)

peft's layers are injected in place, so the model keeps its class, `model.model` and `model.lm_head`. Modules that are
trained in full beside LoRA are trained in place too (no second copy in memory) and saved with the adapter under the
keys of peft's `modules_to_save`: plain `PeftModel.from_pretrained(base, folder)` gives the same logits.
"""

import copy
import difflib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from qvl_core.errors import BadInput, QVLError
from qvl_core.qwen3vl.groups import GROUPS, decays, group_of, linear_targets
from qvl_core.recipe.blocks import Group, Optim
from qvl_core.training.parts import ParameterGroup

if TYPE_CHECKING:
    from rich.table import Table

M = TypeVar("M", bound=nn.Module)

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
EMBEDDING = "model.language_model.embed_tokens.weight"


@dataclass(frozen=True)
class Row:
    """One group of the tune table: `parameters` are the model's own, `trainable` counts adapters or all of them."""

    group: str
    mode: str
    parameters: int
    trainable: int
    rank: int | None = None
    lr: float | None = None
    weight_decay: float | None = None


@dataclass(frozen=True)
class TuneTable:
    """What is trained, and how; `rich()` is printed before step 1, `rows` go into the report."""

    rows: tuple[Row, ...]

    @property
    def parameters(self) -> int:
        return sum(row.parameters for row in self.rows)

    @property
    def trainable(self) -> int:
        return sum(row.trainable for row in self.rows)

    def rich(self) -> "Table":
        from rich.table import Table

        totals = {"parameters": f"{self.parameters:,}", "trainable": f"{self.trainable:,}"}
        table = Table(show_footer=True)
        table.add_column("group", "all", no_wrap=True)
        table.add_column("mode")
        for title in ("parameters", "trainable", "rank", "lr", "decay"):
            table.add_column(title, totals.get(title, ""), justify="right")
        for row in self.rows:
            settings = (f"{value:g}" if value is not None else "" for value in (row.rank, row.lr, row.weight_decay))
            table.add_row(
                row.group, row.mode, f"{row.parameters:,}", f"{row.trainable:,}" if row.trainable else "", *settings
            )
        return table


def apply_tune(
    model: nn.Module,
    tune: Mapping[str, Group],
    seed: int,
    optim: Optim | None = None,
    groups: Mapping[str, str] = GROUPS,
) -> TuneTable:
    """Freeze the model, inject adapters, and let gradients through what `tune` trains; trained weights become fp32.

    The adapters' first values depend on the seed alone, not on device or precision. Outside fp32 the model then
    has to run under autocast, as the loop does. Raises BadInput for a block that cannot be meant for this model.
    """
    targets = _check(model, tune, groups)
    parameters = dict.fromkeys(groups, 0)
    for name, parameter in model.named_parameters():
        parameters[group_of(name, groups)] += parameter.numel()

    model.requires_grad_(False)
    if targets:
        _inject(model, _lora_config(model, tune, targets, groups), seed)
    trainable = dict.fromkeys(groups, 0)
    for name, parameter in model.named_parameters():
        group = group_of(name, groups)
        mode = tune[group].mode if group in tune else "frozen"
        if mode == "full" or (mode == "lora" and _is_adapter(name)):
            parameter.requires_grad_(True)
            parameter.data = parameter.data.float()
            trainable[group] += parameter.numel()

    def row(group: str) -> Row:
        block = tune.get(group, Group())
        if block.mode == "frozen":
            return Row(group, "frozen", parameters[group], 0)
        lr, weight_decay = _rates(block, optim or Optim())
        rank = block.rank if block.mode == "lora" else None
        return Row(group, block.mode, parameters[group], trainable[group], rank, lr, weight_decay)

    return TuneTable(tuple(row(group) for group in groups if parameters[group] or group in tune))


def parameter_groups(
    model: nn.Module, tune: Mapping[str, Group], optim: Optim, groups: Mapping[str, str] = GROUPS
) -> list[ParameterGroup]:
    """The trained parameters for the optimizer: by group in the table's order, those that decay before the others."""
    trained: dict[str, dict[str, nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = "" if decays(name, parameter) else " (no decay)"
            trained.setdefault(group_of(name, groups) + kind, {})[name] = parameter
    found = []
    for group in groups:
        lr, weight_decay = _rates(tune.get(group, Group()), optim)
        for kind, decay in (("", weight_decay), (" (no decay)", 0.0)):
            if group + kind in trained:
                found.append(ParameterGroup(group + kind, trained[group + kind], lr, decay))
    return found


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
    values = {_key(name): (state_dict or trained)[name].detach().cpu().contiguous() for name in trained}
    # An adapter that was frozen (in layers that nothing depends on) changes nothing; its file still has to be whole.
    for name, parameter in model.named_parameters():
        if _is_adapter(name) and name not in trained:
            values[_key(name)] = torch.zeros(parameter.shape)
    config = copy.copy(configs["default"])
    config.base_model_name_or_path = base_name
    config.revision = revision
    config.target_modules = sorted(config.target_modules)
    config.modules_to_save = list(_whole_modules(model, {name for name in trained if not _is_adapter(name)})) or None
    config.ensure_weight_tying = _tied(model) and EMBEDDING in trained
    if config.ensure_weight_tying:  # peft reads the shared matrix from both places
        values[_key("lm_head.weight")] = values[_key(EMBEDDING)].clone()
    config.inference_mode = True
    folder.mkdir(parents=True, exist_ok=True)
    save_file(values, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    config.save_pretrained(folder)


def load_adapter(model: M, folder: Path) -> M:
    """Put an adapter folder's values into the model, in place: LoRA (injected if need be) and fully trained modules.

    Raises BadInput if the folder is no LoRA adapter or does not fit the model: no key is ever left over or left out.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from safetensors.torch import load_file

    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise BadInput(f"{folder}: no {name} there, so it is no adapter; name the final/ folder of a LoRA run.")
    if not hasattr(model, "peft_config"):
        config = LoraConfig.from_pretrained(folder)
        # Fully trained modules are put in place below, without peft's second copy.
        config.modules_to_save, config.ensure_weight_tying, config.inference_mode = None, False, True
        inject_adapter_in_model(config, model)
        for name, parameter in model.named_parameters():
            if _is_adapter(name):
                parameter.data = parameter.data.float()

    file = folder / WEIGHTS_FILE
    values = load_file(file)
    own = {_key(name): parameter for name, parameter in model.named_parameters(remove_duplicate=False)}
    if unknown := sorted(values.keys() - own.keys()):
        raise BadInput(f"{file}: {unknown[0]} is not in this model; use the base that it was trained on.")
    if missing := sorted(key for key in own.keys() - values.keys() if _is_adapter(key)):
        raise BadInput(f"{file}: {missing[0]} is missing; it is not the file that belongs to its {CONFIG_FILE}.")
    with torch.no_grad():
        for key, value in values.items():
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

    if getattr(base_model, "is_quantized", False):
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
    del base_model.peft_config
    base_model.requires_grad_(False)
    return base_model


def _check(model: nn.Module, tune: Mapping[str, Group], groups: Mapping[str, str]) -> dict[str, list[str]]:
    """The linear layers that each LoRA group adapts, if the tune block makes sense for this model; else BadInput."""
    present = {group_of(name, groups) for name, _ in model.named_parameters(remove_duplicate=False)}
    targets: dict[str, list[str]] = {}
    for group, block in tune.items():
        if group not in groups:
            near = difflib.get_close_matches(group, groups, n=1)
            fix = f'did you mean "{near[0]}"?' if near else f"there are {', '.join(groups)}."
            raise BadInput(f"tune.{group}: unknown group; {fix}")
        if block.mode != "frozen" and group not in present:
            raise BadInput(f"tune.{group}: this model has no such parameters; remove the group or set it to frozen.")
        if block.mode == "lora":
            targets[group] = linear_targets(model, group, groups)
            if not targets[group]:
                raise BadInput(f"tune.{group}: no linear layers that LoRA could adapt; use `full` or `frozen`.")
    if all(block.mode == "frozen" for block in tune.values()):
        raise BadInput("tune: nothing is trained; set the mode of a group to `lora` or `full`.")
    modes = [tune[group].mode if group in tune else "frozen" for group in ("embed", "lm_head")]
    if _tied(model) and modes[0] != modes[1]:
        raise BadInput(
            f"tune: embed is {modes[0]} and lm_head is {modes[1]}, but this model has one matrix for both; "
            "give both the same mode."
        )
    dropouts = {group: tune[group].dropout for group in targets}
    if len(set(dropouts.values())) > 1:
        listed = ", ".join(f"{group} {dropout:g}" for group, dropout in dropouts.items())
        raise BadInput(f"tune: different dropouts ({listed}); give all LoRA groups the same.")
    return targets


def _lora_config(
    model: nn.Module, tune: Mapping[str, Group], targets: dict[str, list[str]], groups: Mapping[str, str]
) -> Any:
    """peft's configuration: the first LoRA group's rank and alpha are the default, the others have patterns."""
    from peft import LoraConfig

    first, *others = targets
    return LoraConfig(
        target_modules=_shortest_suffixes(model, [name for names in targets.values() for name in names]),
        r=tune[first].rank,
        lora_alpha=tune[first].alpha,
        lora_dropout=tune[first].dropout,
        rank_pattern={groups[group]: tune[group].rank for group in others if tune[group].rank != tune[first].rank},
        alpha_pattern={groups[group]: tune[group].alpha for group in others if tune[group].alpha != tune[first].alpha},
    )


def _inject(model: nn.Module, config: Any, seed: int) -> None:
    """Inject LoRA and draw its first values: A as a linear layer's, B zero, so that the first output is the base's."""
    from peft import inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    without_values = next(model.parameters()).is_meta  # a plan's model
    with torch.random.fork_rng(devices=[]):  # peft draws too; the caller's random state stays as it was
        inject_adapter_in_model(config, model, low_cpu_mem_usage=without_values)
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, LoraLayer):
            # Autocast casts the product; peft's cast to fp32 before it would keep another copy of every input.
            module.cast_input_dtype_enabled = False
            if not without_values:
                weight = module.lora_A["default"].weight
                drawn = nn.init.kaiming_uniform_(torch.empty(weight.shape), a=math.sqrt(5), generator=generator)
                weight.data = drawn.to(weight.device)


def _shortest_suffixes(model: nn.Module, names: list[str]) -> list[str]:
    """The fewest name endings that select exactly these modules (peft matches endings): `q_proj` for all of them."""
    chosen = set(names)
    all_names = [name for name, _ in model.named_modules()]
    suffixes = set()
    for name in names:
        parts = name.split(".")
        for start in reversed(range(len(parts))):
            suffix = ".".join(parts[start:])
            if suffix in suffixes:
                break
            if all(other in chosen for other in all_names if f".{other}".endswith(f".{suffix}")):
                suffixes.add(suffix)
                break
    return sorted(suffixes)


def _whole_modules(module: nn.Module, trained: set[str], prefix: str = "") -> Iterator[str]:
    """Names of the largest modules (lists are not modules that run) whose parameters are all trained in full."""
    for name, child in module.named_children():
        path = prefix + name
        inside = {f"{path}.{key}" for key, _ in child.named_parameters(remove_duplicate=False)}
        if inside and inside <= trained and not isinstance(child, nn.ModuleList):
            yield path
        elif inside & trained:
            yield from _whole_modules(child, trained, f"{path}.")


def _rates(block: Group, optim: Optim) -> tuple[float, float]:
    """Peak learning rate and weight decay of a group."""
    return (
        optim.lr if block.lr is None else block.lr,
        optim.weight_decay if block.weight_decay is None else block.weight_decay,
    )


def _tied(model: nn.Module) -> bool:
    names = [name for name, _ in model.named_parameters()]
    return "lm_head.weight" not in names and hasattr(model, "lm_head")


def _is_adapter(name: str) -> bool:
    return ".lora_" in name


def _key(name: str) -> str:
    """A parameter's name in adapter_model.safetensors: peft's prefix, no adapter name, no wrapper."""
    return "base_model.model." + re.sub(r"(\.lora_\w+)\.default", r"\1", name).replace(".base_layer.", ".")
