"""Every switch of `speed` and `train.recompute` changes how a step computes, and nothing that it gives."""

import copy
import math
import shutil
from typing import Any

import pytest
import torch
from chats import MERGE, chat
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from qvl_core.qwen3vl import attention, offload
from qvl_core.qwen3vl.batch import Batch, collate
from qvl_core.qwen3vl.lora import apply_tune
from qvl_core.qwen3vl.loss import next_token_loss
from qvl_core.qwen3vl.offload import Offload, offloaded
from qvl_core.qwen3vl.speed import speed_up
from qvl_core.qwen3vl.tiny import tiny_model, tiny_processor
from qvl_core.recipe.blocks import Group, Speed

LORA, FULL = Group(mode="lora", rank=4), Group(mode="full")
TUNES = {
    "lora": {"llm": LORA},
    "tower": {"llm": LORA, "vision": LORA, "merger": FULL},
    "mergers": {"merger": FULL, "deepstack_mergers": FULL},
    "full": dict.fromkeys(("llm", "merger", "deepstack_mergers", "vision", "embed", "lm_head"), FULL),
}
PLAIN = Speed(linear_patches=False, frozen_features=False)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_processor().tokenizer


@pytest.fixture(scope="module")
def base(tokenizer: Any) -> nn.Module:
    return tiny_model(tokenizer, seed=1)


@pytest.fixture(scope="module")
def batches(tokenizer: Any) -> dict[str, Batch]:
    """Several pictures, a clip, both, and neither; packed and padded."""
    chats = [
        chat(tokenizer, 0, 12, [(2, 2), (2, 3)]),
        chat(tokenizer, 1, 9),
        chat(tokenizer, 2, 20, [(3, 2)], [(2, 2, 2)]),
        chat(tokenizer, 3, 8, (), [(3, 2, 2)]),
    ]
    return {name: collate(chats, name == "packed", MERGE, 0) for name in ("packed", "padded")}


def tuned(base: nn.Module, tune: dict[str, Group], speed: Speed = PLAIN, recompute: Any = False) -> nn.Module:
    """A copy of the base, set up; its adapters are no longer zero, so that all of them have gradients."""
    model = copy.deepcopy(base)
    attention.use(model)
    apply_tune(model, tune, seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.add_(torch.linspace(-0.05, 0.05, parameter.numel()).view_as(parameter))
    speed_up(model, speed, recompute)
    return model.train()


def step(model: nn.Module, batch: Batch, speed: Speed = PLAIN) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and all gradients."""
    model.zero_grad()
    with Offload() if speed.offload else offloaded(torch.device("cpu")):
        loss = next_token_loss(model, batch, label_rows=speed.label_rows)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def compare(found: tuple[Tensor, dict[str, Tensor]], wanted: tuple[Tensor, dict[str, Tensor]], within: float) -> None:
    """Equal to the bit (`within` 0), or relative to the size of each tensor."""
    assert found[1].keys() == wanted[1].keys()
    for name in found[1]:
        size = wanted[1][name].norm() if within else 1.0
        assert (found[1][name] - wanted[1][name]).norm() <= within * size + 1e-6 * within, name
    assert abs(found[0] - wanted[0]) <= within * abs(wanted[0])


def switch(**on: Any) -> Speed:
    return PLAIN.model_copy(update=on)


SWITCHES: dict[str, tuple[Speed, Any, float]] = {  # what is switched, and how near the results have to be
    "full_logits": (switch(label_rows=False), False, 1e-5),
    "recompute": (PLAIN, True, 0),
    "recompute_llm": (PLAIN, ["llm"], 0),
    "recompute_vision": (PLAIN, ["vision"], 0),
    "offload": (switch(offload=True), False, 0),
    "offload_recompute": (switch(offload=True), True, 0),
    "linear_patches": (switch(linear_patches=True), False, 1e-4),
    "frozen_features": (switch(frozen_features=True), False, 0),
    "all": (switch(offload=True, linear_patches=True, frozen_features=True), True, 1e-4),
}


@pytest.fixture(scope="module")
def plain(base: nn.Module, batches: dict[str, Batch]) -> dict[str, Any]:
    """What every switch is compared with."""
    models = {name: tuned(base, tune) for name, tune in TUNES.items()}
    return {f"{name} {kind}": step(model, batch) for name, model in models.items() for kind, batch in batches.items()}


CASES = [
    (name, tune)
    for name in SWITCHES
    for tune in TUNES
    if tune != "mergers" or name in ("frozen_features", "recompute", "all")
]


@pytest.mark.parametrize(("name", "tune"), CASES)
def test_a_switch_changes_nothing(
    name: str, tune: str, base: nn.Module, batches: dict[str, Batch], plain: dict[str, Any], monkeypatch: Any
) -> None:
    monkeypatch.setattr(offload, "MINIMUM", 0)
    speed, recompute, within = SWITCHES[name]
    model = tuned(base, TUNES[tune], speed, recompute)
    assert model.state_dict().keys() == tuned(base, TUNES[tune]).state_dict().keys()
    for kind, batch in batches.items():
        compare(step(model, batch, speed), plain[f"{tune} {kind}"], within)


def kept(model: nn.Module, batch: Batch) -> dict[int, int]:
    """Bytes of each storage that autograd keeps of a forward, parameters left out."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    alive: dict[int, tuple[Tensor, int]] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            alive[storage.data_ptr()] = (tensor.detach(), storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = next_token_loss(model, batch)
    assert loss.requires_grad
    return {address: size for address, (_, size) in alive.items()}


def test_dropout_is_drawn_alike(base: nn.Module, batches: dict[str, Batch], monkeypatch: Any) -> None:
    """Also where layers are computed twice: the same masks, and so the same gradients to the bit."""
    monkeypatch.setattr(offload, "MINIMUM", 0)
    dropped = LORA.model_copy(update={"dropout": 0.2})

    def seeded(speed: Speed, recompute: Any, seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        model = tuned(base, {"llm": dropped, "vision": dropped}, speed, recompute)
        torch.manual_seed(seed)
        return step(model, batches["packed"], speed)

    wanted = seeded(PLAIN, False)
    assert seeded(PLAIN, False, seed=1)[0] != wanted[0]
    compare(seeded(switch(offload=True), True), wanted, 0)


def test_recompute_saves_the_memory_of_its_group(base: nn.Module, batches: dict[str, Batch]) -> None:
    size = {
        name: sum(kept(tuned(base, TUNES["full"], PLAIN, recompute), batches["packed"]).values())
        for name, recompute in {"no": False, "llm": ["llm"], "vision": ["vision"], "all": True}.items()
    }
    saved = {name: size["no"] - left for name, left in size.items()}
    assert min(saved["llm"], saved["vision"]) > 0.2 * size["no"]
    assert saved["all"] == pytest.approx(saved["llm"] + saved["vision"], rel=0.02)


def test_a_frozen_tower_is_not_recomputed(base: nn.Module) -> None:
    model = tuned(base, TUNES["lora"], PLAIN, True)
    assert model.model.language_model.layers[0].gradient_checkpointing
    assert not model.model.visual.blocks[0].gradient_checkpointing


def test_offload_leaves_nothing_on_the_device_between_forward_and_backward(monkeypatch: Any) -> None:
    monkeypatch.setattr(offload, "MINIMUM", 0)
    weight = nn.Parameter(torch.ones(3))
    with Offload():
        middle = weight.exp()
        total = middle.exp().sum()
    kept = StorageWeakRef(middle.untyped_storage())
    del middle
    assert kept.expired()
    total.backward()
    assert weight.grad is not None
    assert torch.allclose(weight.grad, torch.exp(torch.tensor(1 + math.e)))


def test_offload_tells_a_tensor_that_was_changed_from_what_it_was(monkeypatch: Any) -> None:
    """Where autograd alone would raise, each product's gradient is that of the values it was computed from."""
    monkeypatch.setattr(offload, "MINIMUM", 0)
    first, second = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(()))
    x = torch.ones(2)
    with Offload():
        total = (x * first).sum()
        x.mul_(3)
        total = total + (x * second).sum()
    total.backward()
    assert (first.grad, second.grad) == (2, 6)


def test_offload_takes_everything_but_weights_and_each_tensor_once(
    base: nn.Module, batches: dict[str, Batch], monkeypatch: Any
) -> None:
    monkeypatch.setattr(offload, "MINIMUM", 0)
    copies: list[int] = []

    class Counted(offload._OnHost):
        def __init__(self, tensor: Tensor) -> None:
            super().__init__(tensor)
            copies.append(self.host.nbytes)

    monkeypatch.setattr(offload, "_OnHost", Counted)
    model = tuned(base, TUNES["full"])
    with Offload():
        loss = next_token_loss(model, batches["packed"])
    left, weights = [], {p.untyped_storage().data_ptr() for p in model.parameters()}
    nodes, seen = [loss.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes += [parent for parent, _ in node.next_functions]
        for name in dir(node):
            if name.startswith("_raw_saved_"):
                raw = getattr(node, name)
                data = raw.data if hasattr(raw, "data") else None
                if isinstance(data, Tensor) and data.untyped_storage().data_ptr() not in weights:
                    left.append((node.name(), name))
    assert left == []
    once = sum(kept(model, batches["packed"]).values())
    assert 0.9 * once < sum(copies) < 1.1 * once


def test_offload_leaves_the_casts_of_weights(monkeypatch: Any) -> None:
    monkeypatch.setattr(offload, "MINIMUM", 0)
    layer, x = nn.Linear(32, 32), torch.randn(4, 32, requires_grad=True)
    weights: dict[tuple[int, ...], bool] = {}

    def look(tensor: Tensor) -> Tensor:
        weights[tuple(tensor.shape)] = offload._is_weight(tensor)
        return tensor

    with torch.autocast("cpu", torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(look, lambda tensor: tensor):
        layer(x).sum()
    assert weights == {(4, 32): False, (32, 32): True}


def test_patches_are_embedded_alike(base: nn.Module, batches: dict[str, Batch]) -> None:
    embed, product = (tuned(base, TUNES["full"], switch(linear_patches=on)).model.visual.patch_embed for on in (0, 1))
    pixels = batches["packed"].pixel_values
    assert type(product.proj) is not nn.Conv3d
    assert (embed(pixels) - product(pixels)).abs().max() < 1e-5


def test_a_frozen_tower_records_nothing(base: nn.Module, batches: dict[str, Batch]) -> None:
    batch = batches["packed"]
    for name in ("lora", "mergers", "tower"):
        model = tuned(base, TUNES[name], switch(frozen_features=True))
        states: list[bool] = []
        model.model.visual.blocks[1].mlp.register_forward_hook(
            lambda *_, states=states: states.append(torch.is_grad_enabled())
        )
        step(model, batch)
        assert states == [name == "tower"] * 2  # pictures, clips


def test_only_training_runs_what_is_compiled(base: nn.Module, batches: dict[str, Batch], monkeypatch: Any) -> None:
    runs: list[str] = []

    def compiled(forward: Any, dynamic: bool) -> Any:
        return lambda *inputs, **options: (runs.append(""), forward(*inputs, **options))[1]

    monkeypatch.setattr(torch, "compile", compiled)
    model = tuned(base, TUNES["lora"], switch(compile=True))
    step(model.eval(), batches["packed"])
    assert not runs
    step(model.train(), batches["packed"])
    assert len(runs) == 3 * 4 + 3 * 4 * 2  # the parts of three layers, and of three blocks for pictures and for clips
    attention.register()  # the other tests' attention


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler")
def test_compiled_layers_give_the_same_gradients(
    base: nn.Module, batches: dict[str, Batch], plain: dict[str, Any]
) -> None:
    for recompute in (False, True):
        model = tuned(base, TUNES["tower"], switch(compile=True), recompute).train()
        compare(step(model, batches["packed"]), plain["tower packed"], 1e-4)
        assert model.state_dict().keys() == tuned(base, TUNES["tower"]).state_dict().keys()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    attention.register()  # the other tests' attention
