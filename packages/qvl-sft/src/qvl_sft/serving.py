"""The commands that serve an exported folder: vLLM's, and llama.cpp's with its mmproj file.

Sources, read in November 2026: vLLM's `lora/peft_helper.py` (what it takes as an adapter: no modules trained in full,
no DoRA, one scale) and `config/lora.py` (ranks); llama.cpp's `conversion/qwen3vl.py`, `convert_hf_to_gguf.py` and
`common/arg.cpp` (names of tensors, configuration keys and options).
"""

import json
import re
import shlex
from pathlib import Path
from typing import Any

from safetensors import safe_open

from qvl_core.qwen3vl.foreign import WEIGHTS_FILE
from qvl_core.qwen3vl.trained import adapter_config
from qvl_sft.card import recipe_of

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What --max-lora-rank takes."""

LENGTH = 32768
"""Tokens of a conversation where the training does not say; the model's own 262,144 would need the memory for it."""

_SERVED = re.compile(r"\.language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)\.lora_[AB]\.")


def not_as_lora(adapter: Path) -> str | None:
    """Why vLLM cannot serve an adapter beside its base, as the rest of a sentence about it; None if it can."""
    config = adapter_config(adapter)
    if whole := config.get("modules_to_save"):
        return f"has modules that were trained in full ({', '.join(whole)})"
    if config.get("use_dora"):
        return "is a DoRA adapter"
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        return "has several ranks or alphas"
    if config["r"] > VLLM_RANKS[-1]:
        return f"has rank {config['r']}, over {VLLM_RANKS[-1]}"
    with safe_open(adapter / WEIGHTS_FILE, framework="pt") as stored:
        others = [key for key in stored.keys() if not _SERVED.search(key)]  # noqa: SIM118 (not a dict)
    return f"adapts more than the language model's layers ({others[0]})" if others else None


def commands(to: str, name: str, source: Path, config: Any, processor: Any, base: str | None) -> str:
    """A shell script for the exported folder `name`, to be run in the folder that holds it.

    source  the weights that were exported, whose run says how long its samples were
    base    the model that an adapter is served beside
    """
    lines = _vllm(name, source, config, processor, base) if to == "vllm" else _llama_cpp(name, processor)
    return "#!/bin/sh\n" + f"# Run in the folder that holds {name}.\n" + "".join(f"{line}\n" for line in lines)


def only_commands(script: str) -> str:
    """A script without its comments."""
    return "\n".join(line for line in script.splitlines() if not line.startswith("#"))


def _vllm(name: str, source: Path, config: Any, processor: Any, base: str | None) -> list[str]:
    recipe = recipe_of(source)
    length = min(recipe.batch.max_length if recipe else LENGTH, config.text_config.max_position_embeddings)
    options = ["--max-model-len", str(length), "--limit-mm-per-prompt", json.dumps({"image": 4, "video": 1})]
    notes = [
        f"# {length} tokens is the longest conversation with its answer"
        + (", as in training" if recipe else "")
        + "; raise it if yours are longer.",
        "# Memory is set aside for the most pictures and videos of one request: --limit-mm-per-prompt.",
    ]
    if base is None:
        notes.append("# The size of pictures and videos is that of the training: it stands in the folder's own files.")
        return [*notes, shlex.join(["vllm", "serve", f"./{name}", *options])]
    rank = next(rank for rank in VLLM_RANKS if rank >= adapter_config(source)["r"])
    size = {key: processor.image_processor.size[key] for key in ("shortest_edge", "longest_edge")}
    lora = ["--enable-lora", "--lora-modules", f"{name}=./{name}", "--max-lora-rank", str(rank)]
    notes += [
        f'# Requests that name the model "{name}" are answered with the adapter.',
        "# size: pixels of a picture, as in training. vLLM takes it for a whole video too: leave it out for those.",
    ]
    kwargs = ["--mm-processor-kwargs", json.dumps({"size": size})]
    return [*notes, shlex.join(["vllm", "serve", base, *lora, *options, *kwargs])]


def _llama_cpp(name: str, processor: Any) -> list[str]:
    images = processor.image_processor
    token = (images.patch_size * images.merge_size) ** 2
    low, high = images.size["shortest_edge"] // token, images.size["longest_edge"] // token
    text, vision, small = f"{name}-bf16.gguf", f"mmproj-{name}-f16.gguf", f"{name}-Q4_K_M.gguf"
    convert = ["python", "convert_hf_to_gguf.py", f"./{name}"]
    tokens = ["--image-min-tokens", str(low), "--image-max-tokens", str(high)]
    run = ["llama-mtmd-cli", "-m", small, "--mmproj", vision, "--image", "photo.jpg", "-p", "What is this?", *tokens]
    return [
        "# convert_hf_to_gguf.py lies in llama.cpp's source folder, the other commands are built from it.",
        "# Two files: the language model, and the vision tower with its mergers (mmproj), which stays in 16 bits.",
        shlex.join([*convert, "--outtype", "bf16", "--outfile", text]),
        shlex.join([*convert, "--mmproj", "--outtype", "f16", "--outfile", vision]),
        shlex.join(["llama-quantize", text, small, "Q4_K_M"]),
        f"# Pictures take {low} to {high} tokens, as in training.",
        shlex.join(run),
    ]
