"""Run as a program: what the swapped models in some folders say, in a process that knows only their folders.

python reload.py PLUGIN FOLDER ...      prints a JSON object: folder -> digests of features, logits, generation
"""

import hashlib
import json
import sys
from pathlib import Path

import torch


def digest(*tensors: torch.Tensor) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().contiguous().float().numpy().tobytes())
    return found.hexdigest()


def said(model, processor, sizes) -> list[str]:
    """Digests of the tower's tokens, the logits and a generated answer."""
    from samples import answered, library_inputs

    inputs = library_inputs(processor, sizes)
    with torch.no_grad():
        out = model.model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
        logits = model(**inputs).logits
    return [digest(out.pooler_output, *out.deepstack_features), digest(logits), digest(answered(model, inputs))]


def main() -> None:
    from qvl_core.cli.plugin import execute
    from qvl_vision import load

    torch.set_num_threads(1)
    plugin, *folders = sys.argv[1:]
    execute(plugin)
    from samples import SIZES

    print(json.dumps({folder: said(*load(folder), SIZES) for folder in folders}))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
