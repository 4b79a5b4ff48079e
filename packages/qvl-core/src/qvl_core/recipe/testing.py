"""For the tests of every package: what the comment at the head of a shipped recipe says, against what is true.

check_counts(head(recipe.text), apply_tune(meta_model(config), loaded.tune, seed=0))
"""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qvl_core.qwen3vl.lora import TuneTable
    from qvl_core.qwen3vl.plan import Plan

_UNITS = {"": 1, "M": 1e6, "B": 1e9}


def head(text: str) -> str:
    """The comment at the head of a recipe, in one line."""
    lines = text.splitlines()
    comment = lines[: next(number for number, line in enumerate(lines) if not line.startswith("#"))]
    return " ".join(line.lstrip("# ") for line in comment)


def check_counts(head: str, table: "TuneTable") -> None:
    """`Trains 60.3M parameters` is what the tune table counts, to the last digit; so is `of 4.44B`, if it is said."""
    trained = re.search(r"[Tt]rains ([\d.,]*\d)([MB]?) parameters", head)
    assert trained is not None, head
    whole = re.search(r"\bof ([\d.]+)([MB])\b", head)
    for said, counted in ((trained, table.trainable), (whole, table.parameters)):
        if said is not None:
            half = 0.51 * 10 ** -len(said[1].partition(".")[2])
            assert abs(float(said[1].replace(",", "")) - counted / _UNITS[said[2]]) <= half, (head, counted)


def check_plan(head: str, planned: "Plan") -> None:
    """`planned: 13.6 GiB` is what a device needs by the plan, within 2 %, if it is said."""
    if said := re.search(r"planned: ([\d.]+) GiB", head):
        needed = planned.needed / 2**30
        assert abs(needed - float(said[1])) <= 0.02 * float(said[1]), (head, needed)
