"""How canvases are written, and what of that a model cannot do. No torch is imported here.

What is computed in a step (`cache`): everything (`none`); of `prefix` and `block` models only what can change, which is
exact (`auto`); of `full` models only the block in work, with the keys and values that all else had when the block was
begun, which is an approximation (`dual`: Fast-dLLM, arXiv:2505.22618).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.encoded import Encoded

Gumbel = Literal["standard", "llada"]
Sureness = Literal["confidence", "margin", "entropy"]
Remasking = Literal[Sureness, "random"]
Caching = Literal["auto", "none", "dual"]
CHOICES = {"gumbel": Gumbel, "remasking": Remasking, "cache": Caching}
AT_LEAST = {"max_new_tokens": 1, "steps": 1, "block": 1, "temperature": 0, "threshold": 0, "factor": 0, "guidance": 0}


@dataclass(frozen=True)
class Sampling:
    """How canvases are written.

    max_new_tokens  length of the canvas
    steps           denoising steps, shared evenly among the tokens, at least one a block; default: one for each token
    block           tokens that are finished before the next are begun; default: the canvas, or the model's block size
    temperature     0 takes the likeliest token; above 0 one is drawn, see `commit.choose`
    gumbel          how it is drawn
    remasking       which tokens stay: see `commit.sureness`
    threshold       instead of steps: write all tokens of at least this probability, and at least one
    factor          instead of steps: write as many as Fast-dLLM's bound on their joint probability allows
    guidance        classifier-free guidance: un + (guidance + 1)(cond - un); two forward passes a step
    eos_guard       write end tokens last: with the last of everything else in the block, at the earliest
    early_stop      a row is done when nothing is masked before its first end token
    suppress        further token ids that are never written; masks, pictures' tokens and spare rows never are
    cache           auto, none or dual: see above
    seed            decides what is drawn
    """

    max_new_tokens: int = 64
    steps: int | None = None
    block: int | None = None
    temperature: float = 0.0
    gumbel: Gumbel = "standard"
    remasking: Remasking = "confidence"
    threshold: float | None = None
    factor: float | None = None
    guidance: float = 0.0
    eos_guard: bool = False
    early_stop: bool = True
    suppress: tuple[int, ...] = ()
    cache: Caching = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, kind in CHOICES.items():
            if (value := getattr(self, name)) not in get_args(kind):
                raise BadInput(f"{name} {value}: choose of {', '.join(get_args(kind))}.")
        for name, least in AT_LEAST.items():
            value = getattr(self, name)
            if value is not None and not least <= value < math.inf:  # nan is not either
                raise BadInput(f"{name} {value}: must be a number of at least {least}.")
        if self.threshold is not None and self.threshold > 1:
            raise BadInput(f"threshold {self.threshold}: is a probability; it must be from 0 to 1.")
        given = [name for name in ("steps", "threshold", "factor") if getattr(self, name) is not None]
        if len(given) > 1:
            raise BadInput(f"{' and '.join(given)}: each says how many tokens a step writes; keep one.")


def block_of(config: Any, sampling: Sampling) -> int:
    """Tokens that are finished before the next are begun."""
    return int(sampling.block or config.block_size or sampling.max_new_tokens)


def check_sampling(config: Any, sampling: Sampling, prompts: Sequence[Encoded]) -> None:
    """Raise BadInput for what this model cannot do."""
    if config.pattern == "block" and sampling.block not in (None, config.block_size):
        raise BadInput(
            f"block {sampling.block}: the checkpoint was trained with blocks of {config.block_size} tokens; leave it "
            "out."
        )
    if sampling.cache == "dual" and config.pattern != "full":
        raise BadInput(
            f"cache dual: is an approximation for `attention: full`; this model attends by {config.pattern}, whose "
            "cache is exact: leave it out."
        )
    if sampling.cache == "dual" and sampling.guidance:
        raise BadInput("cache dual and guidance do not go together; leave one out.")
    if sampling.steps is not None and sampling.steps > sampling.max_new_tokens:
        raise BadInput(f"steps {sampling.steps}: must be from 1 to the {sampling.max_new_tokens} tokens of the canvas.")
    block = block_of(config, sampling)
    blocks = -(-sampling.max_new_tokens // block)
    if sampling.steps is not None and sampling.steps < blocks:
        raise BadInput(
            f"steps {sampling.steps}: a canvas of {sampling.max_new_tokens} tokens has {blocks} blocks of {block}, and "
            f"each takes a step; give {blocks} steps or more, or fewer blocks."
        )
    rows = config.text_config.vocab_size
    if unknown := [token for token in sampling.suppress if not 0 <= token < rows]:
        raise BadInput(f"suppress {unknown[0]}: there is no such token; ids are from 0 to {rows - 1}.")
    limit = config.text_config.max_position_embeddings
    longest = max(map(len, prompts), default=0)
    if longest + sampling.max_new_tokens > limit:
        raise BadInput(
            f"max_new_tokens {sampling.max_new_tokens}: with a prompt of {longest} tokens that is over the model's "
            f"{limit}; lower it."
        )
