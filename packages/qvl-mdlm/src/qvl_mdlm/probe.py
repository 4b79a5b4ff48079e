"""Does the language model see both ways, and only where it should? Tried out, not believed: one token is changed.

An attention that stayed causal trains without a sign of it: its loss falls as well, and only its texts are poor (facts:
0.54 against 0.83 of the digits). Other versions of the library may read other flags, so this runs at every load.
"""

from typing import Any

import torch
from torch import Tensor

from qvl_core.errors import QVLError
from qvl_mdlm.pattern import visible

LENGTH = 8  # tokens of the probe, in `prefix` and `block`: half a prompt, half an answer


@torch.no_grad()
def check_sees_both_ways(model: Any) -> None:
    """Raise QVLError unless a later token moves earlier ones exactly where the model's pattern says so."""
    if next(model.parameters()).is_meta:
        return
    prompt = torch.arange(LENGTH) < LENGTH // 2
    full = model.config.pattern == "full"
    wanted = torch.ones(LENGTH, dtype=torch.bool) if full else ~prompt
    for padded in (False, True) if full else (False,):  # the library masks them in two ways
        moved = _moved(model, padded)
        if torch.equal(moved, wanted):
            continue
        seen, should = ([int(place) for place in part.nonzero()] for part in (moved, wanted))
        raise QVLError(
            f"attention {model.config.pattern}: the last of {LENGTH} tokens moved tokens {seen}, not {should}; this "
            "version of transformers attends otherwise than QVL expects; use 5.23."
        )


def _moved(model: Any, padded: bool) -> Tensor:
    """(T,) whether the hidden state of each token depends on the last token; `padded` puts one of padding before."""
    body = model.model.language_model
    device = body.embed_tokens.weight.device
    ids = torch.arange(1, LENGTH + 1, device=device)[None] % (len(body.embed_tokens.weight) - 1)
    changed = torch.cat([ids[:, :-1], ids[:, :1]], dim=1)
    options: dict[str, Any] = {"position_ids": torch.arange(LENGTH, device=device).expand(4, 1, LENGTH)}
    if padded:
        mask = torch.ones(1, LENGTH + 1, dtype=torch.long, device=device)
        mask[:, 0] = 0
        ids, changed = (torch.cat([each[:, :1], each], 1) for each in (ids, changed))
        options = {"attention_mask": mask, "position_ids": mask.cumsum(1).sub(1).clamp_min(0).expand(4, 1, -1)}
    elif model.config.pattern != "full":
        levels = (torch.arange(LENGTH, device=device) >= LENGTH // 2).long()[None]
        options["attention_mask"] = visible(levels, levels == 0, torch.zeros_like(levels))
    training = model.training
    model.eval()
    try:
        states = [body(input_ids=each, use_cache=False, **options).last_hidden_state[0] for each in (ids, changed)]
    finally:
        model.train(training)
    return (states[0] != states[1]).any(-1)[-LENGTH:].cpu()
