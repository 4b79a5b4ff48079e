"""What every QVL package stands on: recipes, command line, run folder, report, training loop, Qwen3-VL.

Importing this package is cheap (no torch, no pydantic); each room is imported by its own name.
"""

import logging
from importlib.metadata import version

__version__ = version("qvl-core")

# What libraries say when transformers or accelerate imports them, whether they are used or not.
logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)  # torchao, of torch
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # it misses kernels that are optional
logging.getLogger("DeepSpeed").addFilter(lambda record: record.funcName != "get_accelerator")  # there is no GPU
