"""Qwen's own tower inside the wrapper: nothing changes, to the last bit."""

import copy

import pytest
import torch
from samples import answered, encoded, library_inputs
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from qvl_core.qwen3vl.batch import collate
from qvl_core.qwen3vl.load import load_model
from qvl_core.recipe.blocks import Model
from qvl_vision import inspect, save, swap, verify


@pytest.fixture(scope="module")
def pair(base):
    """The stock model and the wrapped one, with their processors."""
    stock = load_model(Model(name=str(base)), precision="fp32", device="cpu")
    return stock, swap(copy.deepcopy(stock), "native", merger="native")


def test_logits_and_generation_are_bit_identical(pair):
    (stock, stock_processor), (wrapped, processor) = pair
    for sizes in ([(64, 64)], [(60, 150), (160, 50), (64, 64)], []):
        before, after = library_inputs(stock_processor, sizes), library_inputs(processor, sizes)
        assert all(torch.equal(before[name], after[name]) for name in before)
        with torch.no_grad():
            assert torch.equal(stock(**before).logits, wrapped(**after).logits)
        assert torch.equal(answered(stock, before), answered(wrapped, after))
        beams = {"max_new_tokens": 4, "num_beams": 3, "num_return_sequences": 2, "do_sample": False}
        assert torch.equal(stock.generate(**before, **beams), wrapped.generate(**after, **beams))


@pytest.mark.parametrize("packing", [True, False])
def test_batches_with_videos_are_bit_identical(pair, packing):
    (stock, processor), (wrapped, _) = pair
    batch = collate(
        [encoded(processor, [(60, 90)], frames=4), encoded(processor, [], 1), encoded(processor, [(64, 64)] * 2, 2)],
        packing,
        merge=2,
        pad_id=0,
    )
    with torch.no_grad():
        before, after = (model.model(**batch.inputs(), use_cache=False).last_hidden_state for model in (stock, wrapped))
    assert torch.equal(before, after)


def test_gradients_are_equal(pair):
    (stock, processor), (wrapped, _) = pair
    inputs = library_inputs(processor)
    for model in (stock, wrapped):
        model.zero_grad()
        model(**inputs).logits.square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in wrapped.named_parameters()}
    for name, parameter in stock.named_parameters():
        inside = name.replace("model.visual.", "model.visual.encoder.model.")
        theirs = gradients[inside] if inside in gradients else gradients[name]
        assert torch.allclose(parameter.grad, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max())), name


def test_reloaded_by_the_auto_classes(pair, tmp_path):
    (stock, stock_processor), (wrapped, processor) = pair
    save(wrapped, processor, tmp_path / "saved")
    verify(tmp_path / "saved")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "saved").eval()
    inputs = library_inputs(AutoProcessor.from_pretrained(tmp_path / "saved"))
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, stock(**library_inputs(stock_processor)).logits)
    assert torch.equal(answered(again, inputs), answered(stock, inputs))


def test_the_groups_are_those_of_the_stock_model(base, pair):
    from qvl_core.qwen3vl.presets import count_parameters

    wrapped, processor = pair[1]
    counted = {group: count for group, count in count_parameters(AutoConfig.from_pretrained(base)).items() if count}
    assert inspect(wrapped, processor).parameters == counted


def test_another_merger_around_qwen_s_tower(base, tmp_path):
    model, processor = swap(base, "native", merger="linear")  # one token a patch
    assert processor.image_processor.merge_size == 1
    inputs = library_inputs(processor, [(64, 96)])
    assert inputs["image_grid_thw"].prod() == (inputs["mm_token_type_ids"] == 1).sum()
    with torch.no_grad():
        logits = model(**inputs).logits
    save(model, processor, tmp_path / "saved")
    verify(tmp_path / "saved")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, logits)
