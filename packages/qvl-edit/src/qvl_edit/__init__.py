"""Qwen-Image-Edit, fine-tuned on pairs of pictures."""

from importlib.metadata import version

__version__ = version("qvl-edit")
