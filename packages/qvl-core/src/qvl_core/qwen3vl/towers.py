"""What of a vision tower is trained: nothing, its mergers, or the encoder before them as well."""

from typing import Any


def tower_learns(model: Any) -> bool:
    """Whether the tower or one of its mergers has trainable weights, so that its outputs change from step to step."""
    return any(parameter.requires_grad for parameter in model.model.visual.parameters())


def encoder_learns(model: Any) -> bool:
    """Whether what comes before the mergers has trainable weights."""
    return any(
        parameter.requires_grad
        for name, parameter in model.model.visual.named_parameters()
        if not name.startswith(("merger.", "deepstack_merger_list."))
    )
