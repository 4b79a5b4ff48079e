"""Parts in the layout of diffusers, read whole or not at all: the library draws what is lacking at random."""

from pathlib import Path
from typing import Any

import torch

from qvl_core.errors import BadInput, first_line
from qvl_core.qwen3vl.load import quiet


def load_part(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """A model of the class `kind` from a folder. Raises BadInput for weights that are not just those of its config."""
    try:
        with quiet(bars=False):
            model, info = kind.from_pretrained(folder, torch_dtype=dtype, output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise BadInput(f"{folder}: cannot be read ({first_line(error)}); copy it again.") from None
    for problem in ("missing", "unexpected", "mismatched"):
        if names := sorted(map(str, info[f"{problem}_keys"])):
            raise BadInput(
                f"{folder}: {len(names)} weights are {problem}, such as {names[0]}; copy weights and config.json from "
                "one model."
            )
    return model
