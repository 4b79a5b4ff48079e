"""Packed = unpacked = padded, in logits and in gradients, on every attention path; and no mask is ever built."""

import importlib
import inspect
from itertools import pairwise

import numpy as np
import peft
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from qvl_core.errors import BadInput
from qvl_core.qwen3vl import attention
from qvl_core.qwen3vl.batch import collate
from qvl_core.qwen3vl.encoded import IGNORE, Encoded
from qvl_core.qwen3vl.loss import label_states, next_token_loss, token_losses
from qvl_core.qwen3vl.tiny import tiny_model, tiny_processor

MERGE = 2
PROCESSOR = tiny_processor()
PAD = PROCESSOR.tokenizer.pad_token_id


@pytest.fixture(params=["packed", "sdpa"])
def model(request):
    model = tiny_model(PROCESSOR.tokenizer, seed=1)
    with torch.no_grad():  # away from the small initial weights, so that attention matters
        for weight in model.parameters():
            weight.mul_(2) if weight.ndim > 1 else None
    if request.param == "packed":
        attention.use(model)
    return model


def sample(seed: int, words: int, images: list[tuple[int, int]] = (), videos: list[tuple[int, int, int]] = ()):
    """Random text, pictures of (height, width) tokens, clips of (frames, height, width); the last words are labels."""
    rng = np.random.default_rng(seed)
    names = ["<|vision_start|>", "<|image_pad|>", "<|video_pad|>", "<|vision_end|>"]
    start, image, video, end = PROCESSOR.tokenizer.convert_tokens_to_ids(names)
    ids = rng.integers(5, 250, 3).tolist()
    for h, w in images:
        ids += [start, *[image] * (h * w), end]
    for t, h, w in videos:
        for second in range(t):
            ids += [20 + second, start, *[video] * (h * w), end]
    ids = np.array([*ids, *rng.integers(5, 250, words)])
    labels = np.where(np.arange(len(ids)) < len(ids) - words // 2, IGNORE, ids)
    labels[:1] = ids[:1]  # a label on the first token is not predicted from anything

    def media(grid):
        grid = np.array(grid, np.int64).reshape(-1, 3) * [1, MERGE, MERGE]
        patches = rng.normal(size=(grid.prod(1).sum(), 3 * 2 * 16 * 16)).astype(np.float32)
        return (patches, grid) if len(grid) else (None, None)

    types = (ids == image) + 2 * (ids == video)
    return Encoded(f"sample {seed}", ids, labels, types, *media([(1, h, w) for h, w in images]), *media(videos))


SETS = {
    "text": [sample(0, 9), sample(1, 4), sample(2, 9), sample(3, 2)],
    "images": [
        sample(0, 5, [(2, 2), (2, 3)]),
        sample(1, 6, [(2, 2)]),
        sample(2, 6, [(2, 2)]),
        sample(3, 4, [(3, 1)] * 3),
    ],
    "video": [sample(0, 5, videos=[(2, 2, 2)]), sample(1, 7, videos=[(3, 1, 2), (1, 2, 2)])],
    "mixed": [
        sample(0, 5, [(2, 2)], [(2, 2, 2)]),
        sample(1, 8),
        sample(2, 4, videos=[(2, 2, 1)]),
        sample(3, 6, [(2, 3), (1, 1)]),
    ],
}


def logits(model, samples, packing: bool) -> Tensor:
    batch = collate(samples, packing, MERGE, PAD)
    return model.lm_head(label_states(model, batch))  # (N, V)


def gradients(model, batches) -> dict[str, Tensor]:
    model.zero_grad()
    for batch in batches:
        next_token_loss(model, batch).backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("samples", SETS.values(), ids=SETS)
def test_together_equals_alone(model, samples, packing):
    alone = torch.cat([logits(model, [one], packing=False) for one in samples])
    together = logits(model, samples, packing)
    assert alone.std() > 0.1  # the model says something
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)

    expected = gradients(model, [collate([one], False, MERGE, PAD) for one in samples])
    grads = gradients(model, [collate(samples, packing, MERGE, PAD)])
    assert expected.keys() == grads.keys()
    for name, grad in grads.items():
        error = (grad - expected[name]).norm() / expected[name].norm().clamp(min=1e-6)
        assert error < 1e-5, (name, error)


@pytest.mark.parametrize("samples", SETS.values(), ids=SETS)
def test_loss_equals_the_librarys_on_single_samples(model, samples):
    for one in samples:
        batch = collate([one], True, MERGE, PAD)
        arguments = {name: value for name, value in batch.inputs().items() if name != "position_ids"}
        labels = torch.from_numpy(one.labels)[None]
        with torch.no_grad():
            expected = model(**arguments, labels=labels).loss * one.count
        torch.testing.assert_close(next_token_loss(model, batch), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(token_losses(model, batch).sum(), expected, atol=1e-5, rtol=1e-5)


def test_adapters_train_whether_injected_or_wrapped(model):
    batch = collate(SETS["mixed"], True, MERGE, PAD)
    expected = next_token_loss(model, batch)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    for form in (wrapped, wrapped.get_base_model()):
        wrapped.zero_grad()
        loss = next_token_loss(form, batch)
        torch.testing.assert_close(loss, expected)  # B starts at zero
        loss.backward()
        assert all(p.grad is not None for p in wrapped.parameters() if p.requires_grad)


def test_no_mask_is_built_and_equal_lengths_share_a_call(monkeypatch):
    model = tiny_model(PROCESSOR.tokenizer)
    attention.use(model)
    calls = []

    def spy(query, key, value, attn_mask=None, *rest, **options):
        calls.append((tuple(query.shape), attn_mask))
        return functional.scaled_dot_product_attention(query, key, value, attn_mask, *rest, **options)

    monkeypatch.setattr(attention, "scaled_dot_product_attention", spy)
    monkeypatch.setattr(attention, "sdpa_mask", lambda **_: pytest.fail("a mask was built"))
    samples = SETS["images"]
    label_states(model, collate(samples, True, MERGE, PAD))
    assert all(mask is None for _, mask in calls)
    tower = [shape for shape, _ in calls if shape[1] == 4 and shape[3] == 24]
    text = [shape for shape, _ in calls if shape[3] == 32]
    # 3 tower layers x 3 picture sizes; 3 text layers x the distinct document lengths
    assert sorted(set(tower)) == [(1, 4, 24, 24), (3, 4, 12, 24), (3, 4, 16, 24)]
    assert len(tower) == 9
    assert len(text) == 3 * len({len(one) for one in samples})


@pytest.mark.parametrize("shares_heads", [True, False], ids=["torch 2.15", "torch 2.11"])
def test_the_kernel_path_lays_its_arguments_out_right(monkeypatch, shares_heads):
    """The kernel itself needs a GPU (tests/gpu); a plain reading of its documentation stands in for it here."""
    from torch.nn.attention import varlen

    signature, calls = inspect.signature(varlen.varlen_attn), []

    def documented(*args, **options):
        given = signature.bind(*args, **options).arguments
        query, key, value, bounds = (given[name] for name in ("query", "key", "value", "cu_seq_q"))
        assert given["max_q"] == given["max_k"] == bounds.diff().max()
        assert given.get("enable_gqa", False) == (query.shape[1] != key.shape[1])
        calls.append(bounds)
        causal = {(-1, 0): True, (-1, -1): False}[given["window_size"]]
        out = [
            functional.scaled_dot_product_attention(
                *(x[start:stop].transpose(0, 1)[None] for x in (query, key, value)),
                is_causal=causal,
                scale=given["scale"],
                enable_gqa=query.shape[1] != key.shape[1],
            )[0].transpose(0, 1)
            for start, stop in pairwise(bounds.tolist())
        ]
        return torch.cat(out)

    monkeypatch.setattr(varlen, "varlen_attn", documented)
    monkeypatch.setattr(attention, "_varlen_shares_heads", lambda: shares_heads)
    model = tiny_model(PROCESSOR.tokenizer)
    attention.use(model)
    expected = logits(model, SETS["mixed"], packing=True)
    monkeypatch.setattr(attention, "_kernel_type", lambda query, value: value.dtype)
    torch.testing.assert_close(logits(model, SETS["mixed"], packing=True), expected, atol=1e-5, rtol=1e-5)
    assert len(calls) == 3 + 3 + 3  # layers of the text model, of the tower on images, of the tower on videos


def test_positions_alone_tell_documents_apart(model):
    batch = collate(SETS["mixed"], True, MERGE, PAD)
    arguments = batch.inputs()
    bare = {name: value for name, value in arguments.items() if not name.startswith(("cu_seq", "max_length"))}
    with torch.no_grad():
        expected = model.model(**arguments, use_cache=False).last_hidden_state
        torch.testing.assert_close(model.model(**bare, use_cache=False).last_hidden_state, expected)


def test_attention_dropout_acts_in_training_only():
    model = tiny_model(PROCESSOR.tokenizer)
    attention.use(model)
    for layer in model.model.language_model.layers:
        layer.self_attn.attention_dropout = 0.5
    batch = collate(SETS["text"], True, MERGE, PAD)
    still = next_token_loss(model, batch)
    torch.testing.assert_close(still, next_token_loss(model, batch))
    model.train()
    torch.manual_seed(0)
    first = next_token_loss(model, batch)
    assert not torch.equal(first, next_token_loss(model, batch))
    torch.manual_seed(0)
    assert torch.equal(first, next_token_loss(model, batch))


def test_recompute_and_autocast_keep_the_packed_loss(model):
    batch = collate(SETS["mixed"], True, MERGE, PAD)
    model.train()
    expected = gradients(model, [batch])
    model.activation_checkpointing_enable()
    for name, grad in gradients(model, [batch]).items():
        torch.testing.assert_close(grad, expected[name])
    with torch.autocast("cpu", torch.bfloat16):
        loss = next_token_loss(model, batch)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, next_token_loss(model, batch), rtol=0.02, atol=0)


def test_saved_configuration_does_not_name_the_implementation(tmp_path):
    model = tiny_model(PROCESSOR.tokenizer)
    attention.use(model)
    assert {c._attn_implementation for c in (model.config, model.model.visual.config)} == {attention.NAME}
    model.save_pretrained(tmp_path)
    assert attention.NAME not in (tmp_path / "config.json").read_text(encoding="utf-8")
    model.set_attn_implementation("sdpa")
    assert model.model.language_model.config._attn_implementation == "sdpa"


def test_an_installed_flash_attention_takes_the_place_of_torchs_own(monkeypatch, tmp_path):
    with pytest.raises(BadInput, match=r"flash needs FlashAttention 4 or 3.*pip install flash-attn-4"):
        attention.use_flash()

    taken = []
    monkeypatch.setattr(torch.nn.attention, "activate_flash_attention_impl", taken.append)
    (tmp_path / "flash_attn_interface.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert attention.use_flash() == "FA3"
    (tmp_path / "flash_attn/cute").mkdir(parents=True)
    for name in ("flash_attn", "flash_attn/cute"):
        (tmp_path / name / "__init__.py").touch()
    (tmp_path / "flash_attn/cute/interface.py").touch()
    importlib.invalidate_caches()
    assert attention.use_flash() == "FA4"
    assert taken == ["FA3", "FA4"]
    assert set(taken) <= set(torch.nn.attention.list_flash_attention_impls())
