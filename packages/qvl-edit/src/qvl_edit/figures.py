"""What a drawn picture is worth where the right one is known, without a judge. Pure functions of pictures.

Colours count from -1 (black) to 1 (white) in errors, as the model has them, and from 0 to 255 elsewhere.

    error        mean |output - target|
    psnr, ssim   torchmetrics'; Wang et al. 2004 for SSIM
    background   the places that the target leaves as they are in the source, and how far the output does: their mean
                 |output - source|, and its PSNR. Benchmarks with masks drawn by hand measure the same outside of them
                 (PIE-Bench of Ju et al. 2023, arXiv:2310.01506, as PSNR, mean squared error and SSIM)
    shift        of the output against source and target, in pixels (`alignment`)

Shapes: H x W pixels in RGB.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageFilter

from qvl_core.run import Scalar
from qvl_edit.alignment import shift
from qvl_edit.wanted import Edited, Pixels, pixels

SAME = 8  # of 255: what a channel may differ by in what is left as it is
AROUND = 5  # pixels: sides of the square about a place in which nothing else may change
LEAST = 0.05  # part of a picture: a smaller background says nothing
ROUNDING = 1 / 12  # mean squared error of rounding to whole numbers: no PSNR is above it, 58.9 dB


def measured(edited: Edited) -> dict[str, Scalar]:
    """The figures of one picture; None: nobody knows."""
    output, source, target = edited.output(), edited.source(), edited.target()
    found: dict[str, Scalar] = {}
    if target is not None:
        found |= {"error": error(output, target), "psnr": psnr(pixels(output), pixels(target))}
        found["ssim"] = ssim(output, target)
        found["target_shift"] = _shift(target, output)
    if source is not None:
        found["source_shift"] = _shift(source, output)
    if source is not None and target is not None:
        found["nearer_target"] = error(output, target) < error(output, source)
        found |= background(source, target, output)
    return found


def error(one: Image.Image, other: Image.Image) -> float:
    """Mean absolute difference of two pictures of one size, 0..2."""
    return float(np.abs(pixels(one) - pixels(other)).mean()) / 127.5


def psnr(one: Pixels, other: Pixels) -> float:
    """In dB, of pixels in 0..255; of what is equal, as if it had been rounded once more."""
    if float(np.square(one - other).mean()) < ROUNDING:
        return float(10 * np.log10(255**2 / ROUNDING))
    import torch
    from torchmetrics.functional.image import peak_signal_noise_ratio

    return float(peak_signal_noise_ratio(torch.from_numpy(one), torch.from_numpy(other), data_range=255.0))


def ssim(one: Image.Image, other: Image.Image) -> float:
    """Structural similarity, -1..1, with Gaussian windows of 11 pixels."""
    import torch
    from torchmetrics.functional.image import structural_similarity_index_measure

    both = [torch.from_numpy(pixels(picture)).permute(2, 0, 1)[None] for picture in (one, other)]  # (1, 3, H, W)
    return float(structural_similarity_index_measure(*both, data_range=255.0))


def unchanged(source: Image.Image, target: Image.Image) -> NDArray[np.bool_]:
    """(H, W): where, and all about where, the target shows what the source does."""
    apart = ImageChops.difference(source, target)
    most = Image.fromarray(np.asarray(apart).max(2)).filter(ImageFilter.MaxFilter(AROUND))
    return np.asarray(most) <= SAME


def background(source: Image.Image, target: Image.Image, output: Image.Image) -> Mapping[str, float]:
    """How far the output leaves as it is what the target leaves as it is; only how much that is, where it is little."""
    kept = unchanged(source, target)
    part = {"background": float(kept.mean())}
    if part["background"] < LEAST:
        return part
    before, after = pixels(source)[kept], pixels(output)[kept]  # (N, 3)
    return part | {
        "background_error": float(np.abs(after - before).mean()) / 127.5,
        "background_psnr": psnr(after, before),
    }


def _shift(first: Image.Image, second: Image.Image) -> float | None:
    """In pixels; None where the two do not show enough of the same."""
    found = shift(pixels(first), pixels(second))
    return found.distance if found.sure else None
