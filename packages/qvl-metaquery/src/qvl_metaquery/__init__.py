"""Qwen3-VL that draws: learned queries, a connector and Sana."""

from importlib.metadata import version

__version__ = version("qvl-metaquery")
