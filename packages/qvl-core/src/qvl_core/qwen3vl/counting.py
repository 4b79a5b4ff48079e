"""What autograd keeps of one forward of Qwen3-VL, and what it computes, counted from transformers' layers line by line.

Letters: H hidden, Q and K query and key widths (heads x head_dim), I intermediate, W tower width, V vocabulary, c bytes
of the compute type; T tokens and P patches of one forward on one device.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal

from qvl_core.recipe.blocks import Batch, Group

Device = Literal["cuda", "cpu"]


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


def mode_of(tune: Mapping[str, Group], group: str) -> str:
    return tune[group].mode if group in tune else "frozen"


class Shapes:
    """Bytes that autograd keeps of one forward, and operations, for a configuration and a tune block."""

    def __init__(
        self,
        config: Any,
        tune: Mapping[str, Group],
        half: bool,
        attention: str,
        work: Workload,
        device: Device = "cuda",
        label_rows: bool = True,
    ) -> None:
        text, vision = config.text_config, config.vision_config
        self.device, self.label_rows = device, label_rows
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
        self.residual = 4 if mode_of(tune, "embed") == "full" else self.compute  # bytes of the LLM's residual stream

        # Which tensors have gradients, from the pixels on.
        self.vision_flows = mode_of(tune, "vision") != "frozen"
        self.features_flow = self.vision_flows or mode_of(tune, "merger") != "frozen"
        self.deepstack_flows = self.vision_flows or mode_of(tune, "deepstack_mergers") != "frozen"
        self.embeds_flow = self.features_flow or mode_of(tune, "embed") != "frozen"
        self.llm_flows = self.embeds_flow or self.deepstack_flows or mode_of(tune, "llm") != "frozen"

    @property
    def llm_layers(self) -> list[float]:
        """Bytes kept by each decoder layer (Qwen3VLTextDecoderLayer)."""
        count = self.config.text_config.num_hidden_layers
        mode, last = mode_of(self.tune, "llm"), self._trained_layers("llm", count)
        through = self.embeds_flow or self.deepstack_flows  # gradients pass the layers before the trained ones, too
        before = self._llm_layer("frozen") if through else 0.0
        layers = [before] * (count - last) + [self._llm_layer(mode)] * last
        if not self.embeds_flow:  # the first that keeps anything has an input without a gradient
            first = next((i for i, size in enumerate(layers) if size), None)
            if first is not None:
                layers[first] -= self.work.tokens * 4 * self.hidden
        return layers

    def _trained_layers(self, group: str, count: int) -> int:
        """How many layers of a group are trained: the last ones."""
        if mode_of(self.tune, group) == "frozen":
            return 0
        return min(count, self.tune[group].layers or count)

    def _llm_layer(self, mode: str) -> float:
        text, c, full = self.config.text_config, self.compute, mode == "full"
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
        if mode == "lora" and self.tune["llm"].dora:  # a magnitude's gradient needs both outputs that it scales
            lora += 2 * c * (2 * self.query + 2 * self.key + 2 * self.intermediate + 2 * self.hidden - self.query)
        return self.work.tokens * float(norms + inputs + attention + mlp + lora)

    def _attention(self, trained: bool) -> int:
        """Bytes per token that attention keeps: queries, keys, values, output; per head a statistic or all scores."""
        heads, c, work = self.config.text_config.num_attention_heads, self.compute, self.work
        if self.attention == "packed" and (self.half or self.device == "cpu"):
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
        mode = mode_of(self.tune, "vision")
        if mode == "frozen":
            return [0.0] * vision.depth
        # LayerNorm runs in fp32 and keeps its input so, mean and 1 / std; linears keep their input.
        norms = 2 * (4 * self.width + 8)
        inputs = 2 * c * self.width
        # Queries and keys after rotation, the qkv product that values are a view of, the output.
        attention = 6 * c * self.width + 4 * vision.num_heads
        mlp = 2 * c * vision.intermediate_size
        lora = 4 * c * self.tune["vision"].rank if mode == "lora" else 0
        if mode == "lora" and self.tune["vision"].dora:
            lora += 2 * c * (5 * self.width + vision.intermediate_size)
        block = self.patches * float(norms + inputs + attention + mlp + lora)
        last = self._trained_layers("vision", vision.depth)
        blocks = [0.0] * (vision.depth - last) + [block] * last
        if not self.vision_pixels:  # the first one's input has no gradient
            blocks[-last] -= self.patches * 4.0 * self.width
        return blocks

    @property
    def vision_pixels(self) -> float:
        """A patch embedding that is trained keeps the pixels."""
        trained = mode_of(self.tune, "vision") == "full" and self.tune["vision"].layers is None
        return self.patches * float(self.compute * self.pixels) if trained else 0.0

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
    def saved_around(self) -> float:
        """Bytes that autograd keeps outside the repeated layers: mergers, the pixels, the last norm."""
        deep = len(self.config.vision_config.deepstack_visual_indexes)
        mergers = self._merger("merger") + deep * self._merger("deepstack_mergers")
        trained = mode_of(self.tune, "llm") == "full"
        norm = (4 + trained * self.residual) * self.hidden if self.llm_flows else 0
        # Logits of every token: the softmax of each, in fp32, and the head's input if it is trained.
        vocabulary = self.config.text_config.vocab_size
        head = 0 if self.label_rows else 4 * vocabulary + self.compute * self.hidden * self.trained_head
        return float(mergers + self.vision_pixels + self.work.tokens * (norm + head))

    @property
    def around(self) -> float:
        """Bytes that are there outside the repeated layers when the head begins: what autograd keeps, picture features,
        hidden states."""
        c, deep = self.compute, len(self.config.vision_config.deepstack_visual_indexes)
        features = (deep + 2) * c * self.hidden * self.image_tokens
        return float(self.saved_around + features + self.work.tokens * self.hidden * 3 * c)

    def _merger(self, group: str) -> float:
        """Bytes kept by one merger (Qwen3VLVisionPatchMerger), whose width is the patches of one token together."""
        mode, c, width = mode_of(self.tune, group), self.compute, self.width * self.merge
        norm = 4 if self.vision_flows or mode == "full" else 0
        if group == "deepstack_mergers" and self.vision_flows and not self.half:
            norm = 0  # the next block keeps the same tensor
        linears = 0 if mode == "frozen" else 2 * c
        gelu = c if self.vision_flows or mode != "frozen" else 0
        return float(self.image_tokens * width * (norm + linears + gelu))

    @property
    def trained_head(self) -> bool:
        return mode_of(self.tune, "lm_head") != "frozen"

    @property
    def full_logits(self) -> float:
        """Bytes of two gradients of the logits of every token in fp32, beside the softmax that autograd keeps."""
        return 0.0 if self.label_rows else float(self.work.tokens * self.config.text_config.vocab_size * 8)

    @property
    def head_kept(self) -> float:
        """The head's gradients, made in its forward: of the label rows, and of a trained matrix (beside its copy)."""
        if not self.label_rows:
            return 0.0
        rows = self.work.tokens * self.work.labels * self.hidden * self.compute * 2
        return float(rows + ((4 + self.compute) * self.head_weight if mode_of(self.tune, "lm_head") == "full" else 0))

    def gathered(self, model: Any, size: int) -> float:
        """FSDP: two layers (one computes, one arrives) and what belongs to no layer."""
        layers = model.model.language_model.layers
        one = sum(p.numel() for p in layers[0].parameters())
        sharded = sum(p.numel() for part in (*layers, *model.model.visual.blocks) for p in part.parameters())
        return float(size * (2 * one + sum(p.numel() for p in model.parameters()) - sharded))

    def flops(self, rows: Mapping[str, Any], recompute: Collection[str], tower: bool = True) -> float:
        """Operations of one forward and backward: 2 per weight and token each for the forward, the gradient of the
        input and that of the weight, as far as each is needed; adapters all three. `tower`: false if its features come
        from the cache."""
        text, vision, work = self.config.text_config, self.config.vision_config, self.work
        llm = rows["llm"].parameters
        if experts := getattr(text, "num_experts_per_tok", 0):
            unused = text.num_experts - experts
            llm -= text.num_hidden_layers * unused * 3 * text.moe_intermediate_size * self.hidden

        def passes(flows: float, group: str, again: bool = False) -> float:
            """How often a weight is multiplied: `flows` is the part of its layers that gradients pass."""
            trained = 0.0
            if mode_of(self.tune, group) == "full":
                count = {"llm": text.num_hidden_layers, "vision": vision.depth}.get(group, 1)
                trained = self._trained_layers(group, count) / count
            return 1 + flows + trained + flows * again

        def adapters(group: str) -> int:
            return 3 * rows[group].trainable if rows[group].mode == "lora" else 0

        llm_flows = sum(size > 0 for size in self.llm_layers) / text.num_hidden_layers
        vision_flows = sum(size > 0 for size in self.vision_blocks) / vision.depth
        again_llm, again_vision = "llm" in recompute, "vision" in recompute
        # Attention's backward is twice its forward; causal attention is half a square.
        causal = text.num_hidden_layers * 2 * work.tokens * work.document * self.query
        document_patches = work.document * work.images * self.merge
        square = vision.depth * 4 * self.patches * document_patches * self.width
        head = 3 if mode_of(self.tune, "lm_head") == "full" else 1 + self.llm_flows
        head_rows = work.labels * work.tokens if self.label_rows else work.tokens
        seen = (
            2 * self.patches * (rows["vision"].parameters * passes(vision_flows, "vision", again_vision))
            + 2 * self.patches * adapters("vision")
            + 2 * self.image_tokens * rows["merger"].parameters * passes(self.features_flow, "merger")
            + 2 * self.image_tokens * rows["deepstack_mergers"].parameters
            * passes(self.deepstack_flows, "deepstack_mergers")
            + square * (1 + vision_flows * (2 + again_vision))
        )  # fmt: skip
        return (
            2 * work.tokens * (llm * passes(llm_flows, "llm", again_llm) + adapters("llm"))
            + causal * (1 + llm_flows * (2 + again_llm))
            + 2 * head_rows * self.head_weight * head
            + (seen if tower else 0.0)
        )
