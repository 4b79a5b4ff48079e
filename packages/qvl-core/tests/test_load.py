"""Models load as the recipe says, and everything that can be wrong with a folder is said in one sentence."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import torch

from qvl_core.errors import BadInput
from qvl_core.qwen3vl import load
from qvl_core.qwen3vl.load import commit_of, find_folder, fingerprint, load_model, summary
from qvl_core.qwen3vl.lora import apply_tune, save_adapter
from qvl_core.qwen3vl.tiny import tiny
from qvl_core.recipe.blocks import Group, Model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("tiny"))


def loaded(name: str | Path, precision: load.Precision = "fp32", seed: int = 0, **settings):
    return load_model(Model(name=str(name), **settings), precision=precision, device="cpu", seed=seed)


def same_weights(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_tiny_and_its_folder_are_the_same_model(folder: Path):
    (a, _), (b, processor), (c, _) = loaded("tiny"), loaded(folder), loaded("tiny", seed=1)
    assert same_weights(a, b)
    assert not same_weights(a, c)
    assert not b.training
    assert processor.image_processor.merge_size == 2


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_precision(folder: Path, precision: load.Precision, dtype: torch.dtype):
    assert {p.dtype for name in ("tiny", folder) for p in loaded(name, precision)[0].parameters()} == {dtype}


@pytest.mark.parametrize(
    ("choice", "said"), [("auto", "packed"), ("packed", "packed"), ("sdpa", "sdpa"), ("eager", "eager")]
)
def test_attention_is_set_for_both_towers_and_said(folder: Path, choice: str, said: str, tmp_path: Path):
    model, _ = loaded(folder, attention=choice)
    for part in (model, model.model.language_model, model.model.visual):
        assert said in part.config._attn_implementation
    assert summary(model) == f"Qwen3VLForConditionalGeneration, 1.69M parameters, float32, {said} attention, on cpu"
    model.save_pretrained(tmp_path)
    assert said not in (tmp_path / "config.json").read_text(encoding="utf-8")


def test_init_from_takes_the_weights_only(folder: Path, tmp_path: Path):
    trained = tiny(tmp_path / "trained", texts=["other words"], seed=3)
    model, processor = loaded(folder, init_from=str(trained))
    assert same_weights(model, loaded(trained)[0])
    assert processor.tokenizer.get_vocab() == loaded(folder)[1].tokenizer.get_vocab()
    with pytest.raises(BadInput, match=r"model\.init_from: there is no folder nowhere"):
        loaded(folder, init_from="nowhere")


def test_an_adapter_in_init_from_is_left_to_the_caller(folder: Path, tmp_path: Path):
    tuned, _ = loaded(folder)
    apply_tune(tuned, {"llm": Group(mode="lora")}, 0)
    save_adapter(tuned, tmp_path, str(folder))
    assert same_weights(loaded(folder, init_from=str(tmp_path))[0], loaded(folder)[0])


def test_fingerprint_recognises_the_base(folder: Path):
    def of(name: str | Path, tune: dict[str, Group], seed: int = 0, change: str = "") -> str:
        model, _ = loaded(name, seed=seed)
        apply_tune(model, tune, seed=0)
        if change:
            model.get_parameter(change).data.flatten()[0] += 1e-3
        return fingerprint(model)

    lora = {"llm": Group(mode="lora"), "merger": Group(mode="full")}
    first = of("tiny", lora)
    assert first == of(folder, lora)
    assert first != of("tiny", lora, seed=1)
    assert first != of("tiny", {"llm": Group(mode="lora")})
    assert first != of("tiny", lora, change="model.language_model.layers.1.mlp.up_proj.base_layer.weight")
    assert first == of("tiny", lora, change="model.visual.merger.linear_fc1.weight")  # trained, so in the checkpoint
    assert len(first) == 64


def damage(file: str, content: str | bytes | None) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        if content is None:
            (folder / file).unlink()
        else:
            (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())

    return apply


def reshape(**text_config: int) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config["text_config"] |= text_config
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")

    return apply


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (damage("config.json", None), "no config.json there, so it is no checkpoint; an adapter needs its base"),
        (
            damage("config.json", '{"model_type": "llama"}'),
            r"config.json: model_type 'llama' is not Qwen3-VL \(qwen3_vl,",
        ),
        (damage("config.json", '{"model_type": "unheard"}'), "config.json: model_type 'unheard' is not Qwen3-VL"),
        (damage("config.json", "{"), "config.json: model_type '' is not Qwen3-VL"),
        (damage("model.safetensors", None), r"no weights there \(\*\.safetensors\)"),
        (damage("model.safetensors", b"\x10\0\0"), r"the weights cannot be read \(.*\); download them again"),
        (
            damage("tokenizer.json", None),
            r"no tokenizer \(tokenizer\.json\) there; copy the base model's processor files",
        ),
        (damage("tokenizer.json", "{}"), "the processor cannot be read"),
        (damage("processor_config.json", None), r"no picture settings \(processor_config\.json\) there"),
        (damage("chat_template.jinja", None), r"no chat template \(chat_template\.jinja\) there"),
        (reshape(intermediate_size=352), "the weights' shapes are not those of config.json"),
        (reshape(num_hidden_layers=4), r"the weights lack model\.language_model\.layers\.3\.input_layernorm\.weight"),
    ],
)
def test_broken_folders(folder: Path, tmp_path: Path, spoil: Callable[[Path], None], sentence: str):
    broken = shutil.copytree(folder, tmp_path / "broken")
    spoil(broken)
    with pytest.raises(BadInput, match=sentence) as caught:
        loaded(broken)
    assert str(broken) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_of_another_model(folder: Path, tmp_path: Path):
    broken = shutil.copytree(folder, tmp_path / "broken")
    shutil.copy(tiny(tmp_path / "other", texts=["other words"]) / "tokenizer.json", broken)
    with pytest.raises(BadInput, match="the tokenizer is another model's"):
        loaded(broken)


@pytest.mark.parametrize("name", ["./runs/none", "/no/such/folder", "a/b/c", "tinny", r"runs\none"])
def test_missing_folders(name: str):
    with pytest.raises(BadInput, match=r"there is no folder .*; give a folder, a hub id"):
        find_folder(name)


def test_a_hub_name_without_a_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        BadInput,
        match=r"Qwen/Nothing at revision v1 is no folder here, is not in the local cache, and .* `hf download Qwen/",
    ):
        find_folder("Qwen/Nothing", "v1")
    assert commit_of("Qwen/Nothing") is None
    assert commit_of("tiny") is None


def test_a_hub_that_breaks_off(monkeypatch: pytest.MonkeyPatch):
    """The hub's library passes on errors of the one that talks to the hub (httpx, httpx2), which are no OSError."""

    class ReadTimeout(Exception): ...

    def fetch(*_: object, **__: object) -> str:
        raise ReadTimeout("The read operation timed out")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    with pytest.raises(BadInput, match=r"Qwen/Nothing cannot be fetched \(The read operation timed out\); try again"):
        find_folder("Qwen/Nothing")


def test_a_hub_name_in_the_cache(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The hub's cache layout: a branch is a file that holds a commit, a commit is a folder."""
    from huggingface_hub import constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--qvl--tiny"
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit, encoding="utf-8")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert same_weights(loaded("qvl/tiny")[0], loaded(folder)[0])
    assert same_weights(loaded("qvl/tiny", revision=commit)[0], loaded(folder)[0])
    assert commit_of("qvl/tiny") == commit_of("qvl/tiny", commit) == commit
    (repository / "snapshots" / commit / "config.json").rename(repository / "snapshots" / commit / "model_index.json")
    assert commit_of("qvl/tiny") is None
    assert commit_of("qvl/tiny", file="model_index.json") == commit


def test_versions(monkeypatch: pytest.MonkeyPatch):
    load.check_versions()
    monkeypatch.setattr(load.metadata, "version", {"torch": "2.11.0+cu128", "transformers": "5.17.0"}.__getitem__)
    with pytest.raises(
        BadInput, match=r"transformers 5\.17\.0 is too old: QVL needs 5\.23 or newer; run: pip install -U"
    ):
        load.check_versions()

    def absent(package: str) -> str:
        raise load.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(load.metadata, "version", absent)
    with pytest.raises(BadInput, match=r"torch is not installed; run: pip install 'qvl-core\[train\]'"):
        load.check_versions()
