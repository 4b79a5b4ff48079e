"""What a recipe's `tune` block does to a model: freeze, adapt with LoRA (Hu et al. 2021, arXiv:2106.09685), train.

    table = apply_tune(model, recipe.tune, seed=recipe.train.seed, optim=recipe.optim)
    groups = parameter_groups(model, recipe.tune, recipe.optim)
    save_adapter(model, folder, base_name="Qwen/Qwen3-VL-4B-Instruct", revision=commit)

peft's layers are injected in place, so the model keeps its class, `model.model` and `model.lm_head`. Modules that are
trained in full beside LoRA are trained in place too (no second copy in memory).
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.adapter import EMBEDDING, inject, load_adapter, merge_adapter, save_adapter
from qvl_core.qwen3vl.foreign import CONFIG_FILE
from qvl_core.qwen3vl.groups import GROUPS, decays, group_of, is_adapter, is_tied, layers_of, linear_targets
from qvl_core.qwen3vl.initial import doubled, set_first_values
from qvl_core.qwen3vl.quantize import is_low_bit, quantized_layers, size
from qvl_core.qwen3vl.rows import NAME as ROWS
from qvl_core.qwen3vl.rows import add_rows
from qvl_core.recipe.blocks import Group, Optim, Quantization
from qvl_core.training.parts import ParameterGroup

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "CONFIG_FILE",
    "EMBEDDING",
    "Row",
    "TuneTable",
    "apply_tune",
    "load_adapter",
    "merge_adapter",
    "parameter_groups",
    "save_adapter",
]


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
    notes: str = ""
    """What else is special, such as `dora, last 8 layers, nf4`."""


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
        notes = "\n".join(f"{row.group}: {row.notes}" for row in self.rows if row.notes)
        table = Table(show_footer=True, caption=notes or None, caption_justify="left")
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
    quantization: Quantization | None = None,
    rows: Sequence[int] = (),
    wide: bool = True,
) -> TuneTable:
    """Freeze the model, inject adapters, and let gradients through what `tune` trains; trained weights become fp32.

    quantization  what `quantize` will then do to the frozen weights: it has to agree, and LoftQ makes up for it
    rows          rows of the embedding that are trained beside LoRA, while the others are frozen
    wide          False: weights that are trained in full are left to the engine, which makes them fp32 on the device

    The adapters' first values depend on the seed and the weights alone, not on device or precision. Outside fp32 the
    model then has to run under autocast, as the loop does. Raises BadInput for a block that cannot be meant for it.
    """
    optim = optim or Optim()
    targets = _check(model, tune, groups, quantization)
    _check_tied(model, tune, optim)
    if rows and (not targets or ("embed" in tune and tune["embed"].mode != "frozen")):
        raise BadInput("tune: rows of the embedding are trained beside LoRA and with embed frozen; change one of them.")
    chosen = {group: _last_layers(model, group, tune[group].layers) for group in tune}
    targets = {group: [name for name in names if _inside(name, chosen[group])] for group, names in targets.items()}
    parameters = dict.fromkeys(groups, 0)
    for name, parameter in model.named_parameters():
        parameters[group_of(name, groups)] += size(parameter)

    model.requires_grad_(False)
    if targets:
        _inject(model, _lora_config(model, tune, targets, groups))
        if not _without_values(model):
            differences = {group: doubled(block) for group, block in tune.items()}
            config = _lora_config(model, differences, targets, groups)
            start = set_first_values(model, tune, seed, groups, quantization, config)
            if start is not None:
                setattr(model, "lora_start", start)  # noqa: B010 - an attribute of our own on a library's class
    trainable = dict.fromkeys(groups, 0)
    if rows:
        add_rows(model, rows)
        trainable["embed"] = model.get_parameter(f"{EMBEDDING.removesuffix('.weight')}.{ROWS}").numel()
    for name, parameter in model.named_parameters():
        group = group_of(name, groups)
        mode = tune[group].mode if group in tune else "frozen"
        if (mode == "full" and _inside(name, chosen[group])) or (mode == "lora" and is_adapter(name)):
            parameter.requires_grad_(True)
            if wide or mode == "lora":
                parameter.data = parameter.data.float()
            trainable[group] += parameter.numel()

    def row(group: str) -> Row:
        block = tune.get(group, Group())
        notes = _notes(block, quantization if quantization and group in quantization.groups else None)
        if group == "embed" and rows:
            return Row(
                group, "rows", parameters[group], trainable[group], None, _rates(block, optim or Optim())[0], 0.0
            )
        if block.mode == "frozen":
            return Row(group, "frozen", parameters[group], 0, notes=notes)
        lr, weight_decay = _rates(block, optim)
        rank = block.rank if block.mode == "lora" else None
        return Row(group, block.mode, parameters[group], trainable[group], rank, lr, weight_decay, notes)

    return TuneTable(tuple(row(group) for group in groups if parameters[group] or group in tune))


def parameter_groups(
    model: nn.Module, tune: Mapping[str, Group], optim: Optim, groups: Mapping[str, str] = GROUPS
) -> list[ParameterGroup]:
    """The trained parameters for the optimizer: by group in the table's order, those that decay before the others.

    LoRA+ (arXiv:2402.12354) gives B a rate of its own.
    """
    trained: dict[str, dict[str, nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            group = group_of(name, groups)
            faster = ".lora_B." in name and tune[group].plus != 1
            kind = " (LoRA+ B)" if faster else "" if decays(name, parameter) else " (no decay)"
            trained.setdefault(group + kind, {})[name] = parameter
    found = []
    for group in groups:
        block = tune.get(group, Group())
        lr, weight_decay = _rates(block, optim)
        kinds = (("", lr, weight_decay), (" (LoRA+ B)", lr * block.plus, weight_decay), (" (no decay)", lr, 0.0))
        for kind, rate, decay in kinds:
            if group + kind in trained:
                found.append(ParameterGroup(group + kind, trained[group + kind], rate, decay))
    return found


def _check(
    model: nn.Module, tune: Mapping[str, Group], groups: Mapping[str, str], quantization: Quantization | None
) -> dict[str, list[str]]:
    """The linear layers of each LoRA group, if the tune block makes sense for this model; else BadInput."""
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
    for key, plural in (("dropout", "dropouts"), ("rslora", "rslora"), ("dora", "dora")):
        values = {group: getattr(tune[group], key) for group in targets}
        if len(set(values.values())) > 1:
            listed = ", ".join(f"{group} {value:g}" if key == "dropout" else f"{group} {str(value).lower()}"
                               for group, value in values.items())  # fmt: skip
            raise BadInput(f"tune: different {plural} ({listed}); give all LoRA groups the same.")
    _check_quantization(model, tune, groups, quantization)
    return targets


def _check_tied(model: nn.Module, tune: Mapping[str, Group], optim: Optim) -> None:
    """Raise BadInput for an embedding and a head that are one matrix and are to be trained in two ways."""
    if not is_tied(model):
        return
    embed, head = (tune.get(group, Group()) for group in ("embed", "lm_head"))
    if embed.mode != head.mode:
        raise BadInput(
            f"tune: embed is {embed.mode} and lm_head is {head.mode}, but this model has one matrix for both; "
            "give both the same mode."
        )
    if embed.mode != "frozen" and _rates(embed, optim) != _rates(head, optim):
        raise BadInput(
            "tune: embed and lm_head have different rates or decays, but this model has one matrix for both; "
            "give both the same lr and weight_decay."
        )


def _check_quantization(
    model: nn.Module, tune: Mapping[str, Group], groups: Mapping[str, str], quantization: Quantization | None
) -> None:
    """Raise BadInput for what cannot be done with weights that are, or will be, held in fewer bits."""
    low = {group_of(name, groups) for name, parameter in model.named_parameters() if is_low_bit(parameter)}
    if quantization is not None:
        quantized_layers(model, quantization, groups)
        low |= set(quantization.groups)
    nf4 = quantization is not None and quantization.kind == "nf4"
    for group, block in tune.items():
        if block.mode == "full" and group in low:
            raise BadInput(
                f"tune.{group}: weights in fewer bits cannot be trained in full; use `lora`, or take {group} out of "
                "model.quantization.groups."
            )
        if block.mode == "lora" and block.dora and group in low:
            raise BadInput(f"tune.{group}.dora: needs full-precision weights; leave dora or model.quantization away.")
        if block.mode == "lora" and block.init == "loftq" and not (nf4 and group in low):
            raise BadInput(
                f"tune.{group}.init: loftq makes up for what nf4 loses; set `model.quantization: nf4` with {group} "
                "among its groups, or another init."
            )
        if block.mode == "lora" and block.init == "pissa" and group in low and quantization is None:
            raise BadInput(f"tune.{group}.init: pissa starts from full-precision weights, and these are quantised.")


def _last_layers(model: nn.Module, group: str, count: int | None) -> list[str] | None:
    """Names of the layers of a group that `layers` leaves to be trained; None for the whole group."""
    if count is None:
        return None
    layers = layers_of(model, group)
    if not layers:
        raise BadInput(f"tune.{group}.layers: this group has no layers to count; remove the key.")
    if count > len(layers):
        raise BadInput(f"tune.{group}.layers: {count}, but there are {len(layers)}; lower it, or remove it for all.")
    return layers[-count:]


def _inside(name: str, layers: list[str] | None) -> bool:
    return layers is None or any(name.startswith(f"{layer}.") for layer in layers)


def _notes(block: Group, quantization: Quantization | None) -> str:
    lora = block.mode == "lora"
    notes = {
        "rslora": lora and block.rslora,
        "dora": lora and block.dora,
        block.init: lora and block.init != "zero",
        f"B x {block.plus:g}": lora and block.plus != 1,
        f"last {block.layers} layers": block.mode != "frozen" and block.layers is not None,
        quantization.kind if quantization else "": quantization is not None,
    }
    return ", ".join(note for note, applies in notes.items() if applies)


def _lora_config(
    model: nn.Module, tune: Mapping[str, Group], targets: dict[str, list[str]], groups: Mapping[str, str]
) -> Any:
    """peft's configuration: the first LoRA group's rank and alpha are the default, the others have patterns."""
    from peft import LoraConfig

    first = tune[next(iter(targets))]
    # A group's pattern is of parameters, peft's of modules: lm_head is one, without anything behind its name.
    rest = {re.sub(r"\\\.\.\*$", r"(\\..*)?", groups[group]): tune[group] for group in list(targets)[1:]}
    return LoraConfig(
        target_modules=_shortest_suffixes(model, [name for names in targets.values() for name in names]),
        r=first.rank,
        lora_alpha=first.alpha,
        lora_dropout=first.dropout,
        rank_pattern={pattern: block.rank for pattern, block in rest.items() if block.rank != first.rank},
        alpha_pattern={pattern: block.alpha for pattern, block in rest.items() if block.alpha != first.alpha},
        use_rslora=first.rslora,
        use_dora=first.dora,
    )


def _inject(model: nn.Module, config: Any) -> None:
    """Put peft's layers around the linear layers, B zero, so that the first output is the base's."""
    from peft.tuners.lora import LoraLayer

    inject(model, config, _without_values(model))
    for module in model.modules():
        if isinstance(module, LoraLayer):
            # Autocast casts the product; peft's cast to fp32 before it would keep another copy of every input.
            module.cast_input_dtype_enabled = False


def _without_values(model: nn.Module) -> bool:
    """Whether it is a plan's model: shapes alone."""
    return next(model.parameters()).is_meta


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


def _rates(block: Group, optim: Optim) -> tuple[float, float]:
    """Peak learning rate and weight decay of a group."""
    return (
        optim.lr if block.lr is None else block.lr,
        optim.weight_decay if block.weight_decay is None else block.weight_decay,
    )
