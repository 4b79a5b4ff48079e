"""Opening what other tools left behind: folders of peft, the Trainer, Unsloth, ms-swift, LLaMA-Factory, and hub ids."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from command import qvl_sft
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from qvl_core.qwen3vl.quantize import is_quantized
from qvl_core.qwen3vl.tiny import DEFAULT_TEXTS, tiny, tiny_processor
from qvl_core.qwen3vl.trained import base_of
from qvl_core.recipe.blocks import Model
from qvl_sft import Chat, load_trained
from qvl_sft.export import export

IDS = torch.tensor([[1, 2, 3, 4]])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def foreign(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """An adapter as plain peft writes it, without a processor, and what it says."""
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
    torch.manual_seed(3)  # A is drawn as well
    model = get_peft_model(AutoModelForImageTextToText.from_pretrained(base), config)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.5)
    folder = tmp_path_factory.mktemp("foreign") / "adapter"
    model.save_pretrained(folder)
    return folder, says(model.eval())


def says(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=IDS).logits
    return logits


def changed(folder: Path, to: Path, **settings: Any) -> Path:
    """A copy of an adapter with other settings."""
    shutil.copytree(folder, to)
    file = to / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(config | settings), encoding="utf-8")
    return to


def test_a_plain_peft_folder(foreign: tuple[Path, torch.Tensor], base: Path) -> None:
    folder, expected = foreign
    model, processor = load_trained(str(folder))
    model.set_attn_implementation("sdpa")
    assert (says(model) - expected).abs().max() < 1e-5
    assert (says(load_trained(str(base))[0]) - expected).norm() > expected.norm()  # it does something
    assert processor.image_processor is not None  # the base's
    assert Chat(model, processor).ask("Hello", max_new_tokens=1) is not None


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_an_adapter_beside_a_base_in_fewer_bits(foreign: tuple[Path, torch.Tensor], kind: str) -> None:
    folder, expected = foreign
    model, _ = load_trained(str(folder), quantization=kind)
    assert model.quantized.kind == kind
    model.set_attn_implementation("sdpa")
    far = (says(model) - expected).norm() / expected.norm()
    assert 0 < far < {"nf4": 0.4, "int8": 0.06}[kind]  # without the adapter it is above 1


def test_an_adapter_on_a_base_that_is_stored_in_four_bits(
    foreign: tuple[Path, torch.Tensor], base: Path, tmp_path: Path
) -> None:
    export(str(base), tmp_path / "nf4", quantize="nf4")
    folder, expected = foreign
    model, _ = load_trained(str(folder), str(tmp_path / "nf4"))
    assert is_quantized(model)
    assert 0 < (says(model) - expected).norm() < 0.3 * expected.norm()


def test_a_checkpoint_of_the_trainer(foreign: tuple[Path, torch.Tensor], base: Path, tmp_path: Path) -> None:
    folder, expected = foreign
    saved = changed(folder, tmp_path / "output/checkpoint-10")
    for name in ("trainer_state.json", "optimizer.pt", "training_args.bin"):
        (saved / name).touch()
    model, _ = load_trained(str(saved))
    model.set_attn_implementation("sdpa")
    assert (says(model) - expected).abs().max() < 1e-5
    done = qvl_sft("chat", str(tmp_path / "output"), "Hello")
    assert (done.code, done.out) == (2, "")
    assert f"holds the checkpoints of a trainer; name one, such as {saved}." in done.err


def test_a_tokenizer_alone_is_no_processor(foreign: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    """TRL and Unsloth save it beside the adapter; LLaMA-Factory saves the processor too, which is then taken."""
    folder = changed(foreign[0], tmp_path / "adapter")
    other = tiny_processor([*DEFAULT_TEXTS, "zebra zebra zebra"])
    other.image_processor.size = type(other.image_processor.size)(shortest_edge=4096, longest_edge=16384)
    other.tokenizer.save_pretrained(folder)
    assert load_trained(str(folder))[1].image_processor.size["longest_edge"] == 65536
    other.save_pretrained(folder)
    assert load_trained(str(folder))[1].image_processor.size["longest_edge"] == 16384


@pytest.mark.parametrize("name", ["Qwen3-VL-4B-Instruct-unsloth-bnb-4bit", "Qwen3-VL-4B-Instruct-bnb-4bit"])
def test_a_four_bit_copy_stands_for_its_original(
    foreign: tuple[Path, torch.Tensor], tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    pattern = r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:q_proj|v_proj|down_proj).*?)"
    folder = changed(
        foreign[0], tmp_path / "adapter", base_model_name_or_path=f"unsloth/{name}", target_modules=pattern
    )
    assert base_of(folder) == Model(name="Qwen/Qwen3-VL-4B-Instruct")
    assert f"its base unsloth/{name} is a 4-bit copy of Qwen/Qwen3-VL-4B-Instruct, which is taken" in caplog.text


def test_unsloths_adapter_merges_into_the_base_that_is_given(
    foreign: tuple[Path, torch.Tensor], base: Path, tmp_path: Path
) -> None:
    folder, expected = foreign
    pattern = r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:q_proj|v_proj|down_proj).*?)"
    named = "unsloth/Qwen3-VL-4B-Instruct-unsloth-bnb-4bit"
    saved = changed(folder, tmp_path / "adapter", base_model_name_or_path=named, target_modules=pattern)
    done = qvl_sft("merge", str(saved), "--base", str(base), "--out", str(tmp_path / "merged"))
    assert done.code == 0, done.err
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged").eval()
    assert (says(merged) - expected).abs().max() < 1e-5
    assert (tmp_path / "merged/preprocessor_config.json").is_file()


def test_an_adapter_on_the_hub(
    foreign: tuple[Path, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The download is replaced; what follows it is not."""
    folder, expected = foreign
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: {"me/adapter": folder}[name])
    model, _ = load_trained("me/adapter")
    model.set_attn_implementation("sdpa")
    assert (says(model) - expected).abs().max() < 1e-5


def test_what_does_not_fit_is_one_sentence(
    foreign: tuple[Path, torch.Tensor], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = foreign[0]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def refused(adapter: Path, *sentences: str) -> None:
        done = qvl_sft("merge", str(adapter), "--out", str(tmp_path / "out"))
        assert done.code == 2, done
        assert len(done.err.strip().splitlines()) == 1
        assert all(sentence in done.err for sentence in sentences), done.err
        assert not (tmp_path / "out").exists()

    narrow = changed(folder, tmp_path / "narrow")
    values = load_file(narrow / "adapter_model.safetensors")
    cut = {key: value[..., :-1].contiguous() for key, value in values.items()}
    save_file(cut, narrow / "adapter_model.safetensors")
    refused(narrow, "use the base")
    unknown = changed(folder, tmp_path / "unknown")
    save_file(values | {"base_model.model.model.extra.weight": IDS}, unknown / "adapter_model.safetensors")
    refused(unknown, "extra.weight is not in this model; use the base that it was trained on.")
    refused(changed(folder, tmp_path / "no", base_model_name_or_path=None), "names no base model; give it with --base")
    gone = changed(folder, tmp_path / "gone", base_model_name_or_path="/gone/base")
    refused(gone, "its base /gone/base is not there; give it with --base.")
    (gone / "adapter_config.json").write_text('{"r": ', encoding="utf-8")
    refused(gone, "adapter_config.json: is not readable as JSON; copy it again.")
