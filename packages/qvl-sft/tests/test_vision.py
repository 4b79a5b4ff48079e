"""Training a model whose vision encoder was swapped: what learns and what does not, two stages, and what is left."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Done, files, qvl_sft, watched
from killing import KILLED, child, die
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from qvl_core.qwen3vl.batch import collate
from qvl_core.qwen3vl.presets import count_parameters
from qvl_core.qwen3vl.tiny import tiny
from qvl_core.recipe.load import load
from qvl_core.run import RunFolder
from qvl_core.training import checkpoint
from qvl_core.training.parts import Callbacks
from qvl_core.training.world import World
from qvl_data.chat import encode
from qvl_data.example.digits import digits_dataset
from qvl_sft.build import build
from qvl_sft.plan import model_config, predict
from qvl_sft.recipe import RECIPE
from qvl_sft.trained import load_trained
from qvl_vision.tiny import tiny_encoder

ENCODERS = ("dinov2", "clip", "siglip")
LORA_IN_THE_TOWER = "tune.vision={mode: lora, rank: 2, alpha: 4, lr: 1e-3}"
SHORT = ["train.steps=2", "batch.size=2", "checkpoint.every=null", "evaluate.every=null", "log.every=1"]


def write_encoder(name: str, folder: Path) -> Path:
    """A tiny checkpoint of an encoder. clip is read at its second-last layer, so that its last one is not used."""
    if name == "dinov2":
        return tiny_encoder(folder)
    kinds: Any = {"clip": (CLIPVisionConfig, CLIPVisionModel), "siglip": (SiglipVisionConfig, SiglipVisionModel)}
    config, model = kinds[name]
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    model(config(**sizes, image_size=32, patch_size=8)).save_pretrained(folder)
    settings = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the stock model base/ and the encoders."""
    folder = tmp_path_factory.mktemp("vision")
    tiny(folder / "base")
    for name in ENCODERS:
        write_encoder(name, folder / name)
    return folder


def recipe(place: Path, data: Path, encoder: str, *changes: str) -> list[str]:
    """`tiny_vision` on the tiny stock model, in two steps."""
    return [
        "tiny_vision",
        f"model.name={place / 'base'}",
        f"model.vision.encoder={place / encoder}",
        f"data={{train: {{source: {data / 'digits'}, take: 40}}}}",
        *SHORT,
        *changes,
    ]


def train(place: Path, data: Path, encoder: str, out: Path, *changes: str) -> Done:
    return qvl_sft("train", *recipe(place, data, encoder, *changes), "--out", str(out))


@pytest.fixture(scope="module")
def runs(place: Path, data: Path) -> Callable[..., Path]:
    """A finished run by encoder and changes; each is made once."""
    made: dict[tuple[str, ...], Path] = {}

    def run(encoder: str, *changes: str) -> Path:
        if (encoder, *changes) not in made:
            out = place / f"run-{len(made)}"
            done = train(place, data, encoder, out, *changes)
            assert done.code == 0, done.err
            made[encoder, *changes] = out
        return made[encoder, *changes]

    return run


def adapter(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "final/adapter_model.safetensors")


def base_of(run: Path) -> Path:
    config = json.loads((run / "final/adapter_config.json").read_text(encoding="utf-8"))
    return Path(config["base_model_name_or_path"])


def logits(model: Any, processor: Any) -> torch.Tensor:
    """What a model says to held-out pictures, token by token."""
    encoded = [encode(sample, processor) for sample in digits_dataset("digit", "test")[:4]]
    batch = collate(
        encoded, packing=False, merge=processor.image_processor.merge_size, pad_id=processor.tokenizer.pad_token_id
    )
    model.set_attn_implementation("sdpa")
    with torch.inference_mode():
        return model(**batch.inputs()).logits


# What learns


@pytest.mark.parametrize("encoder", ENCODERS)
def test_lora_stays_out_of_the_tower(runs: Callable[..., Path], encoder: str) -> None:
    """The encoders' linear layers have the names of the language model's (q_proj, fc1), and peft matches endings."""
    run = runs(encoder)
    parts = {name.removeprefix("base_model.model.model.").partition(".")[0] for name in adapter(run)}
    assert parts == {"language_model", "visual"}
    assert all(".visual.merger." in name for name in adapter(run) if ".visual." in name)
    theirs = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(base_of(run)), run / "final").eval()
    assert not [name for name, _ in theirs.named_modules() if "lora_" in name and ".language_model." not in name]
    ours, processor = load_trained(str(run))
    assert torch.equal(logits(theirs.base_model.model, processor), logits(ours, processor))


@pytest.mark.parametrize("encoder", ENCODERS)
def test_lora_goes_into_the_tower_if_asked(runs: Callable[..., Path], encoder: str, tmp_path: Path) -> None:
    run = runs(encoder, LORA_IN_THE_TOWER)
    moved = [
        name for name, value in adapter(run).items() if ".visual.encoder." in name and "lora_B" in name and value.any()
    ]
    assert moved
    done = qvl_sft("merge", str(run), "--out", str(tmp_path / "merged"), "--dtype", "fp32")
    assert done.code == 0, done.err
    ours, processor = load_trained(str(run))
    merged, _ = load_trained(str(tmp_path / "merged"))
    found, expected = logits(merged, processor), logits(ours, processor)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_the_merger_is_in_the_adapter_and_has_moved(runs: Callable[..., Path]) -> None:
    run = runs("dinov2")
    before = load_file(base_of(run) / "model.safetensors")
    mergers = {name: value for name, value in adapter(run).items() if ".visual.merger." in name}
    names = {name.removeprefix("base_model.model.") for name in mergers}
    assert names == {name for name in before if ".visual.merger." in name}
    for name, value in mergers.items():
        assert not torch.equal(value, before[name.removeprefix("base_model.model.")]), name


@pytest.mark.parametrize("mode", ["{mode: full, lr: 1e-6}", "{mode: lora, rank: 2}"])
@pytest.mark.parametrize("encoder", ["dinov2", "clip"])
def test_every_trained_weight_of_a_tower_gets_a_gradient(
    place: Path, data: Path, tmp_path: Path, encoder: str, mode: str
) -> None:
    """DDP waits for each: mask tokens, pooling heads and layers after the one that is read stay frozen."""
    name, *changes = recipe(place, data, encoder, f"tune.vision={mode}")
    world = World(0, 1, torch.device("cpu"), "single")
    (tmp_path / "run").mkdir()
    parts = build(load(RECIPE, name, changes, "qvl_sft"), RunFolder(tmp_path / "run"), world)
    (micro,) = parts.batches.build(parts.batches.plan(0, 0, 1))
    parts.loss(parts.model, micro.batch).total.backward()
    trained = {name: p for name, p in parts.model.named_parameters() if p.requires_grad}
    assert not [name for name, p in trained.items() if p.grad is None]
    inside = [p.numel() for name, p in trained.items() if ".visual.encoder." in name]
    (row,) = (row for row in parts.about["tune"] if row["group"] == "vision")
    assert inside
    assert row["trainable"] == sum(inside)
    if mode.startswith("{mode: full"):
        assert row["trainable"] < row["parameters"]


def test_a_tower_that_is_trained_is_saved_with_the_adapter(runs: Callable[..., Path]) -> None:
    run = runs("clip", "tune.vision={mode: full, lr: 1e-3}")
    before = load_file(base_of(run) / "model.safetensors")
    moved = [name for name in adapter(run) if ".visual.encoder." in name]
    assert moved
    assert all(not torch.equal(adapter(run)[name], before[name.removeprefix("base_model.model.")]) for name in moved)
    theirs = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(base_of(run)), run / "final").eval()
    ours, processor = load_trained(str(run))
    assert torch.equal(logits(theirs.base_model.model, processor), logits(ours, processor))


# What is left can be used


def test_it_learns_to_read_with_another_encoder(trained: Path, place: Path, data: Path, tmp_path: Path) -> None:
    """The recipe `tiny_vision` at half its steps, on a language model that reads digits; then all that a run is for."""
    done = qvl_sft(
        "train", "tiny_vision", f"model.name={trained / 'final'}", f"model.vision.encoder={place / 'dinov2'}",
        f"data={{train: {data / 'digits'}, test: {{source: {data / 'digits'}, take: 120}}}}",
        "train.steps=60", "checkpoint.every=null", "evaluate.every=null", "--out", str(tmp_path / "run"),
    )  # fmt: skip
    assert done.code == 0, done.err
    result = RunFolder(tmp_path / "run").read_result()
    assert result is not None
    assert result["test_exact_match"] >= 0.35  # chance is 0.10, the run reaches 0.5 and 0.71 at its full length

    merged = tmp_path / "merged"
    done = qvl_sft("merge", str(tmp_path / "run"), "--out", str(merged), "--dtype", "fp32")
    assert done.code == 0, done.err
    ours, processor = load_trained(str(tmp_path / "run"))
    found = logits(AutoModelForImageTextToText.from_pretrained(merged).eval(), AutoProcessor.from_pretrained(merged))
    expected = logits(ours, processor)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()

    (picture := tmp_path / "digit.png").write_bytes(digits_dataset("digit", "test")[0].media[0].bytes or b"")
    answers, figures = [], []
    for model in (tmp_path / "run", merged):
        said = qvl_sft("chat", str(model), "Which digit is this?", "--image", str(picture))
        assert said.code == 0, said.err
        answers.append(said.out.strip())
        out = tmp_path / f"evaluation-{model.name}"
        done = qvl_sft("evaluate", str(model), str(data / "digits"), "--out", str(out), "--samples", "24")
        assert done.code == 0, done.err
        evaluated = RunFolder(out).read_result()
        assert evaluated is not None
        figures.append((evaluated["test_exact_match"], round(evaluated["test_loss"], 4)))
    assert answers[0] in set("0123456789")
    assert answers[0] == answers[1]
    assert figures[0] == figures[1]


def test_a_plan_counts_what_is_built(runs: Callable[..., Path], place: Path, data: Path) -> None:
    for encoder, *changes in (("clip",), ("native", "model.vision.merger=mlp")):
        name, *given = recipe(place, data, encoder, *changes)
        if encoder == "native":
            given.append("model.vision={encoder: native, merger: mlp}")
        planned = load(RECIPE, name, given, "qvl_sft")
        out = place / f"planned-{encoder}"
        done = qvl_sft("train", name, *given, "--out", str(out))
        assert done.code == 0, done.err
        real = sum(p.numel() for p in AutoModelForImageTextToText.from_pretrained(base_of(out)).parameters())
        assert sum(count_parameters(model_config(planned.model)).values()) == real
        assert predict(planned).parameters == real


def test_check(place: Path, data: Path) -> None:
    done = qvl_sft("check", *recipe(place, data, "dinov2", "tune.merger.lr=2e-5"))
    assert done.code == 0, done.err
    assert "[32×32 pixels: 16 image tokens]" in done.out
    assert "tune.merger: lr 2e-05 is too low for a new merger" in " ".join(done.out.split())


# Two stages


TWO = [
    "train.stage=two", "train.alignment={steps: 4, lr: 1e-2}", "train.steps=4", "checkpoint.every=2",
    "tune.llm.dropout=0.1", "checkpoint.keep=9",
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(runs: Callable[..., Path]) -> Path:
    """A run in two stages, uninterrupted."""
    return runs("dinov2", *TWO)


def test_stage_one_trains_the_merger_alone_and_stage_two_stands_on_it(whole: Path) -> None:
    first = load(RECIPE, whole / "alignment/recipe.yaml")
    assert {name: (group.mode, group.lr) for name, group in first.tune.items()} == {"merger": ("full", 0.01)}
    before = load_file(next(whole.glob("alignment/swapped-*")) / "model.safetensors")
    after = load_file(whole / "alignment/final/model.safetensors")
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        name for name in before if ".visual.merger." in name
    }
    assert base_of(whole) == (whole / "alignment/final").resolve()
    result = RunFolder(whole).read_result()
    assert result is not None
    assert (result["steps"], result["alignment_steps"]) == (4, 4)
    assert result["alignment_tokens"] > 0
    assert "Stage one: the new merger alone" in (whole / "report.html").read_text(encoding="utf-8")


def test_deepstack_mergers_are_aligned_too(place: Path, data: Path, tmp_path: Path) -> None:
    deep = ["model.vision.deepstack=[0, 1]", "tune.deepstack_mergers={mode: full, lr: 1e-3}"]
    done = train(place, data, "dinov2", tmp_path / "run", *TWO, *deep)
    assert done.code == 0, done.err
    rows = RunFolder(tmp_path / "run/alignment").read_environment()["tune"]
    assert {row["group"] for row in rows if row["trainable"]} == {"merger", "deepstack_mergers"}


def test_a_finished_run_is_left_alone_and_fresh_moves_both_stages(
    whole: Path, place: Path, data: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole, run := tmp_path / "run")
    before = {name: (run / name).stat().st_mtime_ns for name in files(run)}
    assert train(place, data, "dinov2", run, *TWO).code == 0
    assert {name: (run / name).stat().st_mtime_ns for name in files(run)} == before
    done = qvl_sft("train", *recipe(place, data, "dinov2", *TWO), "--out", str(run), "--fresh")
    assert done.code == 0, done.err
    assert files(tmp_path / "run.old-1") == sorted(before)
    same(run, whole)


def test_a_moved_run_finds_stage_one_inside_it(whole: Path, tmp_path: Path) -> None:
    model, processor = load_trained(str(whole))
    expected = logits(model, processor)
    shutil.copytree(whole, tmp_path / "elsewhere/run")
    config = tmp_path / "elsewhere/run/final/adapter_config.json"
    config.write_text(config.read_text(encoding="utf-8").replace(whole.parent.name, "gone"), encoding="utf-8")
    model, processor = load_trained(str(tmp_path / "elsewhere/run"))
    assert torch.equal(logits(model, processor), expected)


def finish(given: list[str], out: Path) -> None:
    """The command, uninterrupted."""
    done = qvl_sft("train", *given, "--out", str(out))
    if done.code:
        sys.exit(done.err)


def killed_after(given: list[str], out: Path, stage: int, step: int) -> None:
    def watch(done: int) -> None:
        second = (out / "alignment/result.json").is_file()
        if done == step and second == (stage == 2):
            die()

    with watched(Callbacks(on_step=watch)):
        finish(given, out)


def killed_in_save(given: list[str], out: Path, stage: int, step: int) -> None:
    """Die after the first file of a checkpoint."""
    folder = (out / "alignment" if stage == 1 else out) / f"checkpoints/.step-{step:06d}.partial"

    def written(path: Path) -> None:
        if path.parent == folder:
            die()

    checkpoint._written = written
    finish(given, out)


def killed_in_base(given: list[str], out: Path) -> None:
    """Die while the swapped base is written."""
    rename = Path.rename

    def renamed(self: Path, target: Any) -> Any:
        if self.name.startswith(".swapped-"):
            die()
        return rename(self, target)

    Path.rename = renamed  # type: ignore[assignment, method-assign]
    finish(given, out)


def killed_between(given: list[str], out: Path, before: str) -> None:
    """Die after stage one: before or after its final/ gets its name, or with its result written."""
    rename, write_result = Path.rename, RunFolder.write_result

    def renamed(self: Path, target: Any) -> Any:
        mine = self.name == ".final.partial" and self.parent.name == "alignment"
        if mine and before == "final":
            die()
        result = rename(self, target)
        if mine and before == "result":
            die()
        return result

    def written(self: RunFolder, result: Any) -> None:
        write_result(self, result)
        if self.path.name == "alignment" and before == "stage two":
            die()

    Path.rename = renamed  # type: ignore[assignment, method-assign]
    RunFolder.write_result = written  # type: ignore[method-assign]
    finish(given, out)


def same(run: Path, whole: Path) -> None:
    """Bit-identical weights of both stages, at the end and in every checkpoint; equal curves; nothing left over."""
    assert files(run) == files(whole)
    for name in files(whole):
        if name.endswith(".safetensors"):
            assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    for stage in ("alignment", "."):
        assert curve(run / stage) == curve(whole / stage)


def curve(run: Path) -> list[tuple[float, ...]]:
    records = [record for record in RunFolder(run).read_metrics() if "loss" in record]
    return [tuple(record[name] for name in ("step", "loss", "lr", "grad_norm")) for record in records]


Kill = tuple[Callable[..., None], tuple[Any, ...]]


def through(stage: int) -> list[Kill]:
    """Each step of a stage, and each of its saves."""
    return [
        (kill, (stage, step))
        for save in (2, 4)
        for kill, step in ((killed_after, save - 1), (killed_after, save), (killed_in_save, save))
    ]


SOME: list[Kill] = [(killed_after, (1, 3)), (killed_between, ("result",)), (killed_in_save, (2, 2))]
ALL: list[Kill] = [
    (killed_in_base, ()),
    *through(1),
    *((killed_between, (before,)) for before in ("final", "result", "stage two")),
    *through(2),
]


@pytest.mark.parametrize("kills", [SOME, pytest.param(ALL, marks=pytest.mark.slow)], ids=["some", "all"])
def test_killed_in_either_stage_the_same_command_ends_with_the_same_bits(
    whole: Path, place: Path, data: Path, tmp_path: Path, kills: list[Kill]
) -> None:
    given = recipe(place, data, "dinov2", *TWO)
    for kill, where in kills:
        assert child(kill, given, tmp_path / "run", *where) == KILLED, (kill.__name__, where)
        assert RunFolder(tmp_path / "run").read_result() is None
    assert child(finish, given, tmp_path / "run") == 0
    same(tmp_path / "run", whole)


# Bad input


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["tune.merger.mode=frozen"], ["`tune.merger` must be", "starts from random weights"]),
        (["tune.merger={mode: lora}"], ["`tune.merger` must be"]),
        (["model.vision.deepstack=[0]"], ["`tune.deepstack_mergers` must be"]),
        (["train.stage=two"], ["`stage: two` needs `alignment: {steps: N}`"]),
        (["train.alignment={steps: 3}"], ["`alignment` belongs to `stage: two`"]),
        (["model.vision=null", "train.stage=two", "train.alignment={steps: 3}"], ["there is none"]),
        (["model.init_from=x", "train.stage=two", "train.alignment={steps: 3}"], ["exclude each other"]),
        (["model.vision.encoder=rad_dinoo"], ['did you mean "rad_dino"?']),
        (["model.vision.encoder=[]"], ["a list of at least 1"]),
        (["model.vision.merger=lineal"], ['did you mean "linear"?']),
        (["model.vision.layout=patch"], ['did you mean "patches"?']),
        (["model.vision.merger_options={width: 3}"], ["merger_options"]),
        (["model.vision.deepstack=[9]", "tune.deepstack_mergers={mode: full}"], ["deepstack"]),
    ],
)
def test_what_cannot_be_meant(place: Path, data: Path, tmp_path: Path, changes: list[str], words: list[str]) -> None:
    done = train(place, data, "dinov2", tmp_path / "run", *changes)
    assert done.code == 2, done.err
    assert done.err.strip().count("\n") == 0, done.err
    for word in words:
        assert word in done.err


def test_another_encoder_or_alignment_is_another_run(
    whole: Path, runs: Callable[..., Path], place: Path, data: Path, tmp_path: Path
) -> None:
    """Finished or not: a changed vision block is refused, and nothing is trained on another's base."""
    shutil.copytree(runs("dinov2"), run := tmp_path / "one")
    done = train(place, data, "dinov2", run, "model.vision.merger=mlp")
    assert (done.code, "model.vision.merger" in done.err) == (2, True), done.err
    (run / "result.json").unlink()
    done = train(place, data, "dinov2", run, "model.vision.merger=mlp")
    assert (done.code, "model.vision.merger" in done.err) == (2, True), done.err

    shutil.copytree(whole, run := tmp_path / "two")
    (run / "result.json").unlink()
    done = train(place, data, "dinov2", run, *TWO, "train.alignment.lr=1e-3")
    assert (done.code, "alignment: this run is finished, with another recipe" in done.err) == (2, True), done.err


def test_a_model_that_was_swapped_before(tmp_path: Path, data: Path) -> None:
    """Its random merger must learn, and is known as trained from the first merged model on."""
    from qvl_core.qwen3vl.load import open_config
    from qvl_vision import save, swap
    from qvl_vision.config import has_new_merger
    from qvl_vision.tiny import tiny_encoder

    base = tiny(tmp_path / "base")
    swapped = save(*swap(base, str(tiny_encoder(tmp_path / "encoder"))), tmp_path / "swapped")
    digits = data / "digits"
    lists = f"data={{train: {digits}}}"
    steps = ["train.steps=1", "evaluate.every=null", "evaluate.early_stop=null", "checkpoint.every=null"]
    given = [f"model.name={swapped}", lists, *steps]
    done = qvl_sft("train", "tiny_lora", *given, "--out", str(tmp_path / "no"))
    assert done.code == 2
    assert "`tune.merger` must be `{mode: full, lr: 1e-3}`" in done.err
    assert qvl_sft("check", "tiny_lora", *given).code == 2
    learning = [*given, "tune.merger={mode: full, lr: 1e-3}"]
    assert "too low for a new merger" in qvl_sft("check", "tiny_lora", *given, "tune.merger={mode: full, lr: 2e-5}").out
    done = qvl_sft("train", "tiny_lora", *learning, "--out", str(tmp_path / "run"))
    assert done.code == 0, done.err
    done = qvl_sft("merge", str(tmp_path / "run"), "--out", str(tmp_path / "merged"))
    assert done.code == 0, done.err
    assert has_new_merger(open_config(str(swapped)))
    assert not has_new_merger(open_config(str(tmp_path / "merged")))
