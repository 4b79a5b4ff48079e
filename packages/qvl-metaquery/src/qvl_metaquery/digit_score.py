"""The scorer `digits`: is the drawn digit the one that was asked for, and how much do drawings of one differ?"""

import re
from collections.abc import Sequence

import numpy as np

from qvl_core.errors import BadInput
from qvl_core.run import Scalar
from qvl_data.example.drawings import NAMES
from qvl_metaquery.judge import diversity, grey, nearest, real
from qvl_metaquery.scorers import Picture, Scores, register_scorer


@register_scorer("digits")
def digits(pictures: Sequence[Picture]) -> Scores:
    """`right` and `read` of each picture, by the nearest real digit of the training split; `diversity` of all.

    Asked for is the record's `digit`, else the number that the prompt names. Raises BadInput where there is neither;
    diversity is left out where a digit has one picture.
    """
    asked = np.array([_asked(picture) for picture in pictures])
    known, which = real("train")
    drawn = grey([picture.opened() for picture in pictures])
    read = nearest(drawn, known, which)
    each: list[dict[str, Scalar]] = [
        {"right": bool(found == digit), "read": str(found)} for found, digit in zip(read, asked, strict=True)
    ]
    apart = np.unique(asked, return_counts=True)[1].min() > 1
    return Scores(each, {"diversity": diversity(drawn, asked, known, which)} if apart else {})


def _asked(picture: Picture) -> int:
    if isinstance(digit := picture.record.get("digit"), int):
        return digit
    named = [word for word in re.findall(r"\w+", picture.prompt.lower()) if word in NAMES]
    if len(named) != 1:
        raise BadInput(
            f'--scorer digits: the prompt "{picture.prompt}" names {len(named)} digits; name one (zero ... nine), or '
            "add `digit` to its line."
        )
    return NAMES.index(named[0])
