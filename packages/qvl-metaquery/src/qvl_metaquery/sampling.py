"""How pictures are drawn: what the commands and a recipe's `sampling` say alike. Importing this loads no torch."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

Name = Literal["euler", "dpm"]


@dataclass(frozen=True)
class Sampling:
    """Fields have the names of the recipe's block; `size` None is what was trained."""

    guidance: float = 4.5
    image_guidance: float = 1.5
    steps: int = 30
    scheduler: Name = "euler"
    negative: str = ""
    size: int | None = None

    def arguments(self) -> dict[str, Any]:
        """For a call of `MetaQueryPipeline`."""
        return {
            "guidance_scale": self.guidance,
            "image_guidance_scale": self.image_guidance,
            "num_inference_steps": self.steps,
            "scheduler": self.scheduler,
            "negative_prompt": self.negative,
            "size": self.size,
        }

    def said(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)
