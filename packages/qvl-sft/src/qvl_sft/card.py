"""The model card (README.md) of an exported folder: what it was made from, how, and what it reaches."""

from pathlib import Path
from typing import Any

import yaml

from qvl_core.recipe.blocks import Model
from qvl_core.recipe.load import load
from qvl_core.run import RunFolder
from qvl_sft.recipe import RECIPE, SFTRecipe

SHOWN = ("tune", "batch", "optim", "schedule", "train", "media")
"""Blocks of the recipe that are shown; the others name files of whoever trained it."""

_MODEL = """\
from transformers import AutoModelForImageTextToText, AutoProcessor
{swapped}
processor = AutoProcessor.from_pretrained("{name}")
model = AutoModelForImageTextToText.from_pretrained("{name}", dtype="auto", device_map="auto")
content = [{{"type": "image", "path": "photo.jpg"}}, {{"type": "text", "text": "What is this?"}}]
inputs = processor.apply_chat_template(
    [{{"role": "user", "content": content}}],
    add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
).to(model.device)
print(processor.batch_decode(model.generate(**inputs, max_new_tokens=256))[0])
"""

_ADAPTER = """\
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor
{swapped}
processor = AutoProcessor.from_pretrained("{name}")
base = AutoModelForImageTextToText.from_pretrained("{base}", dtype="auto", device_map="auto")
model = PeftModel.from_pretrained(base, "{name}")
"""


def card(name: str, source: Path, base: Model, *, adapter: bool, stock: bool) -> str:
    """The card of the folder `name`, exported from the weights in `source`.

    base     what the weights were trained from, or what was exported as it is
    adapter  the folder holds an adapter, not a whole model
    stock    whether transformers knows the model without qvl_vision
    """
    run = _run_of(source)
    origin = _origin(source, base, run)
    on_hub = "/" in origin
    head = {
        **({"base_model": origin} if on_hub else {}),
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["qvl", "qwen3-vl", *(["lora"] if adapter else [])],
    }
    swapped = "" if stock else "import qvl_vision  # makes the swapped vision tower known: pip install qvl-vision\n"
    use = (_ADAPTER if adapter else _MODEL).format(name=name, base=origin, swapped=swapped)
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n",
        f"# {name}\n\n{'An adapter for' if adapter else 'Made from'} {f'`{origin}`'} with qvl-sft.\n",
        f"## Use\n\n```python\n{use}```\n",
        *_training(run),
        "## Licence\n\n"
        f"The licence of `{origin}` holds for these weights. What the training data's licences ask for comes on top.\n",
    ]
    return "\n".join(parts)


def recipe_of(source: Path) -> SFTRecipe | None:
    """The recipe of the run whose final/ this is; None if it is no run's."""
    run = _run_of(source)
    return load(RECIPE, str(run.recipe_file)) if run else None


def _run_of(source: Path) -> RunFolder | None:
    run = RunFolder(source.parent)
    return run if source.name == "final" and run.recipe_file.is_file() else None


def _origin(source: Path, base: Model, run: RunFolder | None) -> str:
    """The base as others know it: a hub id, or what its folder or run is called (a path means nothing elsewhere)."""
    name = base.name if run is None or Path(base.name) != source else str(run.read_environment().get("base", base.name))
    folder = Path(name)
    if not folder.is_absolute() and not folder.is_dir():
        return name
    return folder.parent.name if folder.name == "final" else folder.name


def _training(run: RunFolder | None) -> list[str]:
    if run is None:
        return []
    recipe = load(RECIPE, str(run.recipe_file))
    sources = ", ".join(f"{source.weight:g} x {Path(source.source).name}" for source in recipe.data.train)
    blocks = recipe.model_dump(mode="json", exclude_defaults=True, include=set(SHOWN))
    shown = yaml.safe_dump({name: blocks[name] for name in SHOWN if name in blocks}, sort_keys=False)
    text = f"## Training\n\nData (weight x name): {sources}.\n\n```yaml\n{shown}```\n"
    figures = {name: value for name, value in (run.read_result() or {}).items() if _is_figure(name, value)}
    if not figures:
        return [text]
    rows = "".join(f"| {name.replace('_', ' ')} | {value:.4f} |\n" for name, value in figures.items())
    return [text, f"## Figures\n\n| | |\n|---|---:|\n{rows}"]


def _is_figure(name: str, value: Any) -> bool:
    return name.startswith(("test_", "validation_")) and isinstance(value, float)
