"""For the tests of demos: their bars over several seeds.

assert not missed(demos("qvl_sft", tmp_path, range(5)), BARS)
"""

import json
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from qvl_core.demo import Bar

BELOW = 0.02  # how far a single seed may lie beyond a bar that the mean has to reach


def demos(module: str, folder: Path, seeds: Iterable[int], *words: str) -> list[dict[str, Any]]:
    """The result of a package's demo of each seed, each in a process of its own, whose CPU seconds are its own."""
    results = []
    for seed in seeds:
        out = folder / str(seed)
        command = [sys.executable, "-m", module, "demo", *words, "--out", str(out), "--seed", str(seed)]
        subprocess.run(command, check=True, capture_output=True)
        results.append(json.loads((out / "result.json").read_text(encoding="utf-8")))
    return results


def missed(
    results: Sequence[Mapping[str, Any]], bars: Mapping[str, Bar], exact: Collection[str] = ("seconds",)
) -> dict[str, list[Any]]:
    """Figures of several seeds that miss their bar, by name: their mean, or a single one by more than `BELOW`; of those
    in `exact` a single one by anything."""
    found = {name: [result[name] for result in results] for name in bars}
    return {
        name: values
        for name, values in found.items()
        if not bars[name].holds(mean(values))
        or not all(bars[name].holds(value, 0.0 if name in exact else BELOW) for value in values)
    }
