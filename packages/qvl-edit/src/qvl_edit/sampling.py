"""How pictures are drawn: what the commands and a recipe's `sampling` say alike. Importing this loads no torch."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Self


@dataclass(frozen=True)
class Sampling:
    """Fields have the names of the recipe's block.

    guidance  at most 1: the negative text is not asked
    steps     None: as the checkpoint has it, which may name the levels itself, else 40
    shift     of noise levels, the same for all sizes; None: as the checkpoint's scheduler has it
    """

    guidance: float = 4.0
    steps: int | None = None
    negative: str = " "
    shift: float | None = None

    @classmethod
    def of(cls, block: Any, guidance: float) -> Self:
        """What a recipe's block says, and the checkpoint's guidance where it says none."""
        return cls(guidance if block.guidance is None else block.guidance, block.steps, block.negative, block.shift)

    @property
    def guided(self) -> bool:
        return self.guidance > 1

    def but(self, **given: Any) -> Self:
        """The same but for what is given and not None."""
        return replace(self, **{name: value for name, value in given.items() if value is not None})

    def said(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)
