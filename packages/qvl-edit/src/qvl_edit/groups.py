"""The transformer's parameters in groups, as a recipe's `tune` names them.

    tune: {attn: {mode: lora, rank: 16}}                                   # all attention, nothing else
    tune: {transformer: {mode: full}, txt_mod: {mode: frozen}}             # everything but
    tune: {attn.to_q: {mode: full, lr: 1e-5}, transformer: {mode: full}}   # one part at a rate of its own

`transformer` is what no other name takes. Any other name is a piece of names of modules, as the document's
`--trainable_modules` has it; of two that fit, the one that stands first counts. `.` fits every name.

Never trained is what nothing depends on: behind the last block only the picture's tokens are read, so that what this
block makes of the text is dropped, and so is everything that only serves it. DDP would wait for its gradients.
"""

import re
from collections.abc import Iterable, Mapping

from qvl_core.errors import BadInput

WHOLE, UNUSED = "transformer", "unused"
_TEXT_ALONE = r"attn\.to_add_out|attn\.add_q_proj|attn\.norm_added_q|txt_mlp"


def unused(layers: int) -> str:
    """Full-match pattern of the parameters on which no prediction depends, of a transformer with so many blocks."""
    return rf"transformer_blocks\.{layers - 1}\.({_TEXT_ALONE})\..*"


def groups(names: Iterable[str], layers: int) -> Mapping[str, str]:
    """Disjoint full-match patterns of parameter names, by group, for `qvl_core.qwen3vl.lora`.

    names  the groups that `tune` has, in its order; `transformer` and `unused` are added

    Raises BadInput for names of weights: LoRA adds weights of its own to a module.
    """
    taken = [unused(layers)]
    found = {}
    for name in names:
        if re.search(r"(^|\.)(weight|bias)$", name):
            raise BadInput(f"tune.{name}: names a weight, not a module; write {name.rpartition('.')[0] or WHOLE}.")
        if name not in (WHOLE, UNUSED):
            piece = f".*{_piece(name)}.*"
            found[name] = _without(taken) + piece
            taken.append(piece)
    return {**found, WHOLE: f"{_without(taken)}.*", UNUSED: unused(layers)}


def _piece(name: str) -> str:
    """A piece of a parameter's name; its module's, which ends before the last point, fits as well."""
    return re.sub(r"\\\.$", r"(\\.|$)", re.escape(name))


def _without(taken: list[str]) -> str:
    return f"^(?!{'|'.join(f'({pattern})$' for pattern in taken)})"
