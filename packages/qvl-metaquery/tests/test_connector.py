"""The connector is what its page says, restated here number by number; order matters, and every query sees all."""

import math

import torch
from torch import Tensor

from qvl_metaquery.connector import Connector

TAKEN, GIVEN, N = 128, 96, 5


def perturbed(**options: object) -> Connector:
    """In fp64, every parameter moved, so that no weight of one or bias of nought hides an error."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        connector = Connector(TAKEN, GIVEN, **options).double()  # type: ignore[arg-type]
        with torch.no_grad():
            for parameter in connector.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter) * parameter.abs().mean().clamp(min=0.1))
    return connector


def states(rows: int = 2) -> Tensor:
    return torch.randn(rows, N, TAKEN, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def rms_normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * weight


def rotated(head: Tensor) -> Tensor:
    """(N, 64) as 32 complex numbers, entry i with entry i + 32, each turned by its position."""
    numbers = torch.complex(head[:, :32], head[:, 32:])
    speeds = 10_000.0 ** (-torch.arange(32, dtype=torch.float64) / 32)
    angles = torch.arange(len(head), dtype=torch.float64)[:, None] * speeds
    turned = numbers * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag], 1)


def restated(connector: Connector, taken: Tensor, unit_first: bool = False) -> Tensor:
    """(N, GIVEN) of one prompt's states (N, TAKEN), head by head; `unit_first`: the usual order, which is not this."""
    p = dict(connector.named_parameters())
    x = taken @ p["narrow.weight"].T + p["narrow.bias"] if "narrow.weight" in p else taken
    for number in range(len(connector.layers)):
        q = {name.removeprefix(f"layers.{number}."): value for name, value in p.items()}
        normed = rms_normed(x, q["attention_norm.weight"], 1e-6)
        wide = {
            name: normed @ q[f"attention.{name}.weight"].T + q[f"attention.{name}.bias"]
            for name in ("query", "key", "value")
        }
        heads = []
        for start in range(0, x.shape[1], 64):
            part = slice(start, start + 64)
            pair = []
            for name in ("query", "key"):
                head = wide[name][:, part]
                head = head / head.norm(dim=1, keepdim=True) if unit_first else rotated(head)
                scaled = head / head.norm(dim=1, keepdim=True) * q[f"attention.{name}_scale"][part] * 8
                pair.append(rotated(scaled) if unit_first else scaled)
            weights = torch.softmax(pair[0] @ pair[1].T / math.sqrt(64), -1)
            heads.append(weights @ wide["value"][:, part])
        x = x + torch.cat(heads, 1) @ q["attention.out.weight"].T
        normed = rms_normed(x, q["mlp_norm.weight"], 1e-6)
        gate = normed @ q["gate.weight"].T
        x = x + (gate * torch.sigmoid(gate) * (normed @ q["up.weight"].T)) @ q["down.weight"].T
    x = x @ p["project_in.weight"].T + p["project_in.bias"]
    x = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return rms_normed(x @ p["project_out.weight"].T + p["project_out.bias"], p["norm.weight"], 1e-5)


def test_it_is_what_its_page_says() -> None:
    for options in ({"layers": 2}, {"layers": 1, "width": 64}, {"layers": 0}):
        connector = perturbed(**options)
        given = connector(states())
        wanted = torch.stack([restated(connector, one) for one in states()])
        assert (given - wanted).abs().max() < 1e-6


def test_queries_and_keys_are_turned_before_they_are_brought_to_unit_length() -> None:
    connector = perturbed(layers=2)
    usual = restated(connector, states()[0], unit_first=True)
    assert (connector(states())[0] - usual).abs().max() > 1e-2


def test_queries_are_a_row_in_which_each_sees_all() -> None:
    connector = perturbed(layers=2)
    given = connector(states())
    order = [2, 0, 1, 4, 3]
    assert (connector(states()[:, order]) - given[:, order]).abs().max() > 1e-2
    changed = states()
    changed[:, -1] += 1
    assert (connector(changed) - given)[:, 0].abs().max() > 1e-3


def test_conditions_begin_with_the_scale_that_sana_reads_captions_in() -> None:
    given = Connector(TAKEN, GIVEN, layers=2)(torch.randn(4, N, TAKEN))
    assert abs(given.square().mean().sqrt() - 2.345) < 1e-3


def test_recompute_changes_no_gradient() -> None:
    connector = perturbed(layers=2)
    gradients = []
    for connector.recompute in (False, True):
        connector.zero_grad()
        connector(states()).sin().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in connector.parameters()])
    assert all(parameter.abs().max() > 0 for parameter in gradients[0])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
