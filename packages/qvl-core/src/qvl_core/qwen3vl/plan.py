"""What a recipe needs before it runs: memory of one GPU, table row by table row, and the time of a step.

    plan = plan_memory(config("Qwen3-VL-4B"), recipe.tune, recipe.batch, "bf16", recompute=True)
    rich.print(plan.rich())

Weights, gradients and optimizer states come from the real model on the meta device with the real adapters: exact.
Activations come from counting what autograd keeps (counting.py) under CUDA autocast with `varlen_attn`; tests run the
same layers on fake tensors (no GPU, no storage) and compare: kept bytes to 0.1 % in the language model and 2 % in the
tower, the peak over forward and backward to 10 % (found: -4 to +5 % for 2B, 4B, 8B, text alone); and on a real model on
a CPU. Assumed is the workload: full rows, a share of picture tokens and of labels (`Workload`). `peak` is what
`torch.cuda.max_memory_allocated` should show; `reserve` is what the process holds beyond it (context, kernels,
allocator blocks). Time is arithmetic: floating point operations over the device's rate, and the same at 30 to 50 % of
it, which well-kept loops reach.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from typing import TYPE_CHECKING, Any, Literal

from qvl_core.qwen3vl.counting import Device, Shapes, Workload, mode_of
from qvl_core.qwen3vl.groups import GROUPS
from qvl_core.qwen3vl.recompute import Part, recomputed
from qvl_core.recipe.blocks import Batch, Group, Optim, Quantization, Speed

if TYPE_CHECKING:
    from rich.table import Table
    from transformers import PreTrainedConfig

__all__ = ["GIB", "MemoryPlan", "Plan", "Workload", "plan_memory", "quantized_bytes", "state_bytes"]

GIB = 2**30
PEAK_FLOPS = 790e12  # an H200's dense bf16 rate in large matrix products; its data sheet says 989e12
MFU = (0.3, 0.5)  # what well-kept training loops reach of it
CONTEXT = 0.6 * GIB  # CUDA context and kernels
FRAGMENTATION = 0.04  # of the peak: blocks that the allocator holds unused
HEAD_CHUNK = 8 * 2**25  # the chunk of logits, its softmax and its gradient (head.CHUNK in bf16 and fp32)

Strategy = Literal["single", "ddp", "fsdp2", "zero1", "zero2", "zero3"]
SHARDED: Mapping[str, tuple[str, ...]] = {  # rows of which each device holds its part
    "single": (),
    "ddp": (),
    "zero1": ("optimizer states",),
    "zero2": ("optimizer states", "gradients"),
    "zero3": ("optimizer states", "averaged weights", "gradients", "frozen weights", "trained weights (fp32)"),
    "fsdp2": ("optimizer states", "averaged weights", "gradients", "frozen weights", "trained weights (fp32)"),
}


@dataclass(frozen=True)
class Plan:
    """Bytes of one device by row, and seconds of one optimizer step, whatever the method."""

    rows: dict[str, int]
    """weights, trained weights, gradients, optimizer states, activations ...: what is there at the peak."""
    peak: int
    """Sum of the rows: what `torch.cuda.max_memory_allocated` should show."""
    reserve: int
    """What the process holds beyond that."""
    saved: int
    """What autograd keeps from the forward for the backward, wherever it lies."""
    flops: float
    """Floating point operations of one step on one device."""
    floor_seconds: float
    """Step time at the device's full rate."""
    expected_seconds: tuple[float, float]
    """Step time at 50 % and at 30 % of it."""
    parameters: int
    trainable: int
    groups: dict[str, tuple[str, int, int]]
    """Mode, parameters and trainable parameters of each group."""
    devices: int
    """Devices that share a step."""

    @property
    def needed(self) -> int:
        """What a card has to have."""
        return self.peak + self.reserve

    @property
    def caption(self) -> str:
        """What the table says below its rows."""
        return f"{self.trainable / 1e6:.1f}M of {self.parameters / 1e9:.3f}B parameters trained."

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def rich(self) -> "Table":
        from rich.table import Table

        one = "one device" if self.devices == 1 else f"each of {self.devices} devices"
        table = Table(title=one, show_footer=True, caption=self.caption, caption_justify="left")
        table.add_column("memory", "needed")
        table.add_column("GiB", f"{self.needed / GIB:.1f}", justify="right")
        for name, size in (self.rows | {"reserve (context, fragmentation)": self.reserve}).items():
            table.add_row(name, f"{size / GIB:.2f}")
        return table

    def groups_table(self) -> "Table":
        from rich.table import Table

        table = Table(show_footer=True)
        table.add_column("group", "all")
        table.add_column("mode")
        table.add_column("parameters", f"{self.parameters:,}", justify="right")
        table.add_column("trained", f"{self.trainable:,}", justify="right")
        for group, (mode, parameters, trained) in self.groups.items():
            table.add_row(group, mode, f"{parameters:,}", f"{trained:,}" if trained else "")
        return table


@dataclass(frozen=True)
class MemoryPlan(Plan):
    """The plan of training on tokens."""

    host: int
    """Pinned memory of the host for offloaded activations."""
    tokens: int
    """Tokens of one step over all devices."""
    workload: Workload

    @property
    def caption(self) -> str:
        slow, fast = (self.tokens / seconds for seconds in reversed(self.expected_seconds))
        said = (
            f"{super().caption} {self.workload.tokens:,} tokens per forward, {self.workload.images:.0%} of pictures, "
            f"{self.workload.labels:.0%} labels. Step of {self.tokens:,} tokens: at least {self.floor_seconds:.2f} s, "
            f"expected {self.expected_seconds[0]:.2f} to {self.expected_seconds[1]:.2f} s "
            f"({slow:,.0f} to {fast:,.0f} tokens/s)."
        )
        if self.host:
            said += f" The host holds {self.host / GIB:.1f} GiB of activations in pinned memory."
        return said


def plan_memory(
    config: "PreTrainedConfig",
    tune: Mapping[str, Group],
    batch: Batch | Workload,
    precision: Literal["fp32", "bf16", "fp16"] = "bf16",
    recompute: bool | Sequence[Part] = False,
    world: int = 1,
    strategy: Strategy = "single",
    attention: Literal["packed", "sdpa", "eager"] = "packed",
    peak_flops: float = PEAK_FLOPS,
    *,
    speed: Speed | None = None,
    optim: Optim | None = None,
    quantization: Quantization | None = None,
    device: Device = "cuda",
    embedding_rows: Sequence[int] = (),
    mask: int = 0,
) -> MemoryPlan:
    """Memory and time of one device; `config` is a preset's or a checkpoint's. Raises BadInput for a bad tune block.

    embedding_rows  are trained beside LoRA: see `lora.apply_tune`
    mask            entries of a mask of who sees whom: truth values, which SDPA makes numbers of

    MoE models are taken at the experts' active width, which is an estimate: their layers were not counted. So is DoRA
    outside fp32, and what a swapped tower keeps.
    """
    from qvl_core.qwen3vl.lora import EMBEDDING, Row, apply_tune
    from qvl_core.qwen3vl.presets import meta_model
    from qvl_core.qwen3vl.quantize import quantized_layers

    speed, optim = speed or Speed(), optim or Optim()
    work = batch if isinstance(batch, Workload) else Workload.of(batch, world)
    model = meta_model(config)
    low = quantized_layers(model, quantization) if quantization else []
    table = apply_tune(model, tune, seed=0, optim=optim, quantization=quantization, rows=embedding_rows)
    half = precision != "fp32"
    shapes = Shapes(config, tune, half, attention, work, device, speed.label_rows)
    own = 2 if half else 4  # bytes of a frozen number
    named = {name.replace(".base_layer.", "."): p for name, p in model.named_parameters()}
    held = {f"{name}.weight": named[f"{name}.weight"].shape for name in low}
    frozen_bytes = sum(own * p.numel() for n, p in named.items() if not p.requires_grad and n not in held)
    if quantization:
        frozen_bytes += sum(quantized_bytes(shape[0], shape[1], quantization, own) for shape in held.values())
    trained = {name: p for name, p in named.items() if p.requires_grad}
    trained_bytes = 4 * sum(p.numel() for p in trained.values())
    head = shapes.head_weight if mode_of(tune, "lm_head") == "full" else 0
    # Autocast's 16-bit copies of trained matrices live until the backward has used them.
    cast = {n: 2 * p.numel() for n, p in trained.items() if p.ndim > 1 and not n.startswith(("lm_head", EMBEDDING))}
    casts = sum(cast.values()) if half else 0

    parts = recomputed(recompute)
    kept, again, casts_later = shapes.saved_around, 0.0, casts
    on_device = 0.0
    for part, layers, single, working, prefix in (
        ("llm", shapes.llm_layers, shapes.llm_input, shapes.llm_working, "model.language_model.layers."),
        ("vision", shapes.vision_blocks, shapes.vision_input, shapes.vision_working, "model.visual.blocks."),
    ):
        flowing = [size for size in layers if size]
        if not flowing:
            continue
        if part in parts:
            inside = sum(size for name, size in cast.items() if name.startswith(prefix)) if half else 0
            casts_later -= inside - inside // len(flowing)
            kept += single * len(flowing)
            again = max(again, flowing[-1] + working)
            on_device = max(on_device, single)
        else:
            kept += sum(flowing)
            again = max(again, working)
            on_device = max(on_device, flowing[-1])
    saved = kept
    alive = shapes.around - shapes.saved_around  # features and hidden states, which no layer keeps
    host = 0.0
    if speed.offload and device == "cuda":
        host, kept = kept, on_device
    # A layer in fewer bits is unpacked when it computes.
    unpacked = own * max((shape.numel() for shape in held.values()), default=0)
    gradients = trained_bytes if work.forwards > 1 else 4 * head

    # The peak is at the end of the forward, at the beginning of the backward, or at its end.
    # Logits of every token are there in the compute type and in fp32, beside their softmax.
    logits = HEAD_CHUNK if speed.label_rows else shapes.full_logits * (6 if half else 4) / 8
    ends = (
        {"activations": kept + alive, "16-bit": casts, "gradients": gradients, "logits": logits + shapes.head_kept},
        {
            "activations": kept + alive + again,
            "16-bit": casts_later,
            "gradients": gradients,
            "logits": shapes.full_logits or shapes.head_kept,
        },
        {"activations": again, "16-bit": 0, "gradients": trained_bytes, "logits": 0},
        {"activations": shapes.vision_forward, "16-bit": casts, "gradients": gradients, "logits": 0},
    )
    most = max(ends, key=lambda end: sum(end.values()))
    numels = [p.numel() for p in trained.values()]
    rows: dict[str, float] = {
        "frozen weights": frozen_bytes,
        "trained weights (fp32)": trained_bytes,
        "optimizer states": state_bytes(numels, optim),
        "averaged weights": trained_bytes if optim.ema else 0,
        "gradients": most["gradients"],
        "activations": most["activations"],
        "16-bit copies of trained weights": most["16-bit"],
        "unpacked weights of a layer": unpacked,
        "logits": most["logits"],
        "batch": work.tokens * 100 + shapes.patches * shapes.pixels * 4,
        "mask": mask * (1 + own),
    }
    shared = SHARDED[strategy]
    if "frozen weights" in shared:
        rows |= {"16-bit copies of trained weights": 0, "gathered weights": shapes.gathered(model, own)}
    rows = {name: ceil(size / world) if name in shared else size for name, size in rows.items()}
    optional = ("averaged weights", "mask", "unpacked weights of a layer")
    shown = {name: round(size) for name, size in rows.items() if size or name not in optional}

    groups = {group: Row(group, "frozen", 0, 0) for group in GROUPS} | {row.group: row for row in table.rows}
    flops = work.forwards * shapes.flops(groups, parts, tower=speed.cache_features is None)
    floor = flops / (peak_flops if half else peak_flops / 2)  # fp32 runs as TF32, at half the rate
    peak = sum(shown.values())
    return MemoryPlan(
        rows=shown,
        peak=peak,
        reserve=round(CONTEXT + FRAGMENTATION * peak),
        host=round(host),
        saved=round(saved),
        flops=flops,
        floor_seconds=floor,
        expected_seconds=(floor / MFU[1], floor / MFU[0]),
        tokens=work.tokens * work.forwards * world,
        parameters=table.parameters,
        trainable=table.trainable,
        groups={row.group: (row.mode, row.parameters, row.trainable) for row in table.rows},
        workload=work,
        devices=world,
    )


def state_bytes(numels: Iterable[int], optim: Optim) -> int:
    """Bytes of AdamW's averages and step counts, for trained parameters of these sizes."""
    from qvl_core.training.adamw_8bit import BLOCK, SMALLEST

    def averages(numel: int) -> int:
        if optim.name == "adamw_8bit" and numel >= SMALLEST:
            return 2 * (numel + 4 * ceil(numel / BLOCK))
        return 8 * numel

    return sum(averages(numel) + 4 for numel in numels)


def quantized_bytes(rows: int, columns: int, quantization: Quantization, own: int) -> int:
    """Bytes of a linear layer's weight in fewer bits, scales included; `own`: of a number of the type it came from.

    nf4 (bitsandbytes): half a byte each, a scale for 64, and its tables; double: scales as bytes, with a scale for 256.
    int8 (torchao): a byte each, a scale and a zero point for each row.
    """
    numel = rows * columns
    if quantization.kind == "int8":
        return numel + rows * (own + 1)
    scales = ceil(numel / 64)
    scaling = scales + 4 * ceil(scales / 256) + 4 * 256 + 4 if quantization.double else 4 * scales
    return ceil(numel / 2) + scaling + 4 * 16
