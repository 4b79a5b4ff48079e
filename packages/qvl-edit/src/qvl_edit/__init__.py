"""Qwen-Image-Edit, fine-tuned on pairs of pictures."""

from importlib.metadata import version

from qvl_edit.train import train

__all__ = ["train"]

__version__ = version("qvl-edit")
