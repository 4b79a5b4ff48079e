"""Flow matching (Lipman et al. 2023, arXiv:2210.02747; Liu et al. 2023, arXiv:2209.03003): pure functions.

A target's latent x and noise e are joined by a straight line, z = (1 - s) x + s e, and the transformer is asked for its
direction, e - x. Levels s are drawn by `times`.

Shapes: B samples, N tokens of a target, F features of a token.
"""

from torch import Tensor


def between(latents: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
    """(B, N, F): latents with noise at `levels` (B,)."""
    s = _spread(levels, latents)
    return (1 - s) * latents + s * noise


def recovered(noisy: Tensor, velocity: Tensor, levels: Tensor) -> Tensor:
    """(B, N, F): the latents that a direction points away from, z - s v."""
    return noisy - _spread(levels, noisy) * velocity


def velocity_losses(velocity: Tensor, latents: Tensor, noise: Tensor) -> Tensor:
    """(B,) squared error of a predicted direction, mean over a target's numbers, in fp32.

    velocity, latents, noise  (B, N, F)
    """
    return (velocity.float() - (noise.float() - latents.float())).square().mean((1, 2))


def _spread(levels: Tensor, like: Tensor) -> Tensor:
    return levels.view(-1, 1, 1).to(like.dtype)
