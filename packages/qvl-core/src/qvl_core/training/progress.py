"""How far a run has come: the part of its state that is not tensors, kept in each checkpoint's state.json."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from qvl_core.errors import BadInput, QVLError
from qvl_core.recipe.blocks import EarlyStop, Recipe
from qvl_core.run import Spent, spent
from qvl_core.training.divergence import Running
from qvl_core.training.samples import Bad


@dataclass
class Progress:
    """Steps done, the best evaluation so far, samples left out, steps not applied, seconds used."""

    step: int = 0
    tokens: int = 0
    best_step: int | None = None
    best_value: float | None = None
    stale: int = 0  # evaluations since the best one
    watched: str | None = None  # by which figure, how, and on which samples the best one was found
    owes_evaluation: bool = False  # asked to stop before or while it evaluated at this step
    skipped: int = 0  # steps that were not applied because a loss or gradient was not finite
    streak: int = 0  # of them, the last ones in a row
    running: Running = field(default_factory=Running)  # mean of the loss
    bad: dict[str, dict[str, Any]] = field(default_factory=dict)  # left-out samples by id, at most data.max_bad
    dropped: dict[str, str] = field(default_factory=dict)  # reasons by id of those that the recipe lets drop
    before: Spent = field(default_factory=Spent)

    def to_json(self) -> dict[str, Any]:
        return asdict(replace(self, before=spent(self.before)))

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> "Progress":
        running = Running(*state.get("running", ()))
        return cls(**{**state, "before": Spent(*state["before"]), "running": running})

    def knows(self, bad: Bad) -> bool:
        """Whether the sample was left out before, in an earlier epoch or before a kill."""
        return bad.id in self.bad or bad.id in self.dropped

    def leave_out(self, bad: Bad, max_bad: int) -> None:
        """Count a new sample. Raises BadInput, without counting it, when it is one more than the recipe bears."""
        if bad.tolerated:
            self.dropped[bad.id] = bad.reason
            return
        if len(self.bad) >= max_bad:
            raise BadInput(
                f"{bad.message.rstrip('.')}; data.max_bad allows {max_bad} bad samples and this is one more: "
                "mend it, or raise data.max_bad, and run the same command again (with --allow-change if you remove it)."
            )
        self.bad[bad.id] = asdict(bad)

    def left_out(self, name: str) -> dict[str, Any]:
        """What is kept of a sample that was left out."""
        return self.bad.get(name) or asdict(Bad(name, self.dropped[name], message="", tolerated=True))

    def watch(self, recipe: Recipe, judged_by: Mapping[str, Any]) -> str | None:
        """Compare evaluations as the recipe says now. If they were compared otherwise, forget that, and say how.

        judged_by  what else the figure depends on (see `Parts`)
        """
        before, self.watched = self.watched, _watched(recipe, judged_by)
        if before == self.watched:
            return None
        self.best_step, self.best_value, self.stale = None, None, 0
        return before

    def improves(self, figures: dict[str, float], stop: EarlyStop) -> bool:
        """Note an evaluation at the present step; true if it is the best so far."""
        if stop.metric not in figures:
            raise BadInput(
                f"evaluate.early_stop.metric: there is no figure {stop.metric!r}; "
                f"choose one of {', '.join(sorted(figures))}."
            )
        value = figures[stop.metric]
        sign = 1 if stop.larger_is_better else -1
        better = math.isfinite(value) and (self.best_value is None or sign * value > sign * self.best_value)
        if better:
            self.best_step, self.best_value, self.stale = self.step, value, 0
        else:
            self.stale += 1
        return better

    def note_step(self, step: int, applied: bool, poisoned: bool, limit: int) -> None:
        """Count a finished step. Raises QVLError after `limit` poisoned ones in a row."""
        self.skipped += not applied
        self.streak = self.streak + 1 if poisoned else 0
        if self.streak >= limit:
            raise QVLError(
                f"the loss or gradient was not finite {self.streak} steps in a row, up to step {step}; nothing of "
                "them was applied or saved: look at the samples that metrics.jsonl names, lower the rate, or use fp32."
            )


def _watched(recipe: Recipe, judged_by: Mapping[str, Any]) -> str | None:
    """What makes two evaluations comparable: `validation_loss min on validation 1f0c93ab`."""
    stop, evaluate = recipe.evaluate.early_stop, recipe.evaluate
    if stop is None:
        return None
    sources = [source.model_dump(mode="json") for source in recipe.data.validation]
    measured = json.dumps([sources, evaluate.samples, evaluate.max_new_tokens, *([judged_by] if judged_by else [])])
    samples = hashlib.sha256(measured.encode()).hexdigest()[:8]
    return f"{stop.metric} {'max' if stop.larger_is_better else 'min'} on validation {samples}"
