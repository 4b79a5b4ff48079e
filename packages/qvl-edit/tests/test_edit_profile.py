"""What a checkpoint is stands in the checkpoint."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as plus

from qvl_core.errors import BadInput
from qvl_edit.profile import PROFILES, Profile, read_profile

PLUS = "QwenImageEditPlusPipeline"


def folder(root: Path, pipeline: str, **transformer: Any) -> Path:
    (root / "transformer").mkdir(parents=True)
    (root / "model_index.json").write_text(json.dumps({"_class_name": pipeline}), encoding="utf-8")
    (root / "transformer" / "config.json").write_text(json.dumps(transformer), encoding="utf-8")
    return root


@pytest.mark.parametrize("name", [profile.name for profile in PROFILES])
def test_a_tiny_checkpoint_is_known(checkpoint: Callable[..., Path], profile: Any, name: str) -> None:
    assert read_profile(checkpoint(name)) == profile(name)


def test_areas_are_the_pipelines_own(profile: Callable[[str], Profile]) -> None:
    assert (profile("edit-plus").vl_area, profile("edit-plus").area) == (plus.CONDITION_IMAGE_SIZE, plus.VAE_IMAGE_SIZE)


def test_the_transformer_decides_between_2509_and_2511(tmp_path: Path) -> None:
    assert read_profile(folder(tmp_path / "a", PLUS)).name == "edit-plus"
    assert read_profile(folder(tmp_path / "b", PLUS, zero_cond_t=False)).name == "edit-plus"
    assert read_profile(folder(tmp_path / "c", PLUS, zero_cond_t=True)).name == "edit-2511"


@pytest.mark.parametrize(
    ("pipeline", "transformer", "said"),
    [
        ("QwenImageLayeredPipeline", {}, "model_index.json: QwenImageLayeredPipeline is no pipeline that is trained"),
        ("QwenImageEditPipeline", {"zero_cond_t": True}, "zero_cond_t is set, which QwenImageEditPipeline does not"),
        (PLUS, {"use_layer3d_rope": True}, f"use_layer3d_rope is set, which {PLUS} does not have; take model_index"),
    ],
)
def test_another_checkpoint_is_refused(tmp_path: Path, pipeline: str, transformer: Any, said: str) -> None:
    with pytest.raises(BadInput, match=said) as error:
        read_profile(folder(tmp_path / "model", pipeline, **transformer))
    assert str(tmp_path) in str(error.value)
    assert str(error.value).count("\n") == 0


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"model_index.json: is not there, so this is no checkpoint"):
        read_profile(tmp_path)
    folder(tmp_path / "cut", PLUS)
    (tmp_path / "cut" / "model_index.json").write_text("{", encoding="utf-8")
    with pytest.raises(BadInput, match=r"model_index.json: is no JSON"):
        read_profile(tmp_path / "cut")
    (tmp_path / "cut" / "model_index.json").write_text("[]", encoding="utf-8")
    with pytest.raises(BadInput, match=r"holds no table"):
        read_profile(tmp_path / "cut")


def test_what_decides_embeddings_is_told_apart() -> None:
    said = {profile.name: json.dumps(profile.about()) for profile in PROFILES}
    assert said["edit-plus"] == said["edit-2511"]  # one text encoder, asked alike
    assert len(set(said.values())) == 4
