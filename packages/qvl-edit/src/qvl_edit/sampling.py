"""How pictures are drawn: what the commands and a recipe's `sampling` say alike. Importing this loads no torch."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Self


@dataclass(frozen=True)
class Sampling:
    """Fields have the names of the recipe's block.

    guidance  at most 1: the negative text is not asked
    shift     of noise levels, the same for all sizes; None: as the checkpoint's scheduler has it
    """

    guidance: float = 4.0
    steps: int = 40
    negative: str = " "
    shift: float | None = None

    @classmethod
    def of(cls, block: Any) -> Self:
        """What a recipe's block says."""
        return cls(block.guidance, block.steps, block.negative, block.shift)

    @property
    def guided(self) -> bool:
        return self.guidance > 1

    def but(self, **given: Any) -> Self:
        """The same but for what is given and not None."""
        return replace(self, **{name: value for name, value in given.items() if value is not None})

    def said(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)
