"""When a run has lost its way: a loss far above its running mean (`train.divergence`). Pure functions.

The weights of a loss that explodes are of no use; a rollback would replay the same data into the same failure. So the
run stops, and the last checkpoint before it stays.
"""

from typing import NamedTuple

from qvl_core.errors import QVLError

DECAY = 0.99  # per step: the mean is of about the last 100
EARLY = 20  # steps before which there is no mean to speak of


class Running(NamedTuple):
    """The running mean of the loss over `steps` applied steps."""

    mean: float = 0.0
    steps: int = 0

    def then(self, loss: float) -> "Running":
        """After one step more; the first ones count evenly."""
        share = max(1 - DECAY, 1 / (self.steps + 1))
        return Running(self.mean + share * (loss - self.mean), self.steps + 1)


def diverged(running: Running, loss: float, factor: float) -> bool:
    """Whether a step's loss is more than `factor` times the running mean; never among the first steps."""
    return running.steps >= EARLY and loss > factor * running.mean


def diverging(step: int, loss: float, running: Running, factor: float, good: str | None) -> QVLError:
    """The error that ends the run; `good`: the last checkpoint."""
    left = f"{good} is the last good checkpoint" if good else "there is no checkpoint before it"
    return QVLError(
        f"step {step}: the loss {loss:.4g} is over {factor:g} times its running mean {running.mean:.4g}; {left}: lower "
        "optim.lr or train.clip, look at the samples, and continue it with --resume and --allow-change."
    )
