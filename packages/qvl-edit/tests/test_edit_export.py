"""What is exported predicts what was trained: in diffusers' pipelines, in ComfyUI's keys, merged; whole or absent."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from diffusers import DiffusionPipeline, QwenImageEditPlusPipeline, QwenImageTransformer2DModel
from editing_verbs import qvl_edit
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from qvl_core.errors import BadInput
from qvl_edit import EditPipeline, trained
from qvl_edit.export import comfyui, export
from qvl_edit.sampling import Sampling
from qvl_edit.trained import find_trained, open_trained


@torch.no_grad()
def prediction(transformer: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    config, dtype = transformer.config, transformer.dtype
    found: Tensor = transformer(
        hidden_states=torch.randn(1, 8, config.in_channels, generator=generator).to(dtype),
        encoder_hidden_states=torch.randn(1, 5, config.joint_attention_dim, generator=generator).to(dtype),
        timestep=torch.tensor([0.5], dtype=dtype),
        img_shapes=[[(1, 2, 2), (1, 2, 2)]],
        return_dict=False,
    )[0]
    return found


def opened(path: Path) -> Any:
    return open_trained(find_trained(path), torch.float32)


def checkpoint(run: Path) -> Path:
    return max((run / "checkpoints").iterdir())


@pytest.mark.parametrize("kind", ["full", "part"])
@pytest.mark.parametrize("where", ["run", "checkpoint"])
def test_a_whole_folder_predicts_the_same_to_the_bit(
    kind: str, where: str, runs: dict[str, Path], tmp_path: Path
) -> None:
    run = runs[kind]
    done = qvl_edit("export", run if where == "run" else checkpoint(run), "--out", tmp_path / "out")
    assert (done.code, done.err) == (0, "")
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert isinstance(pipe, QwenImageEditPlusPipeline)
    assert torch.equal(prediction(pipe.transformer), prediction(opened(run)))
    base = QwenImageTransformer2DModel.from_pretrained(run / "base" / "transformer")
    assert (prediction(pipe.transformer) - prediction(base)).abs().max() > 1e-4
    again = EditPipeline.from_pretrained(tmp_path / "out")
    assert again.sampling == Sampling(guidance=2, steps=3, negative="bad")
    assert again.geometry == EditPipeline.from_pretrained(run).geometry
    moved = (tmp_path / "out").rename(tmp_path / "moved")
    assert EditPipeline.from_pretrained(moved).sampling == again.sampling


def test_a_large_transformer_is_in_shards_with_an_index(runs: dict[str, Path], tmp_path: Path) -> None:
    export(str(runs["full"]), tmp_path / "out", shard="1MB")
    index = json.loads(
        (tmp_path / "out" / "transformer" / "diffusion_pytorch_model.safetensors.index.json").read_text("utf-8")
    )
    files = {file.name for file in (tmp_path / "out" / "transformer").glob("*.safetensors")}
    assert set(index["weight_map"].values()) == files
    assert len(files) > 1
    transformer = QwenImageTransformer2DModel.from_pretrained(tmp_path / "out" / "transformer")
    wanted = opened(runs["full"]).state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in transformer.state_dict().items())


@pytest.mark.parametrize("where", ["run", "checkpoint"])
@pytest.mark.parametrize("file", ["pytorch_lora_weights.safetensors", "comfyui_lora.safetensors"])
def test_adapters_are_loaded_in_both_spellings(file: str, where: str, runs: dict[str, Path], tmp_path: Path) -> None:
    run = runs["lora"]
    export(str(run if where == "run" else checkpoint(run)), tmp_path / "out")
    assert not (tmp_path / "out" / "model_index.json").exists()
    pipe = QwenImageEditPlusPipeline.from_pretrained(run / "base")
    without = prediction(pipe.transformer)
    pipe.load_lora_weights(tmp_path / "out", weight_name=file)
    wanted = prediction(opened(run))
    torch.testing.assert_close(prediction(pipe.transformer), wanted, rtol=0, atol=1e-5)
    assert (wanted - without).abs().max() > 1e-3
    torch.testing.assert_close(prediction(opened(tmp_path / "out")), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("where", ["run", "checkpoint"])
def test_adapters_are_exported_without_the_weights_beside_them(
    where: str, runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, other = runs["lora"], "checkpoint" if where == "run" else "run"
    paths = {"run": run, "checkpoint": checkpoint(run)}
    export(str(paths[other]), tmp_path / "other")
    monkeypatch.setattr(trained, "load_transformer", None)
    export(str(paths[where]), tmp_path / "out")
    for file in ("pytorch_lora_weights.safetensors", "comfyui_lora.safetensors"):
        said = [safe_open(tmp_path / name / file, "pt").metadata() for name in ("out", "other")]
        assert said[0] == said[1]


def test_comfyuis_keys(runs: dict[str, Path], tmp_path: Path) -> None:
    export(str(runs["lora"]), tmp_path / "out")
    found = load_file(tmp_path / "out" / "comfyui_lora.safetensors")
    key = "diffusion_model.transformer_blocks.0.attn.to_q"
    assert {name.rsplit(".", 1)[-1] for name in found} == {"weight", "alpha"}
    assert (len(found[f"{key}.lora_down.weight"]), found[f"{key}.alpha"].item()) == (4, 8)
    mlp = found["diffusion_model.transformer_blocks.0.img_mlp.net.0.proj.lora_down.weight"]
    assert len(mlp) == 2
    weights = {"transformer.a.lora_A.weight": torch.ones(4, 3), "transformer.a.lora_B.weight": torch.ones(3, 4)}
    about = {"transformer.lora_alpha": 2, "transformer.use_rslora": True}
    assert comfyui(weights, about)["diffusion_model.a.alpha"].item() == pytest.approx(4)  # 2 / sqrt(4), of 4
    with pytest.raises(BadInput, match="with --merge"):
        comfyui(weights, {"transformer.use_dora": True})


@pytest.mark.parametrize("kind", ["lora", "both"])
def test_merged_weights_predict_what_the_adapters_did(kind: str, runs: dict[str, Path], tmp_path: Path) -> None:
    assert qvl_edit("export", runs[kind], "--merge", "--out", tmp_path / "out").code == 0
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert not hasattr(pipe.transformer, "peft_config")
    torch.testing.assert_close(prediction(pipe.transformer), prediction(opened(runs[kind])), rtol=0, atol=1e-5)
    assert not (tmp_path / "out" / "pytorch_lora_weights.safetensors").exists()


def test_merged_weights_are_rounded_once(runs: dict[str, Path], tmp_path: Path) -> None:
    """Of a base in bf16: the sum in fp32, rounded."""
    run, found = runs["lora"], find_trained(runs["lora"])
    half = QwenImageTransformer2DModel.from_pretrained(run / "base" / "transformer", torch_dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    with patch("qvl_edit.export.find_trained", return_value=replace(found, transformer=tmp_path / "half")):
        export(str(run), tmp_path / "out", merge=True)
    merged = load_file(tmp_path / "out" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert found.adapters is not None
    lora = load_file(found.adapters)
    up, down = (lora[f"transformer.transformer_blocks.0.attn.to_q.lora_{which}.weight"] for which in "BA")
    name = "transformer_blocks.0.attn.to_q.weight"
    wanted = half.state_dict()[name].float() + 8 / 4 * (up @ down)
    assert merged[name].dtype == torch.bfloat16
    torch.testing.assert_close(merged[name], wanted.bfloat16(), rtol=0, atol=0)


def test_what_was_trained_beside_adapters_goes_with_them(runs: dict[str, Path], tmp_path: Path) -> None:
    export(str(runs["both"]), tmp_path / "out")
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "out")
    pipe.load_lora_weights(tmp_path / "out")
    wanted = prediction(opened(runs["both"]))
    for found in (pipe.transformer, opened(tmp_path / "out")):
        torch.testing.assert_close(prediction(found), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "last", ["diffusers.QwenImageTransformer2DModel.save_pretrained", "qvl_edit.settings.Settings.write"]
)
def test_an_interrupted_export_leaves_nothing_that_loads(last: str, runs: dict[str, Path], tmp_path: Path) -> None:
    with patch(last, side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        export(str(runs["full"]), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    export(str(runs["full"]), tmp_path / "out")


def test_what_cannot_be_exported_is_one_sentence(runs: dict[str, Path], tmp_path: Path) -> None:
    for arguments, said in (
        ((runs["full"], "--merge", "--out", tmp_path / "out"), "has no adapters to merge; leave --merge out"),
        ((runs["full"], "--out", runs["full"]), "is already there; choose a new folder"),
        ((tmp_path, "--out", tmp_path / "out"), "no edit.json there"),
    ):
        done = qvl_edit("export", *arguments)
        assert done.code == 2
        assert said in done.err
        assert done.err.count("\n") == 1
