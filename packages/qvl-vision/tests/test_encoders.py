"""Every encoder, every kind of tokens: forward, backward, generate, save, reload elsewhere, batch = singles."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoders import CONFIGS
from reload import said
from samples import SIZES, chat, encoded, library_inputs

from qvl_core.cli.plugin import execute
from qvl_core.qwen3vl.batch import collate
from qvl_core.qwen3vl.generate import generate
from qvl_data.chat import length
from qvl_vision import freeze, load, save, swap, verify
from qvl_vision.encoders import NativeEncoder

HERE = Path(__file__).parent
if "qvl_plugin_stripes" not in sys.modules:
    execute(str(HERE / "stripes.py"))

# name -> encoder (a registered name, or the names of tiny checkpoints) and arguments of swap
CASES: dict[str, tuple[list[str], dict[str, Any]]] = {name: ([name], {}) for name in CONFIGS}
CASES |= {
    # any N: one token, primes, squares, 197 as of a ViT with its CLS token
    **{f"N={n}": (["stripes"], {"encoder_options": {"tokens": n}}) for n in (1, 7, 13, 25, 197)},
    "1x11": (["tiles"], {"max_tokens": 11}),
    "3x5": (["tiles"], {"max_tokens": 15}),
    "native": (["native"], {"merger": "native"}),
    "mlp": (["dinov2"], {"merger": "mlp", "input_norm": True}),
    "pixel_shuffle": (["dinov2"], {"merger": "pixel_shuffle", "max_tokens": 9}),
    "pixel_shuffle 3": (["convnext"], {"merger": "pixel_shuffle", "merge": 3, "layout": "image"}),
    "pool": (["siglip"], {"merger": "pool", "max_tokens": 9}),
    "native merger": (["vit"], {"merger": "native", "max_tokens": 9, "deepstack": [0, 1]}),
    "resampler": (["dinov3"], {"merger": "resampler", "merger_options": {"queries": 7, "heads": 4}}),
    "resampler of N=13": (["stripes"], {"merger": "resampler", "merger_options": {"queries": 5, "heads": 4}}),
    "deepstack": (["dinov2"], {"deepstack": [0, 2]}),
    "second-last layer": (["clip"], {"feature_layer": -2}),
    "all tokens": (["dinov2_with_registers"], {"feature_select": "all"}),
    "fixed size": (["dinov2"], {"layout": "image"}),
    "computing": (["computing"], {}),
    "batch norm": (["normed"], {"merger": "waving", "input_norm": True}),
    "joined": (["dinov2", "siglip"], {}),
    "joined, other patches": (["dinov2", "vit"], {"merger": "pixel_shuffle", "max_tokens": 4}),
    "joined, fixed": (["vit", "stripes9"], {"layout": "image"}),
}


def build(case: str, base: Path, encoders: dict[str, Path], **more: Any) -> tuple[Any, Any]:
    names, options = CASES[case]
    options = options | more
    if names[-1] == "stripes9":  # nine tokens, as many as the other gives
        names, options = [names[0], "nine"], options
    return swap(base, [str(encoders.get(name, name)) for name in names], **options)


@pytest.fixture(scope="module")
def swapped(base, encoders):
    made: dict[str, tuple[Any, Any]] = {}

    def get(case: str) -> tuple[Any, Any]:
        if case not in made:
            made[case] = build(case, base, encoders)
        return made[case]

    return get


@pytest.fixture(scope="module")
def elsewhere(swapped, tmp_path_factory):
    """What each saved model says in a fresh process."""
    home = tmp_path_factory.mktemp("saved")
    folders = {case: home / str(number) for number, case in enumerate(CASES)}
    for case, folder in folders.items():
        save(*swapped(case), folder)
    command = [sys.executable, str(HERE / "reload.py"), str(HERE / "stripes.py"), *map(str, folders.values())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    return {case: (folder, found[str(folder)]) for case, folder in folders.items()}


@pytest.mark.parametrize("case", CASES)
def test_reloaded_in_a_fresh_process_to_the_last_bit(case, swapped, elsewhere):
    folder, found = elsewhere[case]
    assert found == said(*swapped(case), SIZES)
    assert all(check.ok for check in verify(folder))


@pytest.mark.parametrize("case", CASES)
def test_tokens_are_as_many_as_placeholders(case, swapped):
    model, processor = swapped(case)
    config, merge = model.config.vision_config, model.config.vision_config.spatial_merge_size
    inputs = library_inputs(processor)
    placeholders = int((inputs["mm_token_type_ids"] == 1).sum())
    assert int(inputs["image_grid_thw"].prod(-1).sum()) // merge**2 == placeholders
    with torch.no_grad():
        out = model.model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
    assert out.pooler_output.shape == (placeholders, model.config.text_config.hidden_size)
    assert len(out.deepstack_features) == len(config.deepstack_visual_indexes)
    # our own encoding of the same pictures counts alike, without pixels too
    sample = encoded(processor)
    assert int((sample.types == 1).sum()) == placeholders
    assert length(chat(SIZES), processor) == len(sample)


@pytest.mark.parametrize("case", CASES)
def test_a_batch_equals_its_singles(case, swapped):
    model, processor = swapped(case)
    samples = [encoded(processor, sizes, seed, frames) for seed, (sizes, frames) in enumerate(MIXED)]
    merge = model.config.vision_config.spatial_merge_size
    alone = [hidden(model, [sample], merge) for sample in samples]
    for packing in (True, False):
        together = hidden(model, samples, merge, packing)
        for sample, one, many in zip(samples, alone, together, strict=True):
            assert torch.allclose(one[0], many, atol=1e-5 * max(1.0, float(one[0].abs().max()))), (sample.id, packing)


MIXED = [([(60, 90), (90, 60)], 0), ([], 0), ([(90, 60)], 4), ([], 3), ([(64, 64)], 0)]


@torch.no_grad()
def hidden(model, samples, merge, packing=True):
    """Hidden states of each sample."""
    batch = collate(samples, packing, merge, pad_id=0)
    states = model.model(**batch.inputs(), use_cache=False).last_hidden_state
    if packing:
        return list(states[0].split(batch.documents))
    return [row[:size] for row, size in zip(states, batch.documents, strict=True)]


@pytest.mark.parametrize("case", CASES)
def test_only_the_merger_gets_gradients_and_the_encoder_stays_the_same(case, swapped):
    model, processor = swapped(case)
    freeze(model)
    model.train()
    inputs = library_inputs(processor)
    visual = model.model.visual
    first, second = (visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]) for _ in range(2))
    assert torch.equal(first.pooler_output, second.pooler_output)  # no dropout in a frozen encoder
    model(**inputs).logits.square().mean().backward()
    learned = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    parts = ("model.visual.merger.", "model.visual.deepstack_merger_list.")
    assert learned == {name for name, _ in model.named_parameters() if name.startswith(parts)}
    assert all(bool(parameter.grad.abs().max() > 0) for parameter in visual.merger.parameters())
    model.eval()
    model.zero_grad(set_to_none=True)


@pytest.mark.parametrize("case", CASES)
def test_an_encoder_that_learns_gets_a_gradient_in_each_trainable_weight(case, swapped):
    model, processor = swapped(case)
    freeze(model, encoder=False)
    batch = collate([encoded(processor)], True, model.config.vision_config.spatial_merge_size, pad_id=0)
    model.model(**batch.inputs(), use_cache=False).last_hidden_state.square().mean().backward()
    encoder = model.model.visual.encoder
    trainable = {name: parameter for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    assert trainable
    assert all(parameter.grad is not None for parameter in trainable.values())
    if isinstance(encoder, NativeEncoder):
        assert len(trainable) == len(list(encoder.parameters()))
    freeze(model)
    model.zero_grad(set_to_none=True)


@pytest.mark.parametrize("written", ["bf16", "fp32"])
@pytest.mark.parametrize(
    "case", ["dinov2", "N=13", "batch norm", "resampler", "joined, other patches", "native", "timm_vit", "siglip2"]
)
def test_one_type_throughout(case, written, base, encoders, tmp_path):
    """Whatever the encoder and the swapped model are stored in, the model has the type that it is loaded in."""
    model, processor = build(case, base, encoders, precision=written)
    save(model, processor, tmp_path / "saved")
    inputs = library_inputs(processor)
    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        loaded, _ = load(tmp_path / "saved", precision)
        assert {value.dtype for value in loaded.state_dict().values() if value.is_floating_point()} == {dtype}
        with torch.no_grad():
            assert torch.isfinite(loaded(**inputs).logits).all()
    assert all(check.ok for check in verify(tmp_path / "saved", load(tmp_path / "saved", "bf16")[0]))


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_an_encoder_stored_in_16_bits(stored, base, encoders, tmp_path):
    from transformers import AutoModel

    folder = shutil.copytree(encoders["dinov2"], tmp_path / "half")
    AutoModel.from_pretrained(folder).to(stored).save_pretrained(folder)
    save(*swap(base, str(folder)), tmp_path / "saved")
    model, processor = load(tmp_path / "saved")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    with torch.no_grad():
        assert torch.isfinite(model(**library_inputs(processor)).logits).all()


def test_statistics_of_batch_norm_stay(base):
    """No checkpoint or adapter holds buffers: what training moved would be lost."""
    model, processor = swap(base, "normed")
    freeze(model, encoder=False)
    model.train()
    norm = model.model.visual.encoder.model.bn
    before = norm.running_mean.clone()
    model(**library_inputs(processor)).logits.square().mean().backward()
    assert torch.equal(norm.running_mean, before)
    assert norm.weight.grad is not None


@pytest.mark.parametrize("case", ["dinov2", "N=13", "deepstack", "resampler"])
def test_several_answers_at_once(case, swapped):
    """Beams, and questions with different numbers of pictures in one batch, say what each says alone."""
    model, processor = swapped(case)
    inputs = library_inputs(processor, [(60, 90), (90, 60)])
    options = {"max_new_tokens": 5, "do_sample": False}
    with torch.no_grad():
        beams = model.generate(**inputs, num_beams=3, num_return_sequences=3, **options)
        one = model.generate(**inputs, **options)
        scored = [mean_log_prob(model, inputs, row[None]) for row in (*beams, one[0])]
    assert len(beams) == 3
    assert scored[0] == pytest.approx(max(scored), abs=1e-5)  # the best beam comes first, and beats the greedy answer

    prompts = [encoded(processor, sizes, seed) for seed, sizes in enumerate(([(60, 90)], [], [(90, 60), (64, 64)]))]
    together = generate(model, processor, prompts, 5)
    assert together == [generate(model, processor, [prompt], 5)[0] for prompt in prompts]


def mean_log_prob(model, inputs, tokens) -> float:
    start = inputs["input_ids"].shape[1]
    types = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, tokens.shape[1] - start))
    changed = {**inputs, "input_ids": tokens, "mm_token_type_ids": types, "attention_mask": torch.ones_like(tokens)}
    logits = model(**changed).logits[0, start - 1 : -1].log_softmax(-1)
    return float(logits.gather(-1, tokens[0, start:, None]).mean())


def test_grids_of_the_tiles_are_those_of_the_pictures(swapped):
    inputs = library_inputs(swapped("1x11")[1], [(88, 8)])
    assert inputs["image_grid_thw"].tolist() == [[1, 1, 11]]
    inputs = library_inputs(swapped("3x5")[1], [(40, 24)])
    assert inputs["image_grid_thw"].tolist() == [[1, 3, 5]]
    with torch.no_grad():
        assert torch.isfinite(swapped("3x5")[0](**inputs).logits).all()


def test_merger_weights_are_those_of_the_seed(base, encoders):
    def weights(seed):
        return swap(base, str(encoders["dinov2"]), seed=seed)[0].model.visual.merger.proj.weight

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


def test_features_are_those_of_the_encoder_s_own_pipeline(base, encoders):
    """Patches that the processor wrote, folded back, are the picture that the encoder's own preprocessing makes."""
    from transformers import AutoModel, BitImageProcessor

    model, processor = swap(base, str(encoders["dinov2"]), layout="patches")
    settings = json.loads((encoders["dinov2"] / "preprocessor_config.json").read_text())
    from samples import picture

    image = picture((42, 42))
    own = BitImageProcessor(**settings, do_resize=False, do_center_crop=False)([image], return_tensors="pt")
    alone = AutoModel.from_pretrained(encoders["dinov2"])
    with torch.no_grad():
        expected = alone(own["pixel_values"]).last_hidden_state[:, 1:]
        done = processor.image_processor([image], return_tensors="pt")
        pictures = next(model.model.visual._pictures(done["pixel_values"], [(3, 3)]))[1]
        found = model.model.visual.encoder(pictures)[0]
    assert np.allclose(pictures, own["pixel_values"], atol=1e-5)
    assert torch.allclose(found, expected, atol=1e-4)
