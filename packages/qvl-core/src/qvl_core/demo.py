"""The folder of a demo: taken up by the same command, left alone when it is finished; and the bars it is held to."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qvl_core.errors import BadInput
from qvl_core.report import Figure, Figures
from qvl_core.run import RunFolder, Scalar, result


def take_up(package: str, out: Path, seed: int, **choice: Scalar) -> dict[str, Any] | None:
    """Begin a demo in `out`, or go on with it; gives the result of one that is finished, which is to be left alone.

    `choice` is what else tells demos of a package apart, and is kept in their results. Raises BadInput if `out` holds
    other files, or the demo of another seed or choice.
    """
    asked = {"seed": seed, **choice}
    run = RunFolder(out)
    done = run.read_result()
    if not done and out.is_dir() and any(not entry.name.startswith(".") for entry in out.iterdir()):
        raise BadInput(f"--out {out}: holds other files; choose another folder.")
    if done and any(done.get(key) != value for key, value in asked.items()):
        holds = ", ".join(f"{key} {done.get(key)}" for key in asked)
        raise BadInput(f"--out {out}: holds the demo of {holds}; choose another folder.")
    if done and done["complete"]:
        print(f"{out} is finished; see {run.report_file}, or choose another --out.")
        return done
    out.mkdir(parents=True, exist_ok=True)
    run.write_result(result(package, seed=seed, complete=False, figures=choice))
    return None


@dataclass(frozen=True)
class Bar:
    """What a figure has to reach; with `at_most`, what it may not exceed."""

    value: float
    at_most: bool = False

    def holds(self, figure: float, slack: float = 0.0) -> bool:
        return figure <= self.value + slack if self.at_most else figure >= self.value - slack

    def __str__(self) -> str:
        return f"{'<=' if self.at_most else '>='} {self.value:g}"


def judged(values: Mapping[str, Any], bars: Mapping[str, Bar]) -> dict[str, str]:
    """What a result says of its bars: `bars`, such as "exact_accuracy >= 0.92, seconds <= 240", and `missed`, the names
    of the figures that do not hold theirs."""
    missed = [name for name, bar in bars.items() if not bar.holds(values[name])]
    return {"bars": ", ".join(f"{name} {bar}" for name, bar in bars.items()), "missed": ", ".join(missed)}


def figures(
    values: Mapping[str, Any],
    bars: Mapping[str, Bar],
    called: Mapping[str, tuple[str, float | None]],
    notes: Mapping[str, str] | None = None,
) -> Figures:
    """Those of a result that have a bar, for its page; called: what each is called there, and its chance."""
    notes = notes or {}
    return Figures(
        [
            Figure(called[name][0], values[name], bar.value, called[name][1], bar.at_most, notes.get(name, ""))
            for name, bar in bars.items()
        ]
    )
