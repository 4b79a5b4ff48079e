"""Regional compilation: the parts of each layer (norms, attention, MLP) through torch.compile, in place.

All layers of a kind share one compiled graph, so that a model of 36 layers takes the time of one. Checkpointing and
sharding act on whole layers, around what is compiled; the attention kernel, which looks at document lengths, stays as
it is. Names of parameters and saved files do not change.
"""

import os
import shutil
import sys
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import AttentionInterface

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.attention import NAME, packed_attention


def compile_layers(model: Any) -> None:
    """Compile the decoder layers and the tower's blocks at their first forward in training, for any number of tokens.

    Evaluation runs as it is: generation calls layers in so many ways that torch would compile for each and give up.
    """
    AttentionInterface.register(NAME, torch.compiler.disable(packed_attention))
    blocks = getattr(model.model.visual, "blocks", ())
    for layer in (*model.model.language_model.layers, *blocks):
        for part in layer.children():
            _compile(part)


def check_compiler(device: str) -> None:
    """Raise BadInput where torch.compile would find no compiler for what it writes: C++ for a CPU, and C, by which
    Triton starts its kernels, for a GPU (`device`: cpu or cuda)."""
    if device == "cpu":
        usual = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
        language, names = "C++", [os.environ.get("CXX", usual)]
    else:
        language, names = "C", [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang", "cl"]
    if not any(shutil.which(name) for name in names):
        raise BadInput(
            f"speed.compile: needs a {language} compiler, and there is no {' or '.join(names)} here; install one, or "
            "remove the key."
        )


def _compile(part: nn.Module) -> None:
    plain, compiled = part.forward, torch.compile(part.forward, dynamic=True)
    part.forward = lambda *inputs, **options: (compiled if part.training else plain)(*inputs, **options)
