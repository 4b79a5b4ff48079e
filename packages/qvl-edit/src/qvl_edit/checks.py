"""Checks of edits of which it is known what is right: by name, also from a --plugin file. Importing loads no torch.

    @register_check("darker")
    def darker(edited):                                  # of qvl_edit.wanted.Edited
        return [{"success": float(np.asarray(one.output()).mean() < np.asarray(one.source()).mean())} for one in edited]

gives `darker_success` in result.json. A picture of which a check says nothing has an empty entry.
"""

from collections.abc import Sequence

from qvl_core.run import Scalar
from qvl_data.drawing.scores import Scorers
from qvl_data.example.recoloured import CHANGES
from qvl_edit.outcomes import outcomes
from qvl_edit.wanted import Edited

CHECKS = Scorers[Edited]("--check")
register_check = CHECKS.register


@register_check("recoloured")
def recoloured(edited: Sequence[Edited]) -> list[dict[str, Scalar]]:
    """`red`, `invert` and `flip`: is what was asked for what was done? Of other instructions nothing is said.

    It is by the rule of `outcomes`.
    """
    return [_recoloured(one) for one in edited]


def _recoloured(one: Edited) -> dict[str, Scalar]:
    names = list(CHANGES)
    asked = next((name for name in names if one.text in CHANGES[name].said.values()), None)
    source = one.source()
    if asked is None or source is None:
        return {}
    edits = [CHANGES[name].make(source) for name in names]
    return {asked: bool(outcomes([one.output()], [names.index(asked)], [edits], [source]).right[0])}
