"""`qvl-mdlm tiny`: a random Qwen3-VL of 1.7M parameters that loads like the real one, to be converted."""

from pathlib import Path


def tiny(folder: Path, seed: int = 0, thinking: bool = False) -> str:
    """Write the autoregressive model and its processor to `folder`."""
    from qvl_core.qwen3vl.tiny import tiny as build

    build(folder, seed=seed, thinking=thinking)
    return f"{folder}: a tiny Qwen3-VL; train it with `qvl-mdlm train tiny model.name={folder}`."
