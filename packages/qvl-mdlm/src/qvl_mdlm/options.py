"""How canvases are written, as options that several verbs share. No torch is imported here."""

import inspect
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Annotated, Any, Literal

from qvl_core.cli import Option

OPTIONS: dict[str, tuple[Any, Any]] = {  # field of `qvl_mdlm.sampling.Sampling`: type and default
    "max_new_tokens": (Annotated[int, Option(min=1, help="Length of the canvas in tokens.")], 64),
    "steps": (
        Annotated[
            int | None, Option(min=1, help="Steps of an answer, at least one a block; default: one for each token.")
        ],
        None,
    ),
    "block": (
        Annotated[
            int | None,
            Option(min=1, help="Tokens that are finished before the next are begun; default: all, or the model's."),
        ],
        None,
    ),
    "temperature": (Annotated[float, Option(min=0.0, help="0 always takes the likeliest token.")], 0.0),
    "gumbel": (
        Annotated[
            Literal["standard", "llada"],
            Option(help="How noise is written; llada: the same draw as LLaDA's code has it."),
        ],
        "standard",
    ),
    "remasking": (
        Annotated[
            Literal["confidence", "margin", "entropy", "random"], Option(help="By what tokens are kept in a step.")
        ],
        "confidence",
    ),
    "threshold": (
        Annotated[
            float | None, Option(min=0.0, max=1.0, help="Write all tokens of at least this probability, and one.")
        ],
        None,
    ),
    "factor": (
        Annotated[float | None, Option(min=0.0, help="Write as many tokens as this bound on them together allows.")],
        None,
    ),
    "guidance": (
        Annotated[float, Option(min=0.0, help="Classifier-free guidance; two forward passes a step.")],
        0.0,
    ),
    "eos_guard": (
        Annotated[
            bool,
            Option("--eos-guard", help="Write end tokens last, with the last of everything else."),
        ],
        False,
    ),
    "early_stop": (
        Annotated[bool, Option(help="Stop when nothing is masked before the first end token.")],
        True,
    ),
    "suppress": (Annotated[list[int] | None, Option(help="Id of a token that is never written; repeatable.")], None),
    "cache": (
        Annotated[
            Literal["auto", "none", "dual"],
            Option(help="auto: where it is exact; dual: of full attention, an approximation."),
        ],
        "auto",
    ),
    "seed": (Annotated[int, Option(help="Decides what is drawn.")], 0),
}


def with_sampling(verb: Callable[..., Any], but: Sequence[str] = ()) -> Callable[..., Any]:
    """Give a verb these options in place of its parameter `how`: a mapping of `Sampling`'s fields.

    but  options that mean nothing there
    """
    options = {name: option for name, option in OPTIONS.items() if name not in but}

    @wraps(verb)
    def called(**given: Any) -> Any:
        how = {name: given.pop(name) for name in options}
        return verb(**given, how={**how, "suppress": tuple(how["suppress"] or ())})

    own = [one for one in inspect.signature(verb).parameters.values() if one.name != "how"]
    keyword = inspect.Parameter.KEYWORD_ONLY
    shared = [inspect.Parameter(n, keyword, default=default, annotation=kind) for n, (kind, default) in options.items()]
    called.__signature__ = inspect.Signature([*(one.replace(kind=keyword) for one in own), *shared])  # type: ignore[attr-defined]
    called.__annotations__ = {one.name: one.annotation for one in [*own, *shared]}
    return called
