"""Operations are counted as a pencil counts them."""

import pytest
import torch

from qvl_core.training.operations import counting


def count(module: torch.nn.Module, taken: torch.Tensor, gradient: bool) -> int:
    with counting() as counter:
        given = module(taken)
        if gradient:
            given.sum().backward()
    return int(counter.get_total_flops())


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("kind", [torch.nn.Conv2d, torch.nn.ConvTranspose2d])
def test_a_backward_of_a_convolution_is_two_forwards(kind: type[torch.nn.Conv2d], groups: int, device: str) -> None:
    with torch.device(device):
        module = kind(8, 8, 3, padding=1, groups=groups)
        taken = torch.ones(2, 8, 5, 5, requires_grad=True)
    forward = 2 * 2 * 5 * 5 * 9 * 8 * 8 // groups
    assert count(module, taken, False) == forward
    assert count(module, taken, True) == 3 * forward
    assert count(module, taken.detach(), True) == 2 * forward


def test_a_linear_layer_is_counted_as_by_torch() -> None:
    assert count(torch.nn.Linear(3, 5), torch.ones(7, 3, requires_grad=True), True) == 3 * 2 * 7 * 3 * 5
