"""Exported folders: what stock transformers, vLLM and llama.cpp find there, and what is refused."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command import files, qvl_sft
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from qvl_core.qwen3vl.tiny import tiny
from qvl_core.recipe.blocks import Model
from qvl_sft import load_trained
from qvl_sft.card import card
from qvl_sft.export import export
from qvl_vision.tiny import tiny as tiny_swapped

# A process that knows nothing of qvl: what the folders say to one picture.
STRANGER = """
import sys, torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, AutoProcessor
out, picture, *folders = sys.argv[1:]
logits = {}
for folder in folders:
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    content = [{"type": "image", "image": Image.open(picture)}, {"type": "text", "text": "Which digit is this?"}]
    inputs = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True,
                                           tokenize=True, return_dict=True, return_tensors="pt")
    with torch.no_grad():
        logits[folder] = model(**inputs).logits
    model.generate(**inputs, max_new_tokens=2)
assert not [name for name in sys.modules if name.startswith("qvl")]
save_file(logits, out)
"""

# What llama.cpp's converter (conversion/qwen3vl.py, gguf-py/gguf/tensor_mapping.py, November 2026) has a name for.
BLOCK = r"(norm1|norm2|attn\.qkv|attn\.proj|mlp\.linear_fc1|mlp\.linear_fc2)\.(weight|bias)"
LAYER = (
    r"(input_layernorm|post_attention_layernorm|self_attn\.[qkvo]_proj|self_attn\.[qk]_norm|"
    r"mlp\.(gate|up|down)_proj)\.weight"
)
MERGER = r"(norm|linear_fc1|linear_fc2)\.(weight|bias)"
LLAMA_CPP = re.compile(
    rf"model\.visual\.(patch_embed\.proj\.(weight|bias)|pos_embed\.weight|blocks\.\d+\.{BLOCK}|merger\.{MERGER}|"
    rf"deepstack_merger_list\.\d+\.{MERGER})|model\.language_model\.(embed_tokens\.weight|norm\.weight|"
    rf"layers\.\d+\.{LAYER})|lm_head\.weight"
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with the sampling defaults of the released ones."""
    folder = tiny(tmp_path_factory.mktemp("base") / "tiny")
    settings = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    settings |= {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.0}
    (folder / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of LoRA on the language model, whose rate makes them count, at a budget of 16 tokens a picture."""
    out = tmp_path_factory.mktemp("run") / "mine"
    digits = data / "digits"
    done = qvl_sft(
        "train", "tiny_lora", f"model.name={base}", f"data={{train: {digits}, test: {{source: {digits}, take: 4}}}}",
        "tune={llm: {mode: lora, rank: 4, alpha: 8, lr: 0.05}}", "train.steps=2", "batch={size: 4, max_length: 512}",
        "media.image_tokens=16", "--out", str(out),
    )  # fmt: skip
    assert done.code == 0, done.err
    return out


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("picture") / "large.png"
    Image.radial_gradient("L").resize((300, 200)).convert("RGB").save(file)
    return file


@pytest.fixture(scope="module")
def folders(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    parent = tmp_path_factory.mktemp("exported")
    found = {}
    for name, options in (("hf", ()), ("nf4", ("--quantize", "nf4"))):
        found[name] = parent / name
        done = qvl_sft("export", str(run), "--out", str(found[name]), *options)
        assert done.code == 0, done.err
    assert sorted(path.name for path in parent.iterdir()) == ["hf", "nf4"]  # and no leftovers
    return found


@pytest.fixture(scope="module")
def said(folders: dict[str, Path], picture: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The logits that a stranger's process computes from each folder."""
    out = tmp_path_factory.mktemp("logits") / "logits.safetensors"
    subprocess.run([sys.executable, "-c", STRANGER, out, picture, *folders.values()], check=True)
    values = load_file(out)
    return {name: values[str(folder)] for name, folder in folders.items()}


def logits(source: Path, picture: Path) -> torch.Tensor:
    """The same question to what load_trained opens, asked with its processor."""
    model, processor = load_trained(str(source))
    content = [{"type": "image", "image": Image.open(picture)}, {"type": "text", "text": "Which digit is this?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip
    model.set_attn_implementation("sdpa")
    with torch.inference_mode():
        found: torch.Tensor = model(**inputs).logits
    return found


def test_stock_transformers_says_what_the_run_says(
    run: Path, base: Path, said: dict[str, torch.Tensor], picture: Path
) -> None:
    ours = logits(run, picture)
    assert said["hf"].shape == ours.shape  # the picture took as many tokens: the budget of the training
    assert (said["hf"] - ours).abs().max() < 1e-5 * ours.abs().max()
    assert ours.shape[1] < logits(base, picture).shape[1]  # the base's own budget is larger


def test_the_folder_is_complete(folders: dict[str, Path]) -> None:
    for folder in folders.values():
        assert set(files(folder)) == {
            "README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
            "preprocessor_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json",
            "video_preprocessor_config.json",
        }  # fmt: skip
        own = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
        assert (own["do_sample"], own["temperature"], own["top_p"], own["top_k"]) == (True, 0.7, 0.8, 20)
        for kind, file in (("image", "preprocessor_config.json"), ("video", "video_preprocessor_config.json")):
            together = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))
            alone = json.loads((folder / file).read_text(encoding="utf-8"))
            assert alone == together[f"{kind}_processor"]
        text = json.loads((folder / "config.json").read_text(encoding="utf-8"))["text_config"]
        assert text["rope_scaling"] | {"rope_theta": text["rope_theta"]} == text["rope_parameters"]
        assert text["tie_word_embeddings"] is True
    images = json.loads((folders["hf"] / "preprocessor_config.json").read_text(encoding="utf-8"))
    assert images["size"]["longest_edge"] == 16 * 32 * 32


def test_four_bits_leave_tower_and_head_alone(folders: dict[str, Path], said: dict[str, torch.Tensor]) -> None:
    config = json.loads((folders["nf4"] / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    assert (config["bnb_4bit_quant_type"], config["bnb_4bit_use_double_quant"]) == ("nf4", True)
    with safe_open(folders["nf4"] / "model.safetensors", framework="pt") as stored:
        packed = {key for key in stored.keys() if stored.get_slice(key).get_dtype() == "U8"}  # noqa: SIM118
    weights = {key for key in packed if key.endswith(".weight")}
    assert len(weights) == 3 * 7
    assert all(key.startswith("model.language_model.layers.") for key in packed)
    far = (said["nf4"] - said["hf"]).abs().max() / said["hf"].abs().max()
    assert 0.001 < far < 0.3  # changed, and still the same model


def test_the_card(folders: dict[str, Path], run: Path) -> None:
    text = (folders["hf"] / "README.md").read_text(encoding="utf-8")
    _, head, body = text.split("---\n", 2)
    assert yaml.safe_load(head)["library_name"] == "transformers"
    assert "rank: 4" in body
    assert "1 x digits" in body
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    assert f"| test exact match | {result['test_exact_match']:.4f} |" in body
    assert "The licence of `tiny` holds" in body
    assert str(run.parent) not in text  # no path of this machine
    assert "base_model" not in head  # a local folder's name is no hub id
    compile(body.split("```python\n")[1].split("```")[0], "card", "exec")


def test_the_card_names_a_run_and_not_its_final(tmp_path: Path) -> None:
    text = card("mine", tmp_path, Model(name=str(tmp_path / "runs/digits/final")), adapter=True, stock=True)
    assert "The licence of `digits` holds" in text
    assert "final" not in text


def test_merge_and_export_are_one(run: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    done = qvl_sft("merge", str(run), "--out", str(tmp_path / "hf"))
    assert done.code == 0, done.err
    assert files(tmp_path / "hf") == files(folders["hf"])
    for name in files(tmp_path / "hf"):
        assert (tmp_path / "hf" / name).read_bytes() == (folders["hf"] / name).read_bytes(), name


def test_llama_cpp_knows_every_tensor(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "for gguf"
    done = qvl_sft("export", str(run), "--to", "gguf", "--out", str(out))
    assert done.code == 0, done.err
    with safe_open(out / "model.safetensors", framework="pt") as stored:
        names = list(stored.keys())
    assert [name for name in names if not LLAMA_CPP.fullmatch(name)] == []
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["Qwen3VLForConditionalGeneration"]
    read = ("depth", "num_heads", "num_position_embeddings", "patch_size", "spatial_merge_size", "intermediate_size")
    assert {*read, "hidden_size", "deepstack_visual_indexes"} <= config["vision_config"].keys()
    images = json.loads((out / "preprocessor_config.json").read_text(encoding="utf-8"))
    assert {"image_mean", "image_std"} <= images.keys()
    script = (out / "commands.sh").read_text(encoding="utf-8")
    assert subprocess.run(["sh", "-n", out / "commands.sh"], check=False).returncode == 0
    assert "python convert_hf_to_gguf.py './for gguf' --mmproj --outtype f16 --outfile" in script
    assert "--image-min-tokens 4 --image-max-tokens 16" in script
    assert "llama-quantize" in done.out


def test_vllm(run: Path, tmp_path: Path) -> None:
    done = qvl_sft("export", str(run), "--to", "vllm", "--out", str(tmp_path / "mine"))
    assert done.code == 0, done.err
    limit = """--limit-mm-per-prompt '{"image": 4, "video": 1}'"""
    assert f"vllm serve ./mine --max-model-len 512 {limit}" in done.out
    config = json.loads((tmp_path / "mine/config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["Qwen3VLForConditionalGeneration"]  # as in vLLM's registry of models


def test_vllm_beside_its_base(run: Path, base: Path, tmp_path: Path) -> None:
    done = qvl_sft("export", str(run), "--to", "vllm", "--keep-adapter", "--out", str(tmp_path / "mine"))
    assert done.code == 0, done.err
    lora = "--enable-lora --lora-modules mine=./mine --max-lora-rank 8"
    assert f"vllm serve {base} {lora} --max-model-len 512" in done.out
    assert """--mm-processor-kwargs '{"size": {"shortest_edge": 4096, "longest_edge": 16384}}'""" in done.out
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "mine" / name).read_bytes() == (run / "final" / name).read_bytes()
    assert not (tmp_path / "mine/model.safetensors").exists()


@pytest.fixture
def changed(run: Path, tmp_path: Path) -> Callable[..., Path]:
    """The run's adapter with other settings or keys."""

    def change(settings: dict[str, Any], key: str | None = None) -> Path:
        shutil.copytree(run / "final", folder := tmp_path / "changed", dirs_exist_ok=True)
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        (folder / "adapter_config.json").write_text(json.dumps(config | settings), encoding="utf-8")
        if key:
            values = load_file(folder / "adapter_model.safetensors")
            save_file(values | {key: torch.zeros(4, 96)}, folder / "adapter_model.safetensors")
        return folder

    return change


@pytest.mark.parametrize(
    ("settings", "key", "reason"),
    [
        ({"modules_to_save": ["model.visual.merger"]}, None, "has modules that were trained in full"),
        ({"use_dora": True}, None, "is a DoRA adapter"),
        ({"rank_pattern": {"q_proj": 2}}, None, "has several ranks or alphas"),
        ({"r": 1024}, None, "has rank 1024, over 512"),
        ({}, "base_model.model.model.visual.blocks.0.attn.qkv.lora_A.weight", "adapts more than the language model"),
    ],
)
def test_what_vllm_cannot_serve_as_an_adapter(
    changed: Callable[..., Path], settings: dict[str, Any], key: str | None, reason: str, tmp_path: Path
) -> None:
    folder, out = changed(settings, key), tmp_path / "out"
    done = qvl_sft("export", str(folder), "--to", "vllm", "--keep-adapter", "--out", str(out))
    assert done.code == 2
    assert reason in done.err
    assert "which vLLM cannot serve as an adapter; leave out --keep-adapter." in done.err
    assert not out.exists()


def test_refusals(run: Path, base: Path, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "out")]
    for args, sentence in (
        ([str(base), "--keep-adapter"], "is no adapter (no adapter_config.json), so there is none to keep"),
        ([str(run), "--keep-adapter", "--to", "gguf"], "leave out --dtype, --quantize and --to gguf"),
        ([str(run), "--quantize", "nf4", "--to", "gguf"], "llama.cpp cannot read it and quantises by itself"),
        ([str(run), "--dtype", "fp8"], "--dtype fp8: choose one of"),
        (["tiny"], "qvl-sft tiny FOLDER"),
        (["nothing"], "there is no folder nothing"),
    ):
        done = qvl_sft("export", *args, *out)
        assert (done.code, sentence in done.err) == (2, True), (args, done.err)
        assert len(done.err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_swapped_tower_is_known_to_transformers_alone(tmp_path: Path) -> None:
    swapped = tmp_path / "swapped"
    tiny_swapped(swapped)
    for to in ("vllm", "gguf"):
        done = qvl_sft("export", str(swapped), "--to", to, "--out", str(tmp_path / "out"))
        assert done.code == 2
        assert "has a swapped vision tower, which neither vLLM nor llama.cpp knows" in done.err
        assert "import qvl_vision before it is loaded" in done.err
    done = qvl_sft("export", str(swapped), "--out", str(tmp_path / "out"))
    assert done.code == 0, done.err
    assert "import qvl_vision" in (tmp_path / "out/README.md").read_text(encoding="utf-8")
    before, after = (load_file(folder / "model.safetensors") for folder in (swapped, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert qvl_sft("chat", str(tmp_path / "out"), "Hello", "--max-new-tokens", "1").code == 0


def test_four_bits_open_here_as_they_do_elsewhere(
    folders: dict[str, Path], said: dict[str, torch.Tensor], picture: Path, data: Path, tmp_path: Path
) -> None:
    ours = logits(folders["nf4"], picture)
    assert (said["nf4"] - ours).abs().max() < 1e-5 * ours.abs().max()
    out = ["--samples", "2", "--out", str(tmp_path / "out")]
    done = qvl_sft("evaluate", str(folders["nf4"]), str(data / "digits"), *out)
    assert done.code == 0, done.err
    done = qvl_sft("chat", str(folders["nf4"]), "Hello", "--max-new-tokens", "1")
    assert done.code == 0, done.err
    again = qvl_sft("chat", str(folders["nf4"]), "Hello", "--quant", "int8")
    assert (again.code, "quantised already" in again.err) == (2, True)
    spread = qvl_sft("chat", str(folders["nf4"]), "Hello", "--device-map", "auto")
    assert (spread.code, "leave out --device-map" in spread.err) == (2, True)


def test_what_is_quantised_is_refused(run: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    """An update would be lost in the rounding of the base."""
    for args in (["merge", str(run), "--base", str(folders["nf4"])], ["export", str(folders["nf4"])]):
        done = qvl_sft(*args, "--out", str(tmp_path / "out"))
        assert done.code == 2
        assert str(folders["nf4"]) in done.err
        assert "quantised already" in done.err
        assert "name the full-precision model" in done.err
    assert not list(tmp_path.iterdir())


def test_a_full_disk(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("qvl_sft.export._add_old_names", full)
    done = qvl_sft("export", str(run), "--out", str(tmp_path / "out"))
    assert (done.code, "the disk is full" in done.err) == (1, True)
    assert not list(tmp_path.iterdir())


# The hub, whose client is replaced where it would leave this machine: HfApi.


class Hub:
    """Remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []

    def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> Any:
        self.asked.append(("create", name, private, exist_ok))
        return type("Url", (str,), {"repo_id": name})(f"https://hub.example/{name}")

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        self.asked.append(("upload", repo_id, files(folder_path)))


def test_push_to_hub(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    out = ["--out", str(tmp_path / "mine"), "--keep-adapter", "--push-to-hub"]
    done = qvl_sft("export", str(run), *out, "me/mine", "--private")
    assert done.code == 0, done.err
    assert hub.asked == [("create", "me/mine", True, True), ("upload", "me/mine", files(tmp_path / "mine"))]
    assert "README.md" in files(tmp_path / "mine")
    assert "https://hub.example/me/mine: uploaded." in done.out


def test_push_to_hub_without_a_token_or_a_network(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    merged = ["merge", str(run), "--out", str(tmp_path / "mine"), "--push-to-hub"]
    done = qvl_sft(*merged, "me/mine")
    assert (done.code, "nobody is logged in to the hub; run `hf auth login`" in done.err) == (2, True)
    done = qvl_sft(*merged, "me/mine/too")
    assert (done.code, "is no name of a repository; write OWNER/NAME." in done.err) == (2, True)
    assert not list(tmp_path.iterdir())  # known before the work is done
    monkeypatch.undo()
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody answers there
    done = qvl_sft("export", str(run), "--keep-adapter", *merged[2:], "me/mine")
    assert done.code == 1
    assert "the hub cannot be reached" in done.err
    assert f"hf upload me/mine {tmp_path / 'mine'}" in done.err
    assert (tmp_path / "mine/README.md").is_file()


def test_a_base_without_generation_config_still_stops(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, bare := tmp_path / "bare")
    (bare / "generation_config.json").unlink()
    export(str(bare), tmp_path / "out")
    own = json.loads((tmp_path / "out/generation_config.json").read_text(encoding="utf-8"))
    tokenizer = json.loads((base / "tokenizer.json").read_text(encoding="utf-8"))
    ids = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    assert (own["eos_token_id"], own["pad_token_id"]) == (ids["<|im_end|>"], ids["<|endoftext|>"])
