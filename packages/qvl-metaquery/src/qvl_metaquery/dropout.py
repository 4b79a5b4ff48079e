"""What of a condition is left out in training, so that guidance has something to compare with. Pure functions.

Left-out text is the empty prompt; a left-out picture is a black one of its size.
"""

from typing import Literal, NamedTuple

Task = Literal["t2i", "reconstruct", "edit", "instruct"]


class Dropped(NamedTuple):
    """Whether a sample's text and its pictures are left out."""

    text: bool
    pictures: bool


def dropped(task: Task, draw: float, part: float = 0.1) -> Dropped:
    """What is left out of a sample, of a number drawn evenly from [0, 1).

    t2i          the text, in `part` of the samples
    reconstruct  the text always, the picture in `part`
    edit         the picture in `part`, the text never
    instruct     the text in `part`, both in another `part`, the pictures in a third
    """
    if task == "t2i":
        return Dropped(draw < part, False)
    if task == "reconstruct":
        return Dropped(True, draw < part)
    if task == "edit":
        return Dropped(False, draw < part)
    return Dropped(draw < 2 * part, part <= draw < 3 * part)
