"""The command line in this process, and an adapter as training leaves it."""

import contextlib
import io
import json
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from asking import digits

from qvl_core.qwen3vl.adapter import save_adapter
from qvl_core.qwen3vl.load import load_model, open_processor
from qvl_core.qwen3vl.lora import apply_tune
from qvl_core.recipe.blocks import Group, Model
from qvl_data.writers import write as write_samples
from qvl_mdlm.model import configured
from qvl_mdlm.recipe import Diffusion
from qvl_mdlm.settings import write_settings


class Done(NamedTuple):
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str


def qvl_mdlm(*args: str) -> Done:
    """Run `qvl-mdlm *args` in this process."""
    from qvl_mdlm.cli import app

    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = app.run(list(args))
    return Done(code, out.getvalue(), err.getvalue())


def write_adapter(folder: Path, base: Path, **diffusion: Any) -> Path:
    """An adapter on `base` whose values have moved, with what says how the base attends."""
    block, processor = Model(name=str(base)), open_processor(Model(name=str(base)))
    settings = Diffusion(**diffusion)
    model, _ = load_model(
        block,
        precision="fp32",
        device="cpu",
        configure=partial(configured, diffusion=settings),
    )
    apply_tune(model, {"llm": Group(mode="lora", rank=2)}, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    save_adapter(model, folder, str(base))
    write_settings(model.config, folder)
    processor.save_pretrained(folder)
    return folder


def write_choices(file: Path, count: int) -> Path:
    """Digits, of which the first have `choices` beside their messages, and further references."""
    samples = []
    for number, sample in enumerate(digits(count)):
        answer = sample.messages[-1].text
        fields: dict[str, Any] = {"references": [f"It is {answer}."]}
        if number < 3:
            fields["choices"] = [str(digit) for digit in range(10)]
        samples.append(sample.model_copy(update={"extra": json.dumps({"fields": fields})}))
    write_samples(samples, file)
    return file
