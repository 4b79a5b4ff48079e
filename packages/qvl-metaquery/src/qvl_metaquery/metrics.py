"""Scorers that need weights of others: CLIP score, and FID by torchmetrics (the extra `metrics`).

Nothing is downloaded: weights are files that are given, and no pickle among them is run. Importing this loads no torch.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from qvl_core.errors import BadInput, first_line
from qvl_metaquery.scorers import Picture, Scorer, Scores, named

if TYPE_CHECKING:
    from torch import Tensor

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
TOGETHER = 32  # pictures of one forward


def chosen(
    names: Sequence[str], clip: Path | None = None, fid: Path | None = None, fid_weights: Path | None = None
) -> dict[str, Scorer]:
    """The scorers that a command asks for. Raises BadInput for what is not there, before anything is drawn."""
    from qvl_metaquery import digit_score  # noqa: F401  (registers itself)

    scorers = named(names)
    if clip is not None:
        scorers["clip"] = clip_score(clip)
    if fid is not None or fid_weights is not None:
        if fid is None or fid_weights is None:
            raise BadInput("FID: needs --fid FOLDER of real pictures and --fid-weights FILE; give both.")
        scorers["fid"] = frechet_distance(fid, fid_weights)
    return scorers


def clip_score(folder: Path) -> Scorer:
    """CLIP score, 100 times the cosine of picture and prompt and at least 0, with the model in a folder.

    Hessel et al. 2021, arXiv:2104.08718, in the scale of torchmetrics (whose own does not run with transformers 5).
    """
    if not (folder / "config.json").is_file():
        raise BadInput(f"--clip {folder}: holds no CLIP model; download one, such as openai/clip-vit-large-patch14.")

    def score(pictures: Sequence[Picture]) -> Scores:
        import torch
        from transformers import CLIPModel, CLIPProcessor

        from qvl_core.qwen3vl.load import quiet

        try:
            with quiet(bars=False):
                model = CLIPModel.from_pretrained(folder, use_safetensors=True).to(_device()).eval()
                processor = CLIPProcessor.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise BadInput(f"--clip {folder}: cannot be read ({first_line(error)}); download it again.") from None
        each = []
        for start in range(0, len(pictures), TOGETHER):
            part = pictures[start : start + TOGETHER]
            inputs = processor(
                text=[one.prompt for one in part],
                images=[one.opened() for one in part],
                return_tensors="pt",
                padding=True,
                truncation=True,
            )
            with torch.no_grad():
                said = model(**inputs.to(_device()))
            cosine = (said.image_embeds * said.text_embeds).sum(-1)  # both of unit length
            each += [{"score": max(0.0, 100 * float(value))} for value in cosine]
        return Scores(each)

    return score


def frechet_distance(real: Path, weights: Path) -> Scorer:
    """FID (Heusel et al. 2017, arXiv:1706.08500) to the pictures of a folder, by torch-fidelity's Inception."""
    needs("torchmetrics", "torch_fidelity")
    if not weights.is_file():
        raise BadInput(f"--fid-weights {weights}: there is no such file; give pt_inception-2015-12-05-6726825d.pth.")
    files = sorted(file for file in real.rglob("*") if file.suffix.lower() in PICTURES)
    if len(files) < 2:
        raise BadInput(f"--fid {real}: {len(files)} pictures there; name a folder with many (10,000 are usual).")

    def score(pictures: Sequence[Picture]) -> Scores:
        from torchmetrics.image.fid import FrechetInceptionDistance

        _check_plain(weights)
        metric = FrechetInceptionDistance(feature_extractor_weights_path=str(weights)).to(_device())
        for file in files:
            metric.update(as_bytes(_rgb(file)), real=True)
        for picture in pictures:
            metric.update(as_bytes(picture.opened()), real=False)
        return Scores(figures={"distance": float(metric.compute())})

    return score


def needs(*libraries: str) -> None:
    """Raise BadInput for a library that is not installed."""
    for library in libraries:
        if find_spec(library) is None:
            raise BadInput(f"{library} is not installed; run: pip install 'qvl-metaquery[metrics]'")


def as_bytes(picture: Image.Image) -> "Tensor":
    """(1, 3, H, W) uint8."""
    import numpy as np
    import torch

    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].to(_device())


def _check_plain(weights: Path) -> None:
    """Raise BadInput for a file that holds more than tensors: the library would run what is pickled in it."""
    import pickle

    import torch

    try:
        torch.load(weights, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError):
        raise BadInput(f"--fid-weights {weights}: holds something else than tensors; download it again.") from None


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _rgb(file: Path) -> Image.Image:
    with Image.open(file) as picture:
        return picture.convert("RGB")
