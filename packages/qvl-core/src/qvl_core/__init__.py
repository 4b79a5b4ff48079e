"""What every QVL package stands on: recipes, command line, run folder, report, training loop, Qwen3-VL.

Importing this package is cheap (no torch, no pydantic); each room is imported by its own name.
"""

from importlib.metadata import version

__version__ = version("qvl-core")
