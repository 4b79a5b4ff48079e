"""Augmentation: random changes of a sample's pictures that keep its answers true, as pure functions of a key.

    sample = augmented(sample, rules, seed, pass_number, index)     # rules: qvl_core.recipe.blocks.Augment
    sample.opener.open(sample.media[0])                             # the changed picture
    sample.regions[0].xy                                            # its box, moved with the pixels

All pictures of a sample (several pictures, the frames of a video, both sides of an edit) are changed alike. A crop that
would cut a region away is drawn again; a sample whose text speaks of left or right is not mirrored; a sample whose text
states coordinates keeps its geometry.
"""

from .augmentation import Augmentation
from .draw import TRIES, augmented, draw, keeps_length
from .sides import names_a_side

__all__ = ["TRIES", "Augmentation", "augmented", "draw", "keeps_length", "names_a_side"]
