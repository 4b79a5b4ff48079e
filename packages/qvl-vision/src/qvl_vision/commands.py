"""What the verbs `swap`, `inspect` and `verify` do and print."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from rich.console import Console
from rich.text import Text

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.load import Precision
from qvl_vision import checkpoint
from qvl_vision.inspecting import inspect as look
from qvl_vision.swapping import swap as make
from qvl_vision.verifying import checks


def swap(
    base: str,
    encoder: Sequence[str],
    out: Path,
    merger: str,
    *,
    encoder_options: Sequence[str],
    merger_options: Sequence[str],
    precision: str | None,
    **settings: Any,
) -> None:
    """Make a swapped model, write it, say what it is and what comes next."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInput(f"--out {out}: is already there; choose a new folder.")
    model, processor = make(
        base,
        encoder,
        merger,
        encoder_options=pairs("--encoder-option", encoder_options),
        merger_options=pairs("--merger-option", merger_options),
        precision=cast("Precision | None", precision),
        **settings,
    )
    checkpoint.save(model, processor, out)
    Console().print(look(model, processor).rich())
    print(f"{out}: written. Its merger is random: check it with `qvl-vision verify {out}`, then train it "
          f"(qvl-sft train with model.name={out} and tune.merger).")  # fmt: skip


def inspect(folder: Path, as_json: bool) -> None:
    found = look(folder)
    if as_json:
        print(json.dumps(found.as_dict(), indent=2))
    else:
        Console().print(found.rich())


def verify(folder: Path) -> int:
    """0 if each check holds, else 1."""
    console, right = Console(), True
    for check in checks(folder):
        right = right and check.ok
        word = Text("ok    " if check.ok else "WRONG ", style="green" if check.ok else "bold red")
        console.print(word + Text(f"{check.name}: {check.found}", style="default"))
    return 0 if right else 1


def pairs(option: str, given: Sequence[str]) -> dict[str, Any]:
    """`queries=32` as {"queries": 32}. Raises BadInput."""
    values = {}
    for pair in given:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise BadInput(f'{option}: "{pair}" is no KEY=VALUE.')
        values[key] = yaml.safe_load(value)
    return values
