"""The plan of training on pictures: what a device holds at each moment of a step, and when that is most."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

from qvl_core.qwen3vl.plan import SHARDED, Plan, Strategy


@dataclass(frozen=True)
class PicturePlan(Plan):
    """The plan of training on pictures."""

    pictures: int
    """Of one forward on one device."""
    step: int
    """Pictures of one step over all devices."""
    moment: str
    """When so much is needed."""

    @property
    def forward(self) -> str:
        """What one forward holds, in words."""
        return f"{self.pictures} pictures per forward"

    @property
    def caption(self) -> str:
        slow, fast = (self.step / seconds for seconds in reversed(self.expected_seconds))
        return (
            f"Most is needed {self.moment}. {super().caption} {self.forward}. Step of {self.step:,} pictures: at least "
            f"{self.floor_seconds:.2f} s, expected {self.expected_seconds[0]:.2f} to {self.expected_seconds[1]:.2f} s "
            f"({slow:,.1f} to {fast:,.1f} pictures/s)."
        )


def most(
    always: Mapping[str, float],
    moments: Mapping[str, Mapping[str, float]],
    strategy: Strategy,
    world: int,
    optional: Sequence[str] = (),
) -> tuple[str, dict[str, int]]:
    """The moment at which most is needed, and the bytes of one device by row then.

    always    rows of all moments, of the whole model
    moments   the others by moment
    optional  rows that are not shown where they are empty
    """
    rows = {
        moment: {
            n: ceil(size / world) if n in SHARDED[strategy] else round(size) for n, size in {**always, **at}.items()
        }
        for moment, at in moments.items()
    }
    moment = max(rows, key=lambda name: sum(rows[name].values()))
    return moment, {name: size for name, size in rows[moment].items() if size or name not in optional}
