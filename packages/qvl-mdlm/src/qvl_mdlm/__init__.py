"""Qwen3-VL as a masked diffusion model: converted, trained, sampled, infilled and evaluated."""

from importlib.metadata import version

__version__ = version("qvl-mdlm")
