"""Guidance is its formulae, on predictions that are a linear function of what a condition knows."""

import pytest
import torch
from torch import Tensor

from qvl_metaquery.guidance import branches, guided

TEXT, PICTURES, NOTHING = torch.randn(3, 2, 4, 3, 3, generator=torch.Generator().manual_seed(0)).unbind()


def predicted(kinds: tuple[str, ...]) -> Tensor:
    """What each branch knows, added up."""
    known = {"unconditional": NOTHING, "pictures": NOTHING + PICTURES, "full": NOTHING + PICTURES + TEXT}
    return torch.stack([known[kind] for kind in kinds])


@pytest.mark.parametrize(
    ("guidance", "image_guidance", "pictured", "kinds"),
    [
        (4.5, 1.5, True, ("unconditional", "pictures", "full")),
        (1.0, 1.5, True, ("unconditional", "pictures", "full")),
        (4.5, 1.0, True, ("pictures", "full")),
        (4.5, 0.0, True, ("pictures", "full")),
        (4.5, 1.5, False, ("unconditional", "full")),
        (0.0, 1.5, False, ("unconditional", "full")),
        (1.0, 1.5, False, ("full",)),
        (1.0, 1.0, True, ("full",)),
    ],
)
def test_branches(guidance: float, image_guidance: float, pictured: bool, kinds: tuple[str, ...]) -> None:
    assert branches(guidance, image_guidance, pictured) == kinds


def test_three_branches_weigh_text_and_pictures_apart() -> None:
    found = guided(predicted(branches(4.5, 1.5, True)), 4.5, 1.5)
    torch.testing.assert_close(found, NOTHING + 1.5 * PICTURES + 4.5 * TEXT)


def test_two_branches_weigh_what_one_of_them_lacks() -> None:
    torch.testing.assert_close(guided(predicted(("pictures", "full")), 4.5, 1.0), NOTHING + PICTURES + 4.5 * TEXT)
    torch.testing.assert_close(
        guided(predicted(("unconditional", "full")), 4.5, 1.5), NOTHING + 4.5 * (PICTURES + TEXT)
    )


def test_without_guidance_there_is_one_prediction_and_three_give_the_same() -> None:
    assert torch.equal(guided(predicted(("full",)), 1.0, 1.0), NOTHING + PICTURES + TEXT)
    three = guided(predicted(("unconditional", "pictures", "full")), 1.0, 1.0)
    torch.testing.assert_close(three, NOTHING + PICTURES + TEXT)


def test_a_row_without_pictures_is_guided_in_a_batch_of_three_as_alone() -> None:
    """Its poorer branches are equal, so the weight of pictures falls out."""
    alone = guided(torch.stack([NOTHING, TEXT]), 4.5, 1.5)
    torch.testing.assert_close(guided(torch.stack([NOTHING, NOTHING, TEXT]), 4.5, 1.5), alone)
