"""Qwen3-VL as a masked diffusion model: converted, trained, sampled, infilled and evaluated."""

from importlib.metadata import version

from qvl_mdlm.train import train

__all__ = ["train"]
__version__ = version("qvl-mdlm")
