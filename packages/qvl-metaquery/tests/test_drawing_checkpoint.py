"""Where a trained model lies: a run's final/, a checkpoint in its middle, a later stage's; and what is none of them."""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SanaTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from qvl_core.errors import BadInput, QVLError
from qvl_core.recipe.load import load
from qvl_data.example.drawings import drawings
from qvl_data.writers import write
from qvl_metaquery import MetaQueryPipeline, find_newest_checkpoint, train
from qvl_metaquery.recipe import RECIPE
from qvl_metaquery.settings import Settings
from qvl_metaquery.tiny import tiny_transformer
from qvl_metaquery.weights import OWN


def trained(out: Path, data: Path, *changes: str) -> Path:
    small = ["queries.number=4", "batch.size=4", "train.steps=2", "checkpoint.every=1", f"data={{train: {data}}}"]
    train(load(RECIPE, "tiny", [*small, *changes], "qvl_metaquery"), out=out)
    return out


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "drawings.parquet"
    write(itertools.islice(drawings("train"), 8), file)
    return file


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    return trained(tmp_path_factory.mktemp("stage") / "run", data)


@pytest.fixture(scope="module")
def later(run: Path, data: Path) -> Path:
    """A second stage that trains the connector alone."""
    frozen = "tune={connector: {mode: full}, queries: {mode: frozen}, transformer: {mode: frozen}}"
    names = [f"model.name={Settings.read(run).mllm}", f"sana.name={Settings.read(run).sana}"]
    return trained(run.parent / "later", data, frozen, *names, f"model.init_from={run / 'final'}")


def unfinished(run: Path, to: Path) -> Path:
    """A copy of a run as it was before it ended."""
    shutil.copytree(run, to, ignore=shutil.ignore_patterns("final", "result.json"))
    return to


def latents(folder: Path) -> Tensor:
    found: list[Tensor] = []
    pipeline = MetaQueryPipeline.from_pretrained(folder)
    pipeline("a handwritten seven", num_inference_steps=3, on_step=lambda number, latents: found.append(latents))
    return found[-1]


@pytest.mark.parametrize("stage", ["run", "later"])
def test_a_checkpoint_in_the_middle_draws_as_the_end_will(
    stage: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    run = request.getfixturevalue(stage)
    assert find_newest_checkpoint(run) == run / "final"
    middle = unfinished(run, tmp_path / "run")
    assert find_newest_checkpoint(str(middle)) == middle / "checkpoints" / "step-000002"
    end = latents(run)
    torch.testing.assert_close(latents(middle), end)
    torch.testing.assert_close(latents(run / "checkpoints" / "step-000002"), end)
    assert (latents(run / "checkpoints" / "step-000001") - end).abs().max() > 1e-4


def test_a_later_stage_is_opened_from_anywhere_and_needs_no_stage_that_it_trained_anew(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Path(shutil.copytree(run, tmp_path / "first"))
    names = [f"model.name={Settings.read(run).mllm}", f"sana.name={Settings.read(run).sana}"]
    monkeypatch.chdir(tmp_path)
    second = trained(tmp_path / "second", data, *names, "model.init_from=first")  # the run: its final/
    monkeypatch.chdir(tmp_path.parent)
    end = latents(second)
    middle = unfinished(second, tmp_path / "unfinished")
    torch.testing.assert_close(latents(middle), end)
    shutil.rmtree(first)
    torch.testing.assert_close(latents(middle), end)


def parts_named(folder: Path) -> tuple[str, str]:
    values = json.loads((folder / "metaquery.json").read_text("utf-8"))
    return values["mllm"], values["sana"]


def test_a_run_can_be_moved(run: Path, tmp_path: Path) -> None:
    assert parts_named(run) == ("./base-0/qwen", "./base-0/sana")
    assert parts_named(run / "final") == ("../base-0/qwen", "../base-0/sana")
    end, moved = latents(run), tmp_path / "elsewhere/moved"
    moved.parent.mkdir()
    run.rename(moved)
    try:
        torch.testing.assert_close(latents(moved), end)
        torch.testing.assert_close(latents(moved / "checkpoints/step-000002"), end)
        assert Settings.read(moved / "final").mllm == str(moved.resolve() / "base-0/qwen")
    finally:
        moved.rename(run)


def test_parts_elsewhere_keep_their_place(later: Path, run: Path, drawer: Path) -> None:
    names = (str(run.resolve() / "base-0/qwen"), str(run.resolve() / "base-0/sana"))
    assert parts_named(later) == parts_named(later / "final") == names
    assert parts_named(drawer) == (Settings.read(drawer).mllm, Settings.read(drawer).sana)


def test_parts_that_are_gone_are_one_sentence(run: Path, tmp_path: Path) -> None:
    alone = Path(shutil.copytree(run / "final", tmp_path / "alone/final"))
    with pytest.raises(
        BadInput, match=r"final: is used with .*alone/base-0/qwen, and there is no such folder; .*whole"
    ):
        MetaQueryPipeline.from_pretrained(alone)


def test_a_later_stage_begins_with_every_bit_of_the_earlier_one(run: Path, data: Path, tmp_path: Path) -> None:
    names = [f"model.name={Settings.read(run).mllm}", f"sana.name={Settings.read(run).sana}"]
    still = ["optim.lr=1e-12", "train.precision=bf16", f"model.init_from={run / 'final'}"]
    trained(tmp_path / "second", data, *names, *still)
    for file in ("connector.safetensors", "transformer/diffusion_pytorch_model.safetensors"):
        before, after = (load_file(folder / "final" / file) for folder in (run, tmp_path / "second"))
        for name, value in before.items():
            torch.testing.assert_close(after[name], value, atol=1e-9, rtol=1e-6)


def test_the_shift_of_sampling_is_no_part_of_what_is_learned(run: Path, data: Path, tmp_path: Path) -> None:
    again = trained(unfinished(run, tmp_path / "run"), data, "flow.sample_shift=2")
    assert Settings.read(again / "final").sample_shift == 2
    ours, theirs = (load_file(folder / "final" / OWN) for folder in (again, run))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    with pytest.raises(BadInput, match=r"finished.*\(flow\.sample_shift was 2\.0, is "):  # as its final/ says
        trained(again, data)


def test_the_width_that_null_stands_for_makes_no_other_run(run: Path, data: Path, tmp_path: Path) -> None:
    again = trained(unfinished(run, tmp_path / "run"), data, "connector.width=128")
    trained(again, data)  # finished
    assert Settings.read(again).width is None
    with pytest.raises(BadInput, match=r"finished.*\(connector\.width was absent, is 64\)"):
        trained(again, data, "connector.width=64")
    (again / "result.json").unlink()
    with pytest.raises(BadInput, match=r"another run.*connector\.width was absent, is 64"):
        trained(again, data, "connector.width=64")


def test_a_damaged_checkpoint_is_passed_over(run: Path, tmp_path: Path) -> None:
    middle = unfinished(run, tmp_path / "run")
    for step in (2, 1):
        assert find_newest_checkpoint(middle).name == f"step-00000{step}"
        file = middle / "checkpoints" / f"step-00000{step}" / "weights-00000.safetensors"
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(QVLError, match=r"no checkpoint is whole"):
        find_newest_checkpoint(middle)
    shutil.rmtree(middle / "checkpoints")
    (middle / "checkpoints").mkdir()
    with pytest.raises(BadInput, match=r"has no checkpoint yet; train on"):
        find_newest_checkpoint(middle)


@pytest.fixture
def copied(drawer: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(drawer, tmp_path / "final"))


def changed(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | values), encoding="utf-8")


def test_folders_that_hold_no_model_are_one_sentence(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"there is no such folder"):
        MetaQueryPipeline.from_pretrained(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=r"no metaquery\.json there, so it is no model that draws"):
        MetaQueryPipeline.from_pretrained(tmp_path / "empty")
    changed(copied / "metaquery.json", queries="many")
    with pytest.raises(BadInput, match=r"metaquery\.json: queries: .*copy it again"):
        MetaQueryPipeline.from_pretrained(copied)
    (copied / "metaquery.json").write_text("{", encoding="utf-8")
    with pytest.raises(BadInput, match=r"metaquery\.json: .*copy it again"):
        MetaQueryPipeline.from_pretrained(copied)


def test_queries_and_connector_have_to_be_there_and_readable(copied: Path) -> None:
    (copied / OWN).write_bytes(b"no tensors")
    with pytest.raises(BadInput, match=r"connector\.safetensors: cannot be read"):
        MetaQueryPipeline.from_pretrained(copied)
    (copied / OWN).unlink()
    with pytest.raises(BadInput, match=r"connector\.safetensors: cannot be read"):
        MetaQueryPipeline.from_pretrained(copied)


@pytest.mark.parametrize("ignore", [False, True])
def test_weights_of_another_size_are_named_and_never_drawn_at_random(ignore: bool, copied: Path) -> None:
    changed(copied / "metaquery.json", queries=5)
    with pytest.raises(BadInput, match=r"queries is \(10, 128\) and should be \(7, 128\)"):
        MetaQueryPipeline.from_pretrained(copied, ignore_mismatched_sizes=ignore)
    changed(copied / "metaquery.json", queries=8, layers=2)
    with pytest.raises(BadInput, match=r"has no connector\.layers\.1\."):
        MetaQueryPipeline.from_pretrained(copied, ignore_mismatched_sizes=ignore)
    changed(copied / "metaquery.json", layers=0)
    with pytest.raises(BadInput, match=r"connector\.layers\.0\..* has no place in the model"):
        MetaQueryPipeline.from_pretrained(copied, ignore_mismatched_sizes=ignore)


def test_a_transformer_of_another_class_or_another_size_is_refused(copied: Path) -> None:
    config = copied / "transformer" / "config.json"
    changed(config, _class_name="PixArtTransformer2DModel")
    with pytest.raises(BadInput, match=r"holds a PixArtTransformer2DModel.*use SanaTransformer2DModel"):
        MetaQueryPipeline.from_pretrained(copied)
    changed(config, _class_name="SanaTransformer2DModel")
    file = next((copied / "transformer").glob("*.safetensors"))
    weights = load_file(file)
    save_file({name: value for name, value in weights.items() if name != "proj_out.bias"}, file)
    with pytest.raises(BadInput, match=r"transformer: 1 weights are missing, such as proj_out\.bias"):
        MetaQueryPipeline.from_pretrained(copied)
    save_file(weights | {"proj_out.bias": torch.zeros(9)}, file)
    with pytest.raises(BadInput, match=r"transformer: cannot be read \(.*proj_out\.bias"):
        MetaQueryPipeline.from_pretrained(copied, ignore_mismatched_sizes=True)


def test_a_checkpoint_over_another_sana_is_refused(run: Path, tmp_path: Path) -> None:
    middle = unfinished(run, tmp_path / "run")
    sana = Path(shutil.copytree(Settings.read(run).sana, tmp_path / "sana"))
    shutil.rmtree(sana / "transformer")
    smaller = SanaTransformer2DModel.from_config({**tiny_transformer(4, 4).config, "num_layers": 1})
    smaller.save_pretrained(sana / "transformer")
    changed(middle / "metaquery.json", sana=str(sana))
    with pytest.raises(BadInput, match=r"transformer\.transformer_blocks\.\d.* is not there; sana\.name"):
        MetaQueryPipeline.from_pretrained(middle)


def test_a_scheduler_has_to_say_how_noise_is_shifted(copied: Path, tmp_path: Path) -> None:
    sana = Path(shutil.copytree(Settings.read(copied).sana, tmp_path / "sana"))
    changed(copied / "metaquery.json", sana=str(sana))
    config = sana / "scheduler" / "scheduler_config.json"
    assert MetaQueryPipeline.from_pretrained(copied).shift == 1.0
    changed(config, flow_shift=3.0)
    assert MetaQueryPipeline.from_pretrained(copied).shift == 3.0
    config.write_text('{"_class_name": "DPMSolverMultistepScheduler"}', encoding="utf-8")
    with pytest.raises(BadInput, match=r"says nothing of a shift.*set flow\.sample_shift, 3 for Sana"):
        MetaQueryPipeline.from_pretrained(copied)
    changed(copied / "metaquery.json", sample_shift=2.0)
    assert MetaQueryPipeline.from_pretrained(copied).shift == 2.0


def test_a_precision_that_is_none_for_drawing_is_refused(drawer: Path) -> None:
    with pytest.raises(BadInput, match=r"torch_dtype: torch\.float64"):
        MetaQueryPipeline.from_pretrained(drawer, torch_dtype=torch.float64)
