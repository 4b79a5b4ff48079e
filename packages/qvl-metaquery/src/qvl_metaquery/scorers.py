"""What drawn pictures are worth: scorers by name, also from a --plugin file. Importing this loads no torch.

    @register_scorer("dark")
    def dark(pictures):                                  # of qvl_metaquery.scorers.Picture
        return [{"share": float(np.asarray(one.opened()).mean() < 128)} for one in pictures]

gives `dark_share`, the mean over pictures, in result.json and each picture's own in predictions.jsonl.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from PIL import Image

from qvl_data.drawing import scores
from qvl_data.drawing.scores import Scores, scored
from qvl_metaquery.layouts import Sheet

__all__ = ["SCORERS", "Picture", "Scorer", "Scores", "named", "register_scorer", "scored"]


@dataclass(frozen=True)
class Picture:
    """A picture, and what was asked for."""

    sheet: Sheet
    place: int

    @property
    def prompt(self) -> str:
        return self.sheet.asked.text

    @property
    def record(self) -> Mapping[str, Any]:
        """The prompt's line in a JSONL file."""
        return self.sheet.asked.record

    @property
    def seed(self) -> int:
        return self.sheet.seeds[self.place]

    def opened(self) -> Image.Image:
        return self.sheet.picture(self.place)


Scorer: TypeAlias = scores.Scorer[Picture]
SCORERS = scores.Scorers[Picture]("--scorer")
register_scorer, named = SCORERS.register, SCORERS.named
