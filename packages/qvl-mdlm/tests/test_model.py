"""The model sees both ways whatever is done to it, where its pattern says so, and its weights are the base's."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asking import clip, encoded
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    Qwen3Config,
    Qwen3VLForConditionalGeneration,
)

from qvl_core.errors import BadInput, QVLError
from qvl_core.qwen3vl import attention
from qvl_core.qwen3vl.batch import Batch
from qvl_core.qwen3vl.encoded import Encoded
from qvl_core.qwen3vl.load import load_model
from qvl_core.qwen3vl.recompute import recompute_layers
from qvl_core.recipe.blocks import Model
from qvl_core.training.samples import Place
from qvl_data.chat import encode
from qvl_mdlm.batch import Corruption, PatternBatch, collate
from qvl_mdlm.layout import shape_of
from qvl_mdlm.model import Qwen3VLForMaskedLM, Qwen3VLMoeForMaskedLM, configured, freeze
from qvl_mdlm.noise import Noise
from qvl_mdlm.probe import check_sees_both_ways
from qvl_mdlm.recipe import Diffusion
from qvl_vision import save, swap
from qvl_vision.tiny import tiny_encoder

LENGTH, PADDING = 10, 3
PATTERNS: dict[str, dict[str, Any]] = {
    "full": {},
    "prefix": {"attention": "prefix"},
    "block": {"attention": "block", "block_size": 3},
}


def attend(model: Any, how: str) -> Any:
    """The model with another implementation of attention."""
    if how == "packed":
        attention.use(model)
    else:
        model.set_attn_implementation(how)
    return model


@torch.no_grad()
def moved(model: Any, padding: str = "none") -> list[bool]:
    """Whether each of LENGTH tokens' logits depend on the last of them; with padding left or right of them."""
    ids = torch.arange(20, 20 + LENGTH)
    texts = torch.stack([ids, torch.cat([ids[:-1], ids[:1]])])
    mask = torch.ones_like(texts)
    pads = torch.zeros(2, PADDING, dtype=torch.long)
    if padding == "left":
        texts, mask = torch.cat([pads, texts], 1), torch.cat([pads, mask], 1)
    elif padding == "right":
        texts, mask = torch.cat([texts, pads], 1), torch.cat([mask, pads], 1)
    options = {} if padding == "none" else {"attention_mask": mask}
    logits = model(input_ids=texts, **options).logits[mask.bool()].view(2, LENGTH, -1)
    return (logits[0] != logits[1]).any(-1).tolist()


@pytest.fixture(scope="module")
def models(masked: Callable[..., Any]) -> dict[str, Any]:
    return {name: masked(**options) for name, options in PATTERNS.items()}


@pytest.fixture(scope="module")
def folder(masked: Callable[..., Any], processor: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted checkpoint, as a run leaves it."""
    path = tmp_path_factory.mktemp("converted") / "model"
    masked().float().save_pretrained(path)
    processor.save_pretrained(path)
    return path


# Both ways


@pytest.mark.parametrize("how", ["sdpa", "eager", "packed"])
def test_a_later_token_moves_all_earlier_ones(models: dict[str, Any], base: Path, how: str) -> None:
    try:
        for padding in ("none", "left", "right"):
            assert all(moved(attend(models["full"], how), padding)), padding
    finally:
        attend(models["full"], "sdpa")
    causal = attend(Qwen3VLForConditionalGeneration.from_pretrained(base).eval(), how)
    assert moved(causal) == [False] * (LENGTH - 1) + [True]


OPENED: dict[str, Callable[[Path], Any]] = {
    "own class": Qwen3VLForMaskedLM.from_pretrained,
    "AutoModelForMaskedLM": AutoModelForMaskedLM.from_pretrained,
    "AutoModelForImageTextToText": AutoModelForImageTextToText.from_pretrained,
    "load_model": lambda folder: load_model(
        Model(name=str(folder)),
        precision="fp32",
        device="cpu",
        configure=partial(configured, diffusion=Diffusion()),
    )[0],
}


@pytest.mark.parametrize("opened", OPENED.values(), ids=OPENED)
def test_it_sees_both_ways_after_saving_and_loading(folder: Path, opened: Callable[[Path], Any]) -> None:
    model = opened(folder).eval()
    assert type(model) is Qwen3VLForMaskedLM
    assert (model.config.pattern, model.config.mask_token_id) == (
        "full",
        AutoConfig.from_pretrained(folder).mask_token_id,
    )
    for padding in ("none", "left", "right"):
        assert all(moved(model, padding))


def test_it_sees_both_ways_under_peft(base: Path, tmp_path: Path) -> None:
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", bias="none")
    model = get_peft_model(Qwen3VLForMaskedLM.from_pretrained(base), config).eval()
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(Qwen3VLForMaskedLM.from_pretrained(base), tmp_path).eval()
    ids = torch.arange(20, 30)[None]
    assert torch.equal(model(input_ids=ids).logits, again(input_ids=ids).logits)
    for one in (model, again, again.merge_and_unload()):
        for padding in ("none", "left", "right"):
            assert all(moved(one, padding))


@pytest.mark.parametrize("checkpointing", ["none", "library", "recompute"])
def test_gradients_flow_both_ways_in_training(base: Path, checkpointing: str) -> None:
    model = Qwen3VLForMaskedLM.from_pretrained(base, dtype=torch.float64).train()
    if checkpointing == "library":
        model.gradient_checkpointing_enable()
    elif checkpointing == "recompute":
        recompute_layers(model, True)
    embeds = model.get_input_embeddings()(torch.arange(20, 30)[None]).detach().requires_grad_()
    logits = model(inputs_embeds=embeds).logits
    logits[0, 0].square().sum().backward()
    assert embeds.grad is not None
    assert (embeds.grad[0].abs().sum(-1) > 0).all()
    if checkpointing != "none":
        kept = Qwen3VLForMaskedLM.from_pretrained(base, dtype=torch.float64).train()
        again = embeds.detach().clone().requires_grad_()
        kept(inputs_embeds=again).logits[0, 0].square().sum().backward()
        assert torch.equal(again.grad, embeds.grad)


# Patterns


def corrupted(model: Any, processor: Any, samples: list[Encoded], pad_to: int | None = 4) -> list[Encoded]:
    corruption = Corruption(shape_of(model.config, processor.tokenizer, pad_to), Noise(), model.config.mask_token_id)
    return [corruption(sample, 0, Place(0, slot, len(samples))) for slot, sample in enumerate(samples)]


def batch_of(model: Any, processor: Any, samples: list[Encoded], packing: bool) -> Batch:
    merge, pad = processor.image_processor.merge_size, processor.tokenizer.pad_token_id
    return collate(samples, packing, model.config.pattern != "full", merge, pad)


@torch.no_grad()
@pytest.mark.parametrize("name", ["prefix", "block"])
def test_exactly_what_must_not_move_does_not(models: dict[str, Any], processor: Any, name: str) -> None:
    model = models[name]
    (sample,) = corrupted(model, processor, [encoded(processor)[2]])  # two turns, no picture
    batch = batch_of(model, processor, [sample], packing=False)
    assert isinstance(batch, PatternBatch)
    inputs, count = batch.inputs(), len(sample)
    del inputs["mm_token_type_ids"]
    rows = batch.input_ids.repeat(count + 1, 1)
    rows[range(count), range(count)] += 1  # row j: token j is another
    inputs |= {
        "input_ids": rows,
        "position_ids": batch.position_ids.repeat(1, count + 1, 1),
        "attention_mask": inputs["attention_mask"].repeat(count + 1, 1, 1, 1),
    }
    logits = model(**inputs).logits
    depends = (
        ((logits[:-1] - logits[-1]).abs() > 1e-12).any(-1).T.numpy()
    )  # (T, T): does the first's logit depend on the second
    sees = np.zeros((count, count), bool)
    for q in range(count):
        for k in range(count):
            earlier = sample.clean[k] and sample.levels[k] < sample.levels[q]
            sees[q, k] = earlier or (sample.levels[q] == sample.levels[k] and sample.clean[q] == sample.clean[k])
    through = np.linalg.matrix_power(sees.astype(int), len(model.model.language_model.layers)) > 0
    np.testing.assert_array_equal(depends, through)
    assert not depends[np.ix_(sample.clean, ~sample.clean)].any()  # what is read does not depend on what is written
    assert not sees.all()


@pytest.fixture(scope="module")
def many(processor: Any) -> list[Encoded]:
    return [*encoded(processor), encode(clip(), processor)]


@torch.no_grad()
def states(model: Any, batch: Batch) -> list[Tensor]:
    """The hidden states (L, D) of each sample."""
    hidden = model.model(**batch.inputs(), use_cache=False).last_hidden_state
    if batch.attention_mask is None:
        return list(hidden[0].split(batch.documents))
    return [row[:length] for row, length in zip(hidden, batch.documents, strict=True)]


def differences(model: Any, processor: Any, samples: list[Encoded]) -> dict[str, float]:
    """How far each implementation is from SDPA on singles, packed and padded."""
    noisy = corrupted(model, processor, samples)
    attend(model, "sdpa")
    singles = [states(model, batch_of(model, processor, [sample], packing=False))[0] for sample in noisy]
    found = {}
    for how in ("sdpa", "eager", "packed"):
        for packing in (False, True):
            if packing and how != "packed" and model.config.pattern == "full":
                continue  # refused by the recipe: nothing would tell the documents apart
            others = states(attend(model, how), batch_of(model, processor, noisy, packing))
            pairs = zip(others, singles, strict=True)
            found[f"{how} {packing}"] = max(float((other - one).abs().max()) for other, one in pairs)
    attend(model, "sdpa")
    return found


@pytest.mark.parametrize("name", PATTERNS)
def test_attentions_agree_packed_and_padded_with_pictures_and_a_clip(
    models: dict[str, Any], processor: Any, many: list[Encoded], name: str
) -> None:
    found = differences(models[name], processor, many)
    assert len(found) == (4 if name == "full" else 6)
    for name_of, difference in found.items():  # the library's eager softmax is of fp32 in any model
        assert difference < (1e-5 if "eager" in name_of else 1e-9), found


@pytest.mark.parametrize("name", PATTERNS)
def test_attentions_agree_in_fp32(base: Path, processor: Any, many: list[Encoded], name: str) -> None:
    model = Qwen3VLForMaskedLM.from_pretrained(base, **PATTERNS[name]).eval()
    found = differences(model, processor, many)
    assert max(found.values()) < 1e-5, found


def test_a_pattern_without_its_mask_is_refused(models: dict[str, Any]) -> None:
    for name in ("prefix", "block"):
        for options in ({}, {"attention_mask": torch.ones(1, 4)}):
            with pytest.raises(BadInput, match=f"attends by {name}: give the"):
                models[name](input_ids=torch.ones(1, 4, dtype=torch.long), **options)


# Weights


def test_the_weights_are_the_bases_to_the_byte(base: Path, folder: Path) -> None:
    one, other = (load_file(path / "model.safetensors") for path in (base, folder))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one)


def test_freezing_says_how_much(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "qvl_mdlm"):
        model = Qwen3VLForMaskedLM.from_pretrained(base, freeze_vision=True, freeze_merger=True)
    counts = {True: 0, False: 0}
    for name, parameter in model.named_parameters():
        merging = ".merger." in name or ".deepstack_merger_list." in name
        assert parameter.requires_grad != (".visual." in name)
        if ".visual." in name:
            counts[merging] += parameter.numel()
    assert [record.getMessage() for record in caplog.records] == [
        f"froze vision: {counts[False]:,} parameters",
        f"froze merger and deepstack_mergers: {counts[True]:,} parameters",
    ]


def test_freezing_what_is_not_there_is_an_error(models: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="no parameters in lm_head; name other groups"):  # tied to embed
        freeze(models["full"], ("lm_head",))


# Other models


@pytest.fixture(scope="module")
def swapped(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a tiny DINOv2 for its tower."""
    place = tmp_path_factory.mktemp("swapped")
    return save(*swap(base, str(tiny_encoder(place / "encoder"))), place / "base")


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("kind", ["experts", "swapped"])
def test_experts_and_other_towers(
    kind: str, pattern: str, request: pytest.FixtureRequest, processor: Any, tmp_path: Path
) -> None:
    start: Path = request.getfixturevalue(kind)
    precise = kind == "swapped"  # the library's experts have no fp64
    dtype, tolerance = (torch.float64, 1e-9) if precise else (torch.float32, 1e-5)
    model = Qwen3VLForMaskedLM.from_pretrained(start, dtype=dtype, **PATTERNS[pattern]).eval()
    assert type(model) is (Qwen3VLMoeForMaskedLM if kind == "experts" else Qwen3VLForMaskedLM)
    if pattern == "full":
        for padding in ("none", "left", "right"):
            assert all(moved(model, padding))
    processor = load_model(Model(name=str(start)), precision="fp32", device="cpu")[1]
    noisy = corrupted(model, processor, encoded(processor))
    packed = states(attend(model, "packed"), batch_of(model, processor, noisy, packing=True))
    padded = states(attend(model, "sdpa"), batch_of(model, processor, noisy, packing=False))
    assert max(float((a - b).abs().max()) for a, b in zip(packed, padded, strict=True)) < tolerance
    model.float().save_pretrained(tmp_path)
    one, other = (load_file(path / "model.safetensors") for path in (start, tmp_path))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    again = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert (type(again), again.config.pattern) == (type(model), pattern)
    check_sees_both_ways(again)


# The probe


def causal(model: Any) -> None:
    model.config.text_config.is_causal = True


def causal_layers(model: Any) -> None:
    """As a library that tells the masks and forgets the layers."""
    for layer in model.model.language_model.layers:
        layer.self_attn.register_forward_pre_hook(
            lambda _, arguments, options: (arguments, options | {"is_causal": True}), with_kwargs=True
        )


def causal_masks(model: Any) -> None:
    """As a library that tells the layers and forgets the masks: only padded rows have one."""

    def narrow(_: Any, arguments: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        mask = options["attention_mask"]
        return arguments, options if mask is None else {**options, "attention_mask": mask.tril()}

    for layer in model.model.language_model.layers:
        layer.self_attn.register_forward_pre_hook(narrow, with_kwargs=True)


CAUSAL = [
    *(("full", change) for change in (causal, causal_layers, causal_masks)),
    ("prefix", causal_masks),
    ("block", causal_masks),
]


@pytest.mark.parametrize(("name", "change"), CAUSAL)
def test_a_model_that_stayed_causal_is_refused_when_it_is_loaded(
    base: Path, name: str, change: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Qwen3VLForMaskedLM.__init__

    def made_causal(self: Any, config: Any) -> None:
        made(self, config)
        change(self)

    monkeypatch.setattr(Qwen3VLForMaskedLM, "__init__", made_causal)
    with pytest.raises(QVLError, match=f"attention {name}: the last of 8 tokens moved tokens"):
        Qwen3VLForMaskedLM.from_pretrained(base, **PATTERNS[name])


# What cannot be meant


def settings(config: Any) -> dict[str, int]:
    """Ids that the mask token may not be, by what the message calls them."""
    return {
        "the image token": config.image_token_id,
        "the video token": config.video_token_id,
        "the start of a picture": config.vision_start_token_id,
        "the end of a picture": config.vision_end_token_id,
    }


def test_mask_tokens_that_are_others(base: Path, processor: Any) -> None:
    tokenizer = processor.tokenizer
    taken = settings(AutoConfig.from_pretrained(base))
    taken |= {"the pad token": tokenizer.pad_token_id, "the end token": tokenizer.eos_token_id}
    taken["the filler of pictures"] = tokenizer.convert_tokens_to_ids("<|vision_pad|>")
    taken["the start of a turn"] = tokenizer.convert_tokens_to_ids("<|im_start|>")
    for what, token in taken.items():
        with pytest.raises(BadInput, match=f"mask_token_id {token}: is {what}; leave it out to take the first spare"):
            Qwen3VLForMaskedLM.from_pretrained(base, mask_token_id=token)


def test_too_few_rows(base: Path, processor: Any, tmp_path: Path) -> None:
    model = Qwen3VLForConditionalGeneration.from_pretrained(base)
    model.resize_token_embeddings(len(processor.tokenizer))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    count = len(processor.tokenizer)
    with pytest.raises(
        BadInput, match=f"mask_token_id {count}: the embedding has {count} rows and none to spare; give"
    ):
        Qwen3VLForMaskedLM.from_pretrained(tmp_path)
    unused = processor.tokenizer.convert_tokens_to_ids("<|repo_name|>")
    assert Qwen3VLForMaskedLM.from_pretrained(tmp_path, mask_token_id=unused).config.mask_token_id == unused


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"attention": "causal"}, "attention 'causal': must be one of full, prefix, block"),
        ({"attention": "block"}, "give both or neither"),
        ({"block_size": 4}, "give both or neither"),
        ({"attention": "prefix", "block_size": 4}, "give both or neither"),
        ({"attention": "block", "block_size": 0}, "block_size 0: must be at least 1 token"),
        ({"mask_token_id": -1}, "mask_token_id -1: the embedding has 576 rows; leave it out to take the first spare"),
        ({"mask_token_id": 900}, "mask_token_id 900: the embedding has 576 rows; leave it out"),
    ],
)
def test_settings_that_cannot_be_meant(base: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        Qwen3VLForMaskedLM.from_pretrained(base, **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"attention": "prefix"}, "attention prefix: the checkpoint was trained with full; give that, or convert"),
        ({"attention": "block", "block_size": 4}, "attention block: the checkpoint was trained with full"),
        ({"mask_token_id": 7}, "mask_token_id 7: the checkpoint was trained with"),
    ],
)
def test_other_settings_than_those_of_training(folder: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        Qwen3VLForMaskedLM.from_pretrained(folder, **options)
    assert Qwen3VLForMaskedLM.from_pretrained(folder, attention="full").config.pattern == "full"


def test_what_is_no_model(processor: Any, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(BadInput, match=r"no config.json there, so it is no model; open adapters by open_masked"):
        Qwen3VLForMaskedLM.from_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    Qwen3Config().save_pretrained(tmp_path)
    with pytest.raises(BadInput, match=r"of the type qwen3 is not Qwen3-VL \(qwen3_vl, qwen3_vl_moe\); give one"):
        Qwen3VLForMaskedLM.from_pretrained(tmp_path)


# It is not taken for an autoregressive model


def test_core_opens_it_only_for_those_who_know(folder: Path) -> None:
    with pytest.raises(BadInput, match="attends both ways and writes by denoising; use qvl-mdlm"):
        load_model(Model(name=str(folder)), precision="fp32", device="cpu")


def test_the_library_does_not_generate_from_left_to_right(folder: Path) -> None:
    with pytest.raises(BadInput, match="writes by denoising"):
        AutoModelForImageTextToText.from_pretrained(folder).generate(torch.ones(1, 4, dtype=torch.long))
