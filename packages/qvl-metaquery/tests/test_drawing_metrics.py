"""CLIP score and FID with weights that are given: what the formulae say, nothing downloaded, no pickle run."""

import importlib.util
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from qvl_core.errors import BadInput
from qvl_data.drawing.prompts import Asked
from qvl_metaquery.layouts import Sheet
from qvl_metaquery.metrics import chosen, clip_score, frechet_distance
from qvl_metaquery.scorers import Picture, scored


def noise(seed: int, file: Path, level: int = 255) -> Path:
    values = np.random.default_rng(seed).integers(0, level, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(values).save(file)
    return file


def drawn(folder: Path, texts: list[str]) -> list[Picture]:
    return [
        Picture(Sheet(noise(number, folder / f"drawn-{number}.png"), Asked(str(number), text), (0,)), 0)
        for number, text in enumerate(texts)
    ]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    names = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={name: number for number, name in enumerate(names)}, merges=[], model_max_length=77)
    body = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    config = CLIPConfig(
        text_config={**body, **special, "vocab_size": len(names)},
        vision_config={**body, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    small = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    folder = tmp_path_factory.mktemp("clip")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        CLIPModel(config).save_pretrained(folder)
    CLIPProcessor(image_processor=small, tokenizer=tokenizer).save_pretrained(folder)
    return folder


def test_clip_score_is_the_cosine_of_picture_and_prompt(clip: Path, tmp_path: Path) -> None:
    from transformers import CLIPModel, CLIPProcessor

    model, processor = CLIPModel.from_pretrained(clip).eval(), CLIPProcessor.from_pretrained(clip)
    texts = ["a red fox", "七", "a very long tale of a fox " * 20]
    pictures = drawn(tmp_path, texts)
    found = scored("clip", chosen((), clip=clip)["clip"], pictures)
    for picture, scores in zip(pictures, found.each, strict=True):
        image = processor(images=[picture.opened()], return_tensors="pt")
        words = processor(text=[picture.prompt], return_tensors="pt", truncation=True)
        with torch.no_grad():
            one = model.get_image_features(**image).pooler_output[0]
            other = model.get_text_features(**words).pooler_output[0]
        cosine = torch.cosine_similarity(one, other, 0)
        assert scores["score"] == pytest.approx(max(0.0, 100 * float(cosine)), abs=1e-3)
    assert found.all_figures()["score"] == pytest.approx(np.mean([one["score"] for one in found.each]))
    assert len({one["score"] for one in found.each}) > 1


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of random weights in the layout of the published one."""
    extractor = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    file = tmp_path_factory.mktemp("inception") / "inception.pth"
    torch.save({}, file)

    class Blank(extractor.FeatureExtractorInceptionV3):  # type: ignore[misc, name-defined]
        def load_state_dict(self, *args: Any, **options: Any) -> None:
            pass

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        blank = Blank("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(file))
    torch.save(blank.state_dict(), file)
    return file


@pytest.mark.slow
def test_fid_is_nothing_to_itself_and_grows_with_the_difference(inception: Path, tmp_path: Path) -> None:
    pictures = drawn(tmp_path, ["x"] * 4)
    for name, level in (("same", 255), ("other", 100)):
        (tmp_path / name).mkdir()
        for seed in range(4):
            noise(seed, tmp_path / name / f"{seed}.png", level)
    near, far = (
        scored("fid", chosen((), fid=tmp_path / name, fid_weights=inception)["fid"], pictures).figures["distance"]
        for name in ("same", "other")
    )
    assert abs(near) < 1e-2 * far


def test_weights_that_would_run_code_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("torchmetrics")

    class Runs:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    weights = tmp_path / "bad.pth"
    weights.write_bytes(pickle.dumps(Runs()))
    pictures = drawn(tmp_path, ["x", "y"])
    with pytest.raises(BadInput, match="something else than tensors"):
        frechet_distance(tmp_path, weights)(pictures)
    assert not (tmp_path / "ran").exists()


def test_what_is_lacking_is_known_before_anything_is_drawn(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadInput, match="holds no CLIP model"):
        clip_score(tmp_path)
    with pytest.raises(BadInput, match="needs --fid FOLDER"):
        chosen((), fid_weights=tmp_path / "w.pth")
    with pytest.raises(BadInput, match="there is no such file; give pt_inception"):
        frechet_distance(tmp_path, tmp_path / "w.pth")
    (tmp_path / "w.pth").write_bytes(b"")
    with pytest.raises(BadInput, match="0 pictures there"):
        frechet_distance(tmp_path, tmp_path / "w.pth")
    find = importlib.util.find_spec
    monkeypatch.setattr("qvl_metaquery.metrics.find_spec", lambda name: None if name == "torchmetrics" else find(name))
    with pytest.raises(BadInput, match=r"torchmetrics is not installed; run: pip install 'qvl-metaquery\[metrics\]'"):
        frechet_distance(tmp_path, tmp_path / "w.pth")


def test_a_clip_model_that_is_not_whole_is_one_sentence(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((clip / "config.json").read_bytes())
    with pytest.raises(BadInput, match="cannot be read"):
        clip_score(tmp_path)([])
