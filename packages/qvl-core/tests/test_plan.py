"""The plan against the real layers: transformers' Qwen3-VL runs on fake tensors, which have shapes but no storage.

Kept bytes are read from autograd under CUDA autocast (fake CUDA tensors need no GPU, but have no backward without one);
the peak over forward and backward is read on fake CPU tensors, whose autocast treats the language model alike.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.models.qwen3_vl import modeling_qwen3_vl

from qvl_core.errors import BadInput
from qvl_core.qwen3vl import attention
from qvl_core.qwen3vl.counting import Shapes
from qvl_core.qwen3vl.head import head_nll
from qvl_core.qwen3vl.lora import apply_tune
from qvl_core.qwen3vl.plan import GIB, Workload, plan_memory
from qvl_core.qwen3vl.presets import config, meta_model
from qvl_core.recipe.blocks import Batch, Group

LORA, FULL = Group(mode="lora"), Group(mode="full")
TOKENS, DOCUMENT = 3584, 512  # not a width of any matrix, so that kept tensors can be told from weights


@contextmanager
def fake_model(
    cfg: Any, tune: dict[str, Group], device: str, half: bool, monkeypatch: pytest.MonkeyPatch
) -> Iterator[nn.Module]:
    """The tuned model on fake tensors, under autocast, with the varlen kernel chosen as on a GPU."""
    model = meta_model(cfg).to(torch.bfloat16 if half else torch.float32)
    apply_tune(model, tune, 0)
    monkeypatch.setattr(attention, "_kernel_type", lambda query, value: torch.bfloat16 if half else None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))  # varlen_attn asks
    with FakeTensorMode(allow_non_fake_inputs=True):
        made: dict[int, tuple[Tensor, Tensor]] = {}  # keeps the old ones alive, so that ids stay theirs
        for module in model.modules():
            for name, p in module._parameters.items():
                if p is not None:
                    new = nn.Parameter(
                        torch.empty(p.shape, dtype=p.dtype, device=device), requires_grad=p.requires_grad
                    )
                    module._parameters[name] = made.setdefault(id(p), (p, new))[1]
            for name, b in module._buffers.items():
                module._buffers[name] = torch.empty(b.shape, dtype=b.dtype, device=device)
        attention.use(model)
        model.train()
        torch.set_autocast_enabled(device, half)
        torch.set_autocast_dtype(device, torch.bfloat16)
        torch.autocast_increment_nesting()
        try:
            yield model
        finally:
            end_autocast(device)


def end_autocast(device: str) -> None:
    torch.set_autocast_enabled(device, False)
    if torch.autocast_decrement_nesting() == 0:
        torch.clear_autocast_cache()


def documents(tokens: int, length: int, device: str) -> Tensor:
    bounds = torch.arange(0, tokens + 1, length, device=device, dtype=torch.int32)
    attention._known_lengths[bounds] = [length] * (tokens // length)  # fake tensors cannot be read
    return bounds


def run_llm(model: nn.Module, tokens: int, device: str) -> Tensor:
    bounds = documents(tokens, DOCUMENT, device)
    return model.model.language_model(
        input_ids=torch.zeros(1, tokens, dtype=torch.long, device=device),
        position_ids=torch.zeros(4, 1, tokens, dtype=torch.long, device=device),
        use_cache=False,
        cu_seq_lens_q=bounds,
        cu_seq_lens_k=bounds,
        max_length_q=DOCUMENT,
        max_length_k=DOCUMENT,
    ).last_hidden_state


def run_vision(model: nn.Module, patches: int, device: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The tower, with what it works out from the values of its grid given by shape alone."""
    indices = torch.zeros(patches, 4, dtype=torch.long, device=device)
    given = {
        "get_vision_interpolation_indices_and_weights": (indices, torch.zeros(patches, 4, device=device)),
        "get_vision_position_ids": torch.zeros(patches, 2, dtype=torch.long, device=device),
        "get_vision_attention_seqlens": (documents(patches, DOCUMENT, device), DOCUMENT),
    }
    for name, value in given.items():
        monkeypatch.setattr(modeling_qwen3_vl, name, lambda *args, value=value, **kwargs: value)
    return model.model.visual(torch.zeros(patches, 1536, device=device), grid_thw=torch.tensor([[1, 4, 4]]))


def kept_bytes(cfg: Any, tune: dict[str, Group], part: str, half: bool, monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes of activations that autograd keeps (parameters and their 16-bit copies, which are leaves, left out)."""
    kept: dict[int, tuple[int, Tensor]] = {}
    with fake_model(cfg, tune, "cuda", half, monkeypatch) as model:
        weights = {p.untyped_storage()._cdata for p in model.parameters()}
        shapes = {tuple(p.shape) for p in model.parameters() if p.ndim > 1}
        shapes |= {shape[::-1] for shape in shapes if len(shape) == 2}

        def pack(tensor: Tensor) -> Tensor:
            key = tensor.untyped_storage()._cdata
            if key not in weights and tuple(tensor.shape) not in shapes:
                kept[key] = (tensor.untyped_storage().nbytes(), tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            if part == "llm":
                alive: Any = run_llm(model, TOKENS, "cuda")
            else:
                alive = run_vision(model, TOKENS, "cuda", monkeypatch)
        total = sum(size for size, _ in kept.values())
        del alive
    return total


def short(preset: str, layers: int, depth: int = 2) -> Any:
    cfg = config(preset)
    cfg.text_config.num_hidden_layers = layers
    cfg.vision_config.depth = depth
    cfg.vision_config.deepstack_visual_indexes = [depth - 1]
    return cfg


LLM = {
    "lora": {"llm": LORA},
    "full": {"llm": FULL},
    "through": {"embed": FULL, "lm_head": FULL},
    "lora, wide": {"llm": LORA, "embed": FULL, "lm_head": FULL},
    "all": {"llm": FULL, "embed": FULL, "lm_head": FULL},
}


@pytest.mark.parametrize("half", [True, False], ids=["bf16", "fp32"])
@pytest.mark.parametrize("tune", LLM.values(), ids=LLM.keys())
def test_kept_by_a_decoder_layer(tune: dict[str, Group], half: bool, monkeypatch: pytest.MonkeyPatch):
    more, less = (kept_bytes(short("Qwen3-VL-4B", n), tune, "llm", half, monkeypatch) for n in (2, 1))
    work = Workload(TOKENS, document=DOCUMENT, images=0.0)
    predicted = Shapes(short("Qwen3-VL-4B", 2), tune, half, "packed", work).llm_layers
    assert more - less == pytest.approx(predicted[1], rel=1e-3)
    norm = 4 + (tune.get("llm") == FULL) * (4 if "embed" in tune or not half else 2)
    last = norm * 2560 * TOKENS  # of the norm behind the layers
    assert less == pytest.approx(predicted[0] + last, rel=1e-2)


VISION = {
    "lora": {"vision": LORA},
    "full": {"vision": FULL},
    "merger full": {"merger": FULL},
    "merger lora": {"merger": LORA},
    "deepstack": {"deepstack_mergers": FULL},
    "all": {"vision": LORA, "merger": FULL, "deepstack_mergers": LORA},
    "frozen": {"llm": LORA},
}


@pytest.mark.parametrize("tune", VISION.values(), ids=VISION.keys())
def test_kept_by_the_tower(tune: dict[str, Group], monkeypatch: pytest.MonkeyPatch):
    cfg = short("Qwen3-VL-2B", 1, depth=2)
    shapes = Shapes(cfg, tune, True, "packed", Workload(TOKENS // 4, document=DOCUMENT, images=1.0))
    mergers = shapes._merger("merger") + shapes._merger("deepstack_mergers")
    predicted = sum(shapes.vision_blocks) + shapes.vision_pixels + mergers
    assert kept_bytes(cfg, tune, "vision", True, monkeypatch) == pytest.approx(predicted, rel=0.02, abs=TOKENS * 64)


class Live(TorchDispatchMode):
    """Counts the bytes of storages that are alive, as a caching allocator without fragmentation would."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen: Any = weakref.WeakSet()

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self.seen:
            self.seen.add(storage)
            self.now += (size := storage.nbytes())
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.free, size)

    def free(self, size: int) -> None:
        self.now -= size

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return out


def simulated_peak(cfg: Any, tune: dict[str, Group], recompute: bool, monkeypatch: pytest.MonkeyPatch) -> int:
    """Largest number of live bytes over a training step (weights and Adam states there before) on text alone."""
    with fake_model(cfg, tune, "cpu", True, monkeypatch) as model, Live() as live:
        if recompute:
            model.activation_checkpointing_enable()
        for p in model.parameters():
            live.add(p)
        states = [torch.empty(2 * p.numel()) for p in model.parameters() if p.requires_grad]
        hidden = run_llm(model, TOKENS, "cpu").flatten(0, 1)
        labels = torch.zeros(TOKENS // 5, dtype=torch.long)
        loss, _ = head_nll(model.lm_head, hidden.index_select(0, labels), labels)
        del hidden
        end_autocast("cpu")  # the loop's backward runs outside
        loss.backward()
        torch.autocast_increment_nesting()  # fake_model ends it
        assert states is not None
        return live.peak


def compare_peaks(cfg: Any, tune: dict[str, Group], recompute: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_memory(cfg, tune, Workload(TOKENS, document=DOCUMENT, images=0.0), recompute=recompute)
    assert plan.peak == pytest.approx(simulated_peak(cfg, tune, recompute, monkeypatch), rel=0.1)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("tune", ["lora", "full"])
def test_peak_of_a_short_model(tune: str, recompute: bool, monkeypatch: pytest.MonkeyPatch):
    compare_peaks(short("Qwen3-VL-8B", 6), LLM[tune], recompute, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("tune", ["lora", "full", "all"])
@pytest.mark.parametrize("preset", ["Qwen3-VL-2B", "Qwen3-VL-4B", "Qwen3-VL-8B"])
def test_peak_at_real_size(preset: str, tune: str, recompute: bool, monkeypatch: pytest.MonkeyPatch):
    compare_peaks(config(preset), LLM[tune], recompute, monkeypatch)


def lora_8b(batch: Batch | Workload, **settings: Any):
    return plan_memory(config("Qwen3-VL-8B"), {"llm": LORA}, batch, **settings)


EIGHT = Workload(8192)  # 8 documents, 60 % pictures, 20 % labels


def test_floor_is_the_published_arithmetic():
    """facts/engine.md section 2: 267 TFLOP and 338 ms, 506 ms with recompute of everything, at 790 TFLOP/s."""
    plan = lora_8b(EIGHT)
    assert plan.flops / 1e12 == pytest.approx(267, rel=0.02)
    assert plan.floor_seconds == pytest.approx(0.338, rel=0.02)
    assert plan.expected_seconds == pytest.approx((plan.floor_seconds / 0.5, plan.floor_seconds / 0.3))
    assert lora_8b(EIGHT, recompute=True).floor_seconds == pytest.approx(0.506, rel=0.05)


def test_rows_add_up_and_states_are_exact():
    plan = lora_8b(EIGHT)
    assert plan.peak == sum(plan.rows.values())
    assert plan.trainable == 43_646_976
    assert plan.parameters == 8_767_123_696
    assert plan.rows["frozen weights"] == 2 * 8_767_123_696
    assert plan.rows["trained weights (fp32)"] == 4 * plan.trainable
    assert plan.rows["optimizer states"] == 8 * plan.trainable + 4 * 36 * 7 * 2  # a step count for each matrix
    assert plan.as_dict()["workload"]["tokens"] == 8192


def test_what_saves_memory_and_what_costs():
    plan = lora_8b(EIGHT)
    assert lora_8b(EIGHT, recompute=True).peak < 24 * GIB < plan.peak
    assert lora_8b(EIGHT, precision="fp32").rows["frozen weights"] == 2 * plan.rows["frozen weights"]
    assert lora_8b(EIGHT, attention="eager").peak > lora_8b(EIGHT, attention="sdpa").peak > plan.peak
    full = plan_memory(config("Qwen3-VL-4B"), {"llm": FULL}, EIGHT, recompute=True)
    sharded = plan_memory(config("Qwen3-VL-4B"), {"llm": FULL}, EIGHT, recompute=True, world=8, strategy="fsdp2")
    assert sharded.rows["optimizer states"] == pytest.approx(full.rows["optimizer states"] / 8)
    assert sharded.peak < full.peak / 2


def test_workload_of_a_batch_block():
    packed = Workload.of(Batch(tokens=65536, max_length=8192), world=2)
    assert (packed.tokens, packed.forwards, packed.document) == (8192, 4, 1024)
    assert Workload.of(Batch(tokens=65536, max_length=8192, micro=2), world=2).forwards == 2
    by_size = Workload.of(Batch(size=32, micro=8, max_length=4096), sample_tokens=25)
    assert (by_size.tokens, by_size.forwards, by_size.document) == (200, 4, 25)
    assert Workload.of(Batch(size=32, max_length=64), world=4).tokens == 8 * 64
    steps = lora_8b(Batch(tokens=65536, max_length=8192), world=2, strategy="ddp")
    assert steps.tokens == 65536
    assert steps.rows["gradients"] == 4 * steps.trainable  # kept from forward to forward


def test_a_plan_for_every_preset_and_for_people(capsys: pytest.CaptureFixture):
    from rich.console import Console

    moe = plan_memory(config("Qwen3-VL-30B-A3B"), {"llm": LORA}, EIGHT, recompute=True)
    assert moe.flops < lora_8b(EIGHT, recompute=True).flops  # 3B active
    assert moe.peak > 2 * 31e9
    Console(width=80).print(lora_8b(EIGHT).rich())
    shown = capsys.readouterr().out
    assert "frozen weights" in shown
    assert "43.6M of 8.767B parameters trained" in " ".join(shown.split())
    with pytest.raises(BadInput, match="did you mean"):
        plan_memory(config("Qwen3-VL-2B"), {"lm": LORA}, EIGHT)
