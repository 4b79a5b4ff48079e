"""What a recipe needs before it runs: memory of one GPU, table row by table row, and the time of a step.

    plan = plan_memory(config("Qwen3-VL-4B"), recipe.tune, recipe.batch, "bf16", recompute=True)
    rich.print(plan.rich())

Weights, gradients and optimizer states come from the real model on the meta device with the real adapters: exact.
Activations come from counting, line by line, what autograd keeps of transformers' Qwen3-VL layers under CUDA autocast
with `varlen_attn`; tests run the same layers on fake tensors (no GPU, no storage) and compare: kept bytes to 0.1 % in
the language model and 2 % in the tower, the peak over forward and backward to 10 % (found: -4 to +5 % for 2B, 4B, 8B,
text alone). No real GPU has been measured yet. Assumed is the workload: full rows, a share of picture tokens and of
labels (`Workload`). `peak` is what `torch.cuda.max_memory_allocated` should show; `reserve` is what the process holds
beyond it (context, kernels, allocator blocks). Time is arithmetic: floating point operations over the device's rate,
and the same at 30 to 50 % of it, which well-kept loops reach.

Letters: H hidden, Q and K query and key widths (heads x head_dim), I intermediate, W tower width, V vocabulary, c bytes
of the compute type; layers, T tokens and P patches of one forward on one device.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import ceil
from typing import TYPE_CHECKING, Any, Literal

from qvl_core.qwen3vl.groups import GROUPS
from qvl_core.recipe.blocks import Batch, Group

if TYPE_CHECKING:
    from rich.table import Table
    from transformers import PreTrainedConfig

GIB = 2**30
PEAK_FLOPS = 790e12  # an H200's dense bf16 rate in large matrix products; its data sheet says 989e12
MFU = (0.3, 0.5)  # what well-kept training loops reach of it
CONTEXT = 0.6 * GIB  # CUDA context and kernels
FRAGMENTATION = 0.04  # of the peak: blocks that the allocator holds unused
HEAD_CHUNK = 8 * 2**25  # the chunk of logits, its softmax and its gradient (head.CHUNK in bf16 and fp32)


@dataclass(frozen=True)
class Workload:
    """One forward on one device, and how many of them make a step."""

    tokens: int
    """Tokens of one forward."""
    forwards: int = 1
    """Forwards of each device per optimizer step."""
    document: int = 1024
    """Tokens of a typical sample: each attends only to itself."""
    images: float = 0.6
    """Share of the tokens that are picture tokens."""
    labels: float = 0.2
    """Share of the tokens that are learned from."""

    @classmethod
    def of(cls, batch: Batch, world: int = 1, sample_tokens: int | None = None, **shares: float) -> "Workload":
        """From a recipe's batch block. `sample_tokens` is the data's mean length; default: the longest allowed."""
        length = min(sample_tokens or batch.max_length, batch.max_length)
        if batch.tokens is not None:
            rows = max(1, batch.tokens // batch.max_length)
            micro = batch.micro or 1
            tokens = micro * batch.max_length
        else:
            rows = batch.size or 1
            micro = min(batch.micro or rows, ceil(rows / world))
            tokens = micro * length
        document = min(length, cls.document) if sample_tokens is None else length
        return cls(tokens, ceil(rows / (micro * world)), document, **shares)


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of one device by row, and seconds of one optimizer step."""

    rows: dict[str, int]
    """weights, trained weights, gradients, Adam states, activations ...: what is there at the moment of the peak."""
    peak: int
    """Sum of the rows: what `torch.cuda.max_memory_allocated` should show."""
    reserve: int
    """What the process holds beyond that."""
    flops: float
    """Floating point operations of one step on one device."""
    floor_seconds: float
    """Step time at the device's full rate."""
    expected_seconds: tuple[float, float]
    """Step time at 50 % and at 30 % of it."""
    tokens: int
    """Tokens of one step over all devices."""
    parameters: int
    trainable: int
    workload: Workload

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def rich(self) -> "Table":
        from rich.table import Table

        slow, fast = (self.tokens / seconds for seconds in reversed(self.expected_seconds))
        table = Table(title="one device", show_footer=True, caption_justify="left")
        table.add_column("memory", "needed")
        table.add_column("GiB", f"{(self.peak + self.reserve) / GIB:.1f}", justify="right")
        for name, size in (self.rows | {"reserve (context, fragmentation)": self.reserve}).items():
            table.add_row(name, f"{size / GIB:.2f}")
        table.caption = (
            f"{self.trainable / 1e6:.1f}M of {self.parameters / 1e9:.3f}B parameters trained. "
            f"{self.workload.tokens:,} tokens per forward, {self.workload.images:.0%} of pictures, "
            f"{self.workload.labels:.0%} labels. Step of {self.tokens:,} tokens: at least {self.floor_seconds:.2f} s, "
            f"expected {self.expected_seconds[0]:.2f} to {self.expected_seconds[1]:.2f} s "
            f"({slow:,.0f} to {fast:,.0f} tokens/s)."
        )
        return table


def plan_memory(
    config: "PreTrainedConfig",
    tune: Mapping[str, Group],
    batch: Batch | Workload,
    precision: Literal["fp32", "bf16", "fp16"] = "bf16",
    recompute: bool = False,
    world: int = 1,
    strategy: Literal["single", "ddp", "fsdp2"] = "single",
    attention: Literal["packed", "sdpa", "eager"] = "packed",
    peak_flops: float = PEAK_FLOPS,
) -> MemoryPlan:
    """Memory and time of one device; `config` is a preset's or a checkpoint's. Raises BadInput for a bad tune block.

    MoE models are taken at the experts' active width, which is an estimate: their layers were not counted.
    """
    from qvl_core.qwen3vl.lora import EMBEDDING, Row, apply_tune
    from qvl_core.qwen3vl.presets import meta_model

    work = batch if isinstance(batch, Workload) else Workload.of(batch, world)
    model = meta_model(config)
    table = apply_tune(model, tune, seed=0)
    half = precision != "fp32"
    shapes = _Shapes(config, tune, half, attention, work)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    frozen_bytes = sum(p.numel() for p in model.parameters() if not p.requires_grad) * (2 if half else 4)
    trained_bytes = 4 * sum(p.numel() for p in trained.values())
    head = shapes.head_weight if _mode(tune, "lm_head") == "full" else 0
    # Autocast's 16-bit copies of trained matrices live until the backward has used them.
    cast = (p for name, p in trained.items() if p.ndim > 1 and not name.startswith(("lm_head", EMBEDDING)))
    casts = 2 * sum(p.numel() for p in cast) if half else 0

    layers, blocks = shapes.llm_layers, shapes.vision_blocks
    if recompute:
        layers_kept = [shapes.llm_input] * len(layers) if layers[-1] else []
        blocks_kept = [shapes.vision_input] * len(blocks) if blocks[-1] else []
        again = max(layers[-1] + shapes.llm_working, blocks[-1] + shapes.vision_working)
        casts_later = casts // (len(layers) + len(blocks))
    else:
        layers_kept, blocks_kept, casts_later = layers, blocks, casts
        again = shapes.llm_working if layers[-1] else 0
    kept = sum(layers_kept) + sum(blocks_kept) + shapes.around
    gradients = trained_bytes if work.forwards > 1 else 4 * head

    # The peak is at the end of the forward, at the beginning of the backward, or at its end.
    ends = (
        {"activations": kept, "16-bit copies": casts, "gradients": gradients, "logits": HEAD_CHUNK + shapes.head_kept},
        {"activations": kept + again, "16-bit copies": casts_later, "gradients": gradients, "logits": shapes.head_kept},
        {"activations": again, "16-bit copies": 0, "gradients": trained_bytes, "logits": 0},
        {"activations": shapes.vision_forward, "16-bit copies": casts, "gradients": gradients, "logits": 0},
    )
    most = max(ends, key=lambda end: sum(end.values()))
    rows = {
        "frozen weights": frozen_bytes,
        "trained weights (fp32)": trained_bytes,
        "Adam states": 2 * trained_bytes,
        "gradients": most["gradients"],
        "activations": most["activations"],
        "16-bit copies of trained weights": most["16-bit copies"],
        "logits": most["logits"],
        "batch": work.tokens * 100 + shapes.patches * shapes.pixels * 4,
    }
    if strategy == "fsdp2":
        rows = _sharded(rows, world, gathered=shapes.gathered(model, 2 if half else 4))
    rows = {name: round(size) for name, size in rows.items()}

    groups = {group: Row(group, "frozen", 0, 0) for group in GROUPS} | {row.group: row for row in table.rows}
    flops = work.forwards * shapes.flops(groups, recompute)
    floor = flops / (peak_flops if half else peak_flops / 2)  # fp32 runs as TF32, at half the rate
    peak = sum(rows.values())
    return MemoryPlan(
        rows=rows,
        peak=peak,
        reserve=round(CONTEXT + FRAGMENTATION * peak),
        flops=flops,
        floor_seconds=floor,
        expected_seconds=(floor / MFU[1], floor / MFU[0]),
        tokens=work.tokens * work.forwards * world,
        parameters=table.parameters,
        trainable=table.trainable,
        workload=work,
    )


def _mode(tune: Mapping[str, Group], group: str) -> str:
    return tune[group].mode if group in tune else "frozen"


def _sharded(rows: dict[str, int], world: int, gathered: float) -> dict[str, int]:
    """FSDP: each device holds its part of all states, and whole what it computes with at the moment."""
    parted = ("frozen weights", "trained weights (fp32)", "Adam states", "gradients")
    shards = {name: ceil(size / world) if name in parted else size for name, size in rows.items()}
    return shards | {"16-bit copies of trained weights": 0, "gathered weights": round(gathered)}


class _Shapes:
    """Bytes that autograd keeps of one forward, and operations, for a configuration and a tune block."""

    def __init__(self, config: Any, tune: Mapping[str, Group], half: bool, attention: str, work: Workload) -> None:
        text, vision = config.text_config, config.vision_config
        self.config, self.tune, self.half, self.attention, self.work = config, tune, half, attention, work
        self.compute = 2 if half else 4
        self.hidden = text.hidden_size
        self.query = text.num_attention_heads * text.head_dim
        self.key = text.num_key_value_heads * text.head_dim
        experts = getattr(text, "num_experts_per_tok", 0)
        self.intermediate = text.moe_intermediate_size * experts if experts else text.intermediate_size
        self.width = vision.hidden_size
        self.merge = vision.spatial_merge_size**2
        self.image_tokens = round(work.tokens * work.images)
        self.patches = self.image_tokens * self.merge
        self.pixels = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2  # numbers in a patch
        self.head_weight = text.vocab_size * self.hidden
        self.residual = 4 if _mode(tune, "embed") == "full" else self.compute  # bytes of the LLM's residual stream

        # Which tensors have gradients, from the pixels on.
        self.vision_flows = _mode(tune, "vision") != "frozen"
        self.features_flow = self.vision_flows or _mode(tune, "merger") != "frozen"
        self.deepstack_flows = self.vision_flows or _mode(tune, "deepstack_mergers") != "frozen"
        self.embeds_flow = self.features_flow or _mode(tune, "embed") != "frozen"
        self.llm_flows = self.embeds_flow or self.deepstack_flows or _mode(tune, "llm") != "frozen"

    @property
    def llm_layers(self) -> list[float]:
        """Bytes kept by each decoder layer (Qwen3VLTextDecoderLayer)."""
        text = self.config.text_config
        if not self.llm_flows:
            return [0.0] * text.num_hidden_layers
        mode, c = _mode(self.tune, "llm"), self.compute
        full = mode == "full"
        # RMSNorm keeps its input in fp32 and 1 / rms; a trained weight also the normed input, in the input's type.
        block_norm, head_norm = 4 + full * self.residual, 4 + full * c
        heads = text.num_attention_heads + text.num_key_value_heads
        norms = 2 * (block_norm * self.hidden + 4) + head_norm * (self.query + self.key) + 4 * heads
        # A trained linear keeps its input. An fp32 input (from fp32 norm weights or an fp32 residual) is cast, and
        # the copy kept, for each linear that reads it.
        wide = self.half and (full or self.residual == 4)
        inputs = 0 if mode == "frozen" else (5 if wide else 2) * c * self.hidden
        attention = self._attention(trained=mode != "frozen")
        # silu keeps the gate, the product its two factors, a trained down_proj the product.
        mlp = (3 if mode == "frozen" else 4) * c * self.intermediate
        lora = 7 * c * self.tune["llm"].rank if mode == "lora" else 0
        layer = self.work.tokens * float(norms + inputs + attention + mlp + lora)
        first = layer - (0 if self.embeds_flow else self.work.tokens * 4 * self.hidden)
        return [first] + [layer] * (text.num_hidden_layers - 1)

    def _attention(self, trained: bool) -> int:
        """Bytes per token that attention keeps: queries, keys, values, output; per head a statistic or all scores."""
        heads, c, work = self.config.text_config.num_attention_heads, self.compute, self.work
        if self.attention == "packed" and self.half:
            return c * (2 * self.query + 2 * self.key) + 4 * heads
        # The other kernels want keys and values once per query head, and keep the output only for a trained o_proj.
        if self.attention == "sdpa":
            return 4 * c * self.query + 4 * heads
        each = c * self.query * (3 + trained)
        if self.attention == "eager":
            return each + heads * work.tokens * (6 if self.half else 4)
        return each + heads * work.document * 4  # fp32 has no kernel that shares heads: plain products, per document

    @property
    def llm_input(self) -> float:
        return float(self.work.tokens * self.hidden * self.residual)

    @property
    def llm_working(self) -> float:
        """Gradients in flight in the backward of one decoder layer: two of the MLP, two of the residual in fp32."""
        return float(self.work.tokens * (2 * self.compute * self.intermediate + 2 * 4 * self.hidden))

    @property
    def vision_blocks(self) -> list[float]:
        """Bytes kept by each block of the tower (Qwen3VLVisionBlock)."""
        vision, c = self.config.vision_config, self.compute
        if not self.vision_flows:
            return [0.0] * vision.depth
        # LayerNorm runs in fp32 and keeps its input so, mean and 1 / std; linears keep their input.
        norms = 2 * (4 * self.width + 8)
        inputs = 2 * c * self.width
        # Queries and keys after rotation, the qkv product that values are a view of, the output.
        attention = 6 * c * self.width + 4 * vision.num_heads
        mlp = 2 * c * vision.intermediate_size
        lora = 4 * c * self.tune["vision"].rank if _mode(self.tune, "vision") == "lora" else 0
        block = self.patches * float(norms + inputs + attention + mlp + lora)
        pixels = self.patches * float(c * self.pixels)
        start = pixels if _mode(self.tune, "vision") == "full" else -self.patches * 4.0 * self.width
        return [block + start] + [block] * (vision.depth - 1)

    @property
    def vision_input(self) -> float:
        return float(self.patches * self.width * self.compute)

    @property
    def vision_working(self) -> float:
        vision, c = self.config.vision_config, self.compute
        return float(self.patches * (2 * c * vision.intermediate_size + 8 * self.width))

    @property
    def vision_forward(self) -> float:
        """The largest moment of a tower without gradients: rotation in fp32 beside qkv, patches as pixels."""
        return float(self.patches * (3 * self.compute + 6 * 4) * self.width)

    @property
    def around(self) -> float:
        """Bytes kept outside the repeated layers: mergers, picture features, last norm, hidden states."""
        c, deep = self.compute, len(self.config.vision_config.deepstack_visual_indexes)
        mergers = self._merger("merger") + deep * self._merger("deepstack_mergers")
        features = (deep + 2) * c * self.hidden * self.image_tokens
        last = self.work.tokens * self.hidden * ((4 if self.llm_flows else 0) + 3 * c)
        return float(mergers + features + last)

    def _merger(self, group: str) -> float:
        """Bytes kept by one merger (Qwen3VLVisionPatchMerger), whose width is the patches of one token together."""
        mode, c, width = _mode(self.tune, group), self.compute, self.width * self.merge
        norm = 4 if self.vision_flows or mode == "full" else 0
        linears = 0 if mode == "frozen" else 2 * c
        gelu = c if self.vision_flows or mode != "frozen" else 0
        return float(self.image_tokens * width * (norm + linears + gelu))

    @property
    def head_kept(self) -> float:
        """The head's gradients, made in its forward: of the label rows, and of a trained matrix (beside its copy)."""
        rows = self.work.tokens * self.work.labels * self.hidden * self.compute * 2
        return float(rows + ((4 + self.compute) * self.head_weight if _mode(self.tune, "lm_head") == "full" else 0))

    def gathered(self, model: Any, size: int) -> float:
        """FSDP: two layers (one computes, one arrives) and what belongs to no layer."""
        layers = model.model.language_model.layers
        one = sum(p.numel() for p in layers[0].parameters())
        sharded = sum(p.numel() for part in (*layers, *model.model.visual.blocks) for p in part.parameters())
        return float(size * (2 * one + sum(p.numel() for p in model.parameters()) - sharded))

    def flops(self, rows: Mapping[str, Any], recompute: bool) -> float:
        """Operations of one forward and backward: 2 per weight and token each for the forward, the gradient of the
        input and that of the weight, as far as each is needed; adapters all three."""
        text, vision, work = self.config.text_config, self.config.vision_config, self.work
        llm = rows["llm"].parameters
        if experts := getattr(text, "num_experts_per_tok", 0):
            unused = text.num_experts - experts
            llm -= text.num_hidden_layers * unused * 3 * text.moe_intermediate_size * self.hidden

        def passes(flows: bool, mode: str) -> int:
            return 1 + flows + (flows and mode == "full") + (flows and recompute)

        def adapters(group: str) -> int:
            return 3 * rows[group].trainable if rows[group].mode == "lora" else 0

        llm_passes = passes(self.llm_flows, _mode(self.tune, "llm"))
        vision_passes = passes(self.vision_flows, _mode(self.tune, "vision"))
        # Attention's backward is twice its forward; causal attention is half a square.
        causal = text.num_hidden_layers * 2 * work.tokens * work.document * self.query
        document_patches = work.document * work.images * self.merge
        square = vision.depth * 4 * self.patches * document_patches * self.width
        head = 3 if _mode(self.tune, "lm_head") == "full" else 1 + self.llm_flows
        return (
            2 * work.tokens * (llm * llm_passes + adapters("llm"))
            + 2 * self.patches * (rows["vision"].parameters * vision_passes + adapters("vision"))
            + 2 * self.image_tokens * rows["merger"].parameters * passes(self.features_flow, _mode(self.tune, "merger"))
            + 2
            * self.image_tokens
            * rows["deepstack_mergers"].parameters
            * passes(self.deepstack_flows, _mode(self.tune, "deepstack_mergers"))
            + causal * ((3 + recompute) if self.llm_flows else 1)
            + square * ((3 + recompute) if self.vision_flows else 1)
            + 2 * work.labels * work.tokens * self.head_weight * head
        )
