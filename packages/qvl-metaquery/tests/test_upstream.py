"""A checkpoint in upstream's layout loads strictly and says the same: its reference is made of transformers' Qwen2."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawing_verbs import qvl_metaquery
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import (
    Qwen2MLP,
    Qwen2RMSNorm,
    Qwen2RotaryEmbedding,
    apply_rotary_pos_emb,
)

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.batch import collate
from qvl_core.qwen3vl.load import load_model
from qvl_core.recipe.blocks import Model
from qvl_metaquery import MetaQueryPipeline
from qvl_metaquery.opening import open_transformer
from qvl_metaquery.prompts import Prompt, encode
from qvl_metaquery.settings import SYSTEM, Settings
from qvl_metaquery.tiny import tiny
from qvl_metaquery.upstream import connector_name, sorted_out
from qvl_metaquery.weights import OWN

N, D = 6, 128


class UnitNorm(nn.Module):
    """Length 8 times a weight of each head."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.randn(heads, 1, 64))

    def forward(self, x: Tensor) -> Tensor:
        return x / x.norm(dim=-1, keepdim=True) * 64**0.5 * self.gamma


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(D, D) for _ in range(3))
        self.o_proj = nn.Linear(D, D, bias=False)
        self.q_norm, self.k_norm = UnitNorm(D // 64), UnitNorm(D // 64)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = (
            linear(x).view(*x.shape[:2], -1, 64).transpose(1, 2) for linear in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = apply_rotary_pos_emb(q, k, cos, sin)
        seen = (self.q_norm(q) @ self.k_norm(k).transpose(2, 3) / 8).softmax(-1) @ v
        return self.o_proj(seen.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self, config: Qwen2Config) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(), Qwen2MLP(config)
        self.input_layernorm, self.post_attention_layernorm = (Qwen2RMSNorm(D, eps=1e-6) for _ in range(2))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Encoder(nn.Module):
    def __init__(self, layers: int) -> None:
        super().__init__()
        config = Qwen2Config(hidden_size=D, num_attention_heads=D // 64, intermediate_size=4 * D, rms_norm_eps=1e-6)
        self.layers = nn.ModuleList(Layer(config) for _ in range(layers))
        self.turn = [Qwen2RotaryEmbedding(config)]  # in a list: its buffer is no weight of a checkpoint

    def forward(self, x: Tensor) -> Tensor:
        cos, sin = self.turn[0](x, torch.arange(x.shape[1])[None])
        for layer in self.layers:
            x = layer(x, cos, sin)
        return x


def moved(module: nn.Module) -> nn.Module:
    """No weight of one, no bias of nought."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return module


class Checkpoint:
    """What a run of upstream leaves, and what its conditions are by one forward over rows of the vocabulary."""

    def __init__(self, folder: Path, drift: float = 1.0) -> None:
        self.folder, self.base = folder / "upstream", folder / "base"
        tiny(self.base)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            self.mllm, self.processor = load_model(Model(name=str(self.base / "qwen")), precision="fp32", device="cpu")
            head = [nn.Linear(D, 64), nn.GELU(approximate="tanh"), nn.Linear(64, 64), nn.RMSNorm(64, eps=1e-5)]
            self.connector = moved(nn.Sequential(Encoder(2), *head))
            self.transformer = moved(open_transformer(self.base / "sana" / "transformer", torch.float32))
            rows = torch.randn(N + 2, D)
        table = self.mllm.model.language_model.embed_tokens
        with torch.no_grad():
            table.weight.mul_(drift)
        self.tokenizer = copy.deepcopy(self.processor.tokenizer)
        names = ["<begin_of_img>", "<end_of_img>", *(f"<img{index}>" for index in range(N))]
        first = len(table.weight)
        self.tokenizer.add_tokens([f"<filler_{index}>" for index in range(first - len(self.tokenizer))])
        self.tokenizer.add_special_tokens({"additional_special_tokens": names})
        table.weight = nn.Parameter(torch.cat([table.weight.detach(), rows]))
        self.asked = torch.tensor([first, *range(first + 2, first + 2 + N), first + 1])
        self.save()

    def weights(self) -> dict[str, Tensor]:
        kept = {n: w for n, w in self.mllm.state_dict().items() if not n.startswith("lm_head")}
        parts = {"mllm_backbone": kept, "connector": self.connector.state_dict()}
        parts["transformer"] = self.transformer.state_dict()
        named = {f"model.{part}.{name}": value for part, found in parts.items() for name, value in found.items()}
        return {name: value.contiguous().clone() for name, value in named.items()} | {"vae.bias": torch.zeros(2)}

    def save(self) -> None:
        self.folder.mkdir(exist_ok=True)
        save_file(
            {name: value.contiguous().clone() for name, value in self.weights().items()},
            self.folder / "model.safetensors",
        )
        self.tokenizer.save_pretrained(self.folder)

    @torch.no_grad()
    def conditions(self, prompt: Prompt, layout: Any) -> Tensor:
        one = encode(prompt, self.processor, layout)
        inputs = collate([one], False, 2, self.processor.tokenizer.pad_token_id).inputs()
        before, behind = inputs["position_ids"], torch.arange(1, N + 3)
        text, others = before[:1, :, -1:] + behind, before[1:].amax() + behind
        inputs["position_ids"] = torch.cat([before, torch.cat([text, others.expand(3, 1, -1)])], 2)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], self.asked[None]], 1)
        for name, value in (("attention_mask", 1), ("mm_token_type_ids", 0)):
            inputs[name] = torch.cat([inputs[name], torch.full((1, N + 2), value)], 1)
        states = self.mllm.model(**inputs, use_cache=False).last_hidden_state[:, -N - 1 : -1]
        said: Tensor = self.connector(states)
        return said


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(tmp_path_factory.mktemp("upstream"))


def convert(checkpoint: Checkpoint, out: Path, *options: object, base: Path | None = None) -> Any:
    base = base or checkpoint.base
    names = ("--mllm", base / "qwen", "--sana", base / "sana", "--size", 8, "--out", out)
    return qvl_metaquery("convert", checkpoint.folder, *names, *options)


@pytest.mark.parametrize("drift", [1.0, 0.99])
def test_it_says_what_it_said_there(drift: float, tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, drift)
    done = convert(checkpoint, tmp_path / "out")
    assert done.code == 0, done.err
    said = " ".join(done.out.split())
    assert "6 queries, connector of 2 layers (33 tensors), Sana's transformer (" in said
    assert ("1 tensors of its Qwen3-VL are not those" in said) == (drift != 1)
    out = (tmp_path / "out").rename(tmp_path / "moved")
    assert (out / "qwen3vl").is_dir() == (drift != 1)
    pipeline = MetaQueryPipeline.from_pretrained(out)
    assert Settings.read(out).system == SYSTEM
    shown = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8))
    for prompt in (Prompt("a red fox"), Prompt("both", (shown, shown.rotate(90, expand=True)))):
        wanted = checkpoint.conditions(prompt, pipeline.layout)
        assert (pipeline.conditions([prompt]) - wanted).abs().max() < 1e-5
    latents = torch.randn(2, 4, 4, 4)
    velocity = pipeline.model.velocity(latents, torch.tensor([0.2, 0.7]), wanted.expand(2, -1, -1))
    there = checkpoint.transformer(latents, wanted.expand(2, -1, -1), torch.tensor([200.0, 700.0]), return_dict=False)
    assert (velocity - there[0]).abs().max() < 1e-5


def test_hub_names_are_read_at_their_revisions_and_keep_them(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = set()

    def fetched(name: str, revision: str, **how: Any) -> Path:
        asked.add((name, revision))
        return checkpoint.base / name.rpartition("/")[2]

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetched)
    names = ("--mllm", "of/qwen", "--revision", "v1", "--sana", "of/sana", "--sana-revision", "v2")
    done = qvl_metaquery("convert", checkpoint.folder, *names, "--size", 8, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    made = Settings.read(tmp_path / "out")
    assert asked == {("of/qwen", "v1"), ("of/sana", "v2")}
    assert asked == {(made.mllm, made.mllm_revision), (made.sana, made.sana_revision)}


def test_a_file_of_torch_is_read_without_running_what_is_in_it(checkpoint: Checkpoint, tmp_path: Path) -> None:
    pickled = copy.copy(checkpoint)
    pickled.folder = tmp_path / "pickled"
    checkpoint.tokenizer.save_pretrained(pickled.folder)
    torch.save(checkpoint.weights(), pickled.folder / "pytorch_model.bin")
    for out in (checkpoint, pickled):
        assert convert(out, tmp_path / f"out-{out.folder.name}").code == 0
    one, other = (load_file(tmp_path / f"out-{name}" / OWN) for name in ("upstream", "pickled"))
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def changed(checkpoint: Checkpoint, folder: Path, weights: dict[str, Tensor]) -> Checkpoint:
    other = copy.copy(checkpoint)
    other.folder = folder
    checkpoint.tokenizer.save_pretrained(folder)
    save_file(weights, folder / "model.safetensors")
    return other


LAYER, BIAS = "model.connector.0.layers.1.", "model.transformer.proj_out.bias"


@pytest.mark.parametrize(
    ("drop", "add", "words"),
    [
        (f"{LAYER}mlp.up_proj.weight", {}, "has no connector.layers.1.up.weight (1 lacking)"),
        ("", {f"{LAYER}self_attn.o_proj.bias": (D,)}, "connector.layers.1.attention.out.bias has no place"),
        ("", {f"{LAYER}norm3.weight": (D,)}, "connector.0.layers.1.norm3.weight: is not known"),
        ("", {"ema.weight": (2,)}, "ema.weight: belongs to no part of a MetaQuery checkpoint"),
        ("", {"model.transformer.extra": (2,)}, "transformer.extra has no place in Sana's transformer"),
        ("model.transformer.proj_out.bias", {}, "transformer.proj_out.bias is lacking"),
        (
            "model.transformer.proj_out.bias",
            {"model.transformer.proj_out.bias": (9,)},
            "transformer.proj_out.bias is (9,)",
        ),
        ("model.mllm_backbone.model.language_model.embed_tokens.weight", {}, "it is no MetaQuery checkpoint"),
    ],
)
def test_what_has_no_place_or_is_lacking_is_refused(
    drop: str, add: dict[str, tuple[int, ...]], words: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    weights = {name: value for name, value in checkpoint.weights().items() if name != drop}
    weights |= {name: torch.zeros(shape) for name, shape in add.items()}
    done = convert(changed(checkpoint, tmp_path / "changed", weights), tmp_path / "out")
    assert done.code == 2
    assert words in " ".join(done.err.split())
    assert not (tmp_path / "out").exists()


def test_folders_that_cannot_be_converted_are_one_sentence(checkpoint: Checkpoint, tmp_path: Path) -> None:
    assert "is there already" in convert(checkpoint, tmp_path).err
    empty = copy.copy(checkpoint)
    empty.folder = tmp_path / "empty"
    assert "has no *.safetensors" in convert(empty, tmp_path / "out").err
    checkpoint.processor.tokenizer.save_pretrained(empty.folder)
    save_file(
        {name: w.contiguous().clone() for name, w in checkpoint.weights().items()}, empty.folder / "model.safetensors"
    )
    assert "the tokenizer does not know <begin_of_img>" in " ".join(convert(empty, tmp_path / "out").err.split())
    (empty.folder / "tokenizer.json").unlink()
    (empty.folder / "tokenizer_config.json").unlink()
    assert "its tokenizer, which says which rows are queries" in " ".join(convert(empty, tmp_path / "out").err.split())


def test_names_are_ours_in_one_way() -> None:
    assert connector_name("0.layers.12.self_attn.k_proj.bias") == "layers.12.attention.key.bias"
    assert connector_name("3.weight") == "project_out.weight"
    with pytest.raises(BadInput, match=r"connector\.2\.weight: is not known"):
        connector_name("2.weight")
    assert sorted_out(["model.mllm_backbone.model.language_model.embed_tokens.weight", "connector.1.bias"]).layers == 0
