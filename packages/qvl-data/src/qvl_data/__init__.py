"""Samples, formats, media and chat encoding for fine-tuning Qwen3-VL. Installs and imports without torch.

Importing this package is cheap; each room is imported by its own name (`from qvl_data.dataset import Dataset`).
"""

from importlib.metadata import version

__version__ = version("qvl-data")
