"""Writing by denoising: a canvas of masks, some of which become tokens in every step.

    answers = sample(model, processor, prompts, Sampling(max_new_tokens=64, threshold=0.9))

Rows do not depend on one another: a batch gives what its prompts give alone, a drawn token depends on the seed, the
prompt's number and the step. A row is done when nothing is masked up to its first end token, and is then let go.

What is computed in a step (`cache`): everything (`none`); of `prefix` and `block` models only what can change, which is
exact (`auto`); of `full` models only the block in work, with the keys and values that all else had when the block was
begun, which is an approximation (`dual`: Fast-dLLM, arXiv:2505.22618).

Shapes: B rows, P tokens of the longest prompt, N of the canvas, n of a block, M masked places, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.encoded import Encoded
from qvl_core.training.seeds import mix
from qvl_mdlm.commit import Gumbel, Remasking, above, by_factor, choose, guarded, most_sure, share, sureness
from qvl_mdlm.context import Context, FixedCache, prefill, read_prompts, run, run_canvas
from qvl_mdlm.pattern import visible

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Sampling:
    """How canvases are written.

    max_new_tokens  length of the canvas
    steps           forward passes, shared evenly among the tokens; default: one for each token
    block           tokens that are finished before the next are begun; default: the canvas, or the model's block size
    temperature     0 takes the likeliest token; above 0 one is drawn, see `commit.choose`
    gumbel          how it is drawn
    remasking       which tokens stay: see `commit.sureness`
    threshold       instead of steps: write all tokens of at least this probability, and at least one
    factor          instead of steps: write as many as Fast-dLLM's bound on their joint probability allows
    guidance        classifier-free guidance: un + (guidance + 1)(cond - un); two forward passes a step
    eos_guard       write end tokens only when nothing else is left in the block
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
    cache: Literal["auto", "none", "dual"] = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        given = [name for name in ("steps", "threshold", "factor") if getattr(self, name) is not None]
        if len(given) > 1:
            raise BadInput(f"{' and '.join(given)}: each says how many tokens a step writes; keep one.")
        if self.steps is not None and not 1 <= self.steps <= self.max_new_tokens:
            raise BadInput(f"steps {self.steps}: must be from 1 to the {self.max_new_tokens} tokens of the canvas.")


@dataclass(frozen=True)
class Step:
    """What one step did to the rows that were still in work."""

    number: int
    """0, 1, ..."""
    rows: tuple[int, ...]
    """numbers of the prompts"""
    canvases: tuple[Ids, ...]
    """(N,) of each row, after the step"""
    written: tuple[Ids, ...]
    """places (m,) that this step has written in each row"""


@dataclass
class Written:
    """A finished canvas.

    ids       (N,) with the end token and what fills up behind it
    answer    (n,) up to the first end token, without it
    text      the answer, decoded without special tokens
    tokens    answer tokens, the end token included
    forwards  forward passes while the row was not done
    """

    ids: Ids
    answer: Ids
    text: str
    tokens: int
    forwards: int


@torch.no_grad()
def sample(
    model: Any,
    processor: Any,
    prompts: Sequence[Encoded],
    sampling: Sampling,
    canvases: Sequence[Ids] | None = None,
    spaced: Sequence[Ids] | None = None,
) -> list[Written]:
    """Answers, in the order of the prompts.

    prompts   chats up to and including the generation prompt (`qvl_data.chat.prompt`)
    canvases  (N,) of each: what is to stand behind its prompt, with mask tokens where it may be written; default: masks
              alone. What is given stays.
    spaced    (k,) of each: places of a canvas whose token has to begin with a space
    """
    writer = Writer(model, processor, prompts, sampling, canvases, spaced)
    for _ in writer.steps():
        pass
    return writer.results()


@dataclass
class _Row:
    """One prompt's canvas while it is written."""

    number: int
    canvas: Tensor  # (N,)
    spaced: Tensor  # (N,) bool
    generator: torch.Generator
    forwards: int = 0


@dataclass
class Writer:
    """A batch of canvases in work; `steps()` writes them, `results()` has them afterwards."""

    model: Any
    processor: Any
    prompts: Sequence[Encoded]
    sampling: Sampling
    canvases: Sequence[Ids] | None = None
    spaced: Sequence[Ids] | None = None
    _done: dict[int, _Row] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        check_sampling(self.model.config, self.sampling, self.prompts)
        tokenizer, config = self.processor.tokenizer, self.model.config
        self._mask = int(config.mask_token_id)
        self._device = self.model.get_input_embeddings().weight.device
        self._ends = torch.tensor(sorted({tokenizer.eos_token_id, tokenizer.pad_token_id}), device=self._device)
        self._never = never_written(config, tokenizer, self.sampling.suppress).to(self._device)
        self._spaces = begin_with_space(config, tokenizer).to(self._device) if self.spaced is not None else None
        self._pad = int(tokenizer.pad_token_id)

    def steps(self) -> Iterator[Step]:
        """Write all canvases; after each step, what has become of those in work."""
        with torch.no_grad(), _evaluating(self.model):
            yield from self._steps()

    def results(self) -> list[Written]:
        return [self._result(self._done[number]) for number in range(len(self.prompts))]

    def _steps(self) -> Iterator[Step]:
        rows = self._rows()
        length = len(rows[0].canvas)
        block = self.sampling.block or self.model.config.block_size or length
        state = _State(self.model, read_prompts(self.model, self.processor, self.prompts), self.sampling, self._mask)
        number = 0
        for start in range(0, length, block):
            stop = min(start + block, length)
            self._count(rows, state.begin(torch.stack([row.canvas for row in rows]), start, stop))
            left = self._budget(start, stop, length)
            while any(bool((row.canvas[start:stop] == self._mask).any()) for row in rows):
                waiting = [bool((row.canvas[start:stop] == self._mask).any()) for row in rows]
                canvas = torch.stack([row.canvas for row in rows])  # (B, N)
                hidden = state.hidden(canvas)  # of the block, one for each branch: (B, n, D)
                written = []
                for place, row in enumerate(rows):
                    at = (row.canvas[start:stop] == self._mask).nonzero().flatten()
                    if waiting[place]:
                        row.forwards += len(hidden)
                        logits = self._logits([states[place, at] for states in hidden])
                        if self._spaces is not None:
                            logits = logits.masked_fill(row.spaced[start + at, None] & ~self._spaces, -torch.inf)
                        at, tokens = self._commit(row, at, logits, left)
                        row.canvas[start + at] = tokens
                    written.append((start + at).cpu().numpy())
                left = max(1, left - 1)
                yield Step(
                    number,
                    tuple(row.number for row in rows),
                    tuple(row.canvas.cpu().numpy().copy() for row in rows),
                    tuple(written),
                )
                number += 1
                rows = self._let_go(rows, state)
                if not rows:
                    return
            self._count(rows, state.finish(torch.stack([row.canvas for row in rows])))
        self._done.update((row.number, row) for row in rows)

    @staticmethod
    def _count(rows: list[_Row], forwards: int) -> None:
        for row in rows:
            row.forwards += forwards

    def _rows(self) -> list[_Row]:
        count = self.sampling.max_new_tokens
        given = self.canvases if self.canvases is not None else [np.full(count, self._mask)] * len(self.prompts)
        spaced = self.spaced if self.spaced is not None else [np.zeros(0, np.int64)] * len(given)
        return [
            _Row(
                number,
                torch.from_numpy(np.array(canvas, np.int64)).to(self._device),
                torch.from_numpy(np.isin(np.arange(len(canvas)), spaced[number])).to(self._device),
                torch.Generator().manual_seed(mix(self.sampling.seed, "row", number)),
            )
            for number, canvas in enumerate(given)
        ]

    def _budget(self, start: int, stop: int, length: int) -> int:
        """Steps of a block: its share of all of them."""
        steps = self.sampling.steps or length
        return max(1, round(steps * stop / length) - round(steps * start / length))

    def _logits(self, states: list[Tensor]) -> Tensor:
        """(M, V) from the hidden states of each branch, with -inf for what is never written."""
        logits = [self.model.lm_head(each).float() for each in states]
        given = logits[0]
        if len(logits) == 2:
            given = logits[1] + (self.sampling.guidance + 1) * (logits[0] - logits[1])
        return given.masked_fill(self._never, -torch.inf)

    def _commit(self, row: _Row, at: Tensor, logits: Tensor, left: int) -> tuple[Tensor, Tensor]:
        """Which of the masked places (M,) are written now, and with which tokens."""
        how = self.sampling
        tokens = choose(logits, how.temperature, row.generator, how.gumbel)
        sure = sureness(logits, tokens, how.remasking, row.generator)
        ends = torch.isin(tokens, self._ends)
        if how.eos_guard:
            sure = guarded(sure, ends)
        if how.threshold is None and how.factor is None:
            kept = most_sure(sure, share(len(at), left))
        else:
            probability = logits.double().softmax(-1).gather(-1, tokens[:, None])[:, 0]
            if how.eos_guard and not bool(ends.all()):
                probability = torch.where(ends, 0.0, probability)
            if how.threshold is not None:
                kept = above(sure, probability, how.threshold)
            else:
                kept = by_factor(sure, probability, how.factor or 0.0)
        return at[kept], tokens[kept]

    def _let_go(self, rows: list[_Row], state: "_State") -> list[_Row]:
        """The rows that are not done."""
        done = [self._is_done(row.canvas) for row in rows]
        if not any(done):
            return rows
        for row, finished in zip(rows, done, strict=True):
            if finished:
                self._done[row.number] = row
        kept = [place for place, finished in enumerate(done) if not finished]
        state.keep(torch.tensor(kept, dtype=torch.long, device=self._device))
        return [rows[place] for place in kept]

    def _is_done(self, canvas: Tensor) -> bool:
        masks = (canvas == self._mask).nonzero().flatten()
        if not len(masks):
            return True
        ends = torch.isin(canvas, self._ends).nonzero().flatten()
        return bool(self.sampling.early_stop and len(ends) and ends[0] < masks[0])

    def _result(self, row: _Row) -> Written:
        ids = row.canvas.cpu().numpy()
        ends = np.flatnonzero(np.isin(ids, self._ends.cpu().numpy()))
        stop = int(ends[0]) if len(ends) else len(ids)
        ids = np.where(ids == self._mask, self._pad, ids)  # behind the end of a row that stopped early
        text = self.processor.tokenizer.decode(ids[:stop], skip_special_tokens=True)
        return Written(ids, ids[:stop], text, min(stop + 1, len(ids)), row.forwards)


def never_written(config: Any, tokenizer: Any, suppress: Sequence[int] = ()) -> Tensor:
    """(V,) bool: masks, what stands for pictures, openings of turns, and rows of the embedding without a token."""
    rows = config.text_config.vocab_size
    never = torch.ones(rows, dtype=torch.bool)
    never[list(tokenizer.get_vocab().values())] = False
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    media = [config.image_token_id, config.video_token_id, config.vision_start_token_id, config.vision_end_token_id]
    never[[config.mask_token_id, start, *media, *suppress]] = True
    return never


def begin_with_space(config: Any, tokenizer: Any) -> Tensor:
    """(V,) bool: tokens of a byte-level vocabulary whose text begins with a space."""
    begins = torch.zeros(config.text_config.vocab_size, dtype=torch.bool)
    begins[[number for token, number in tokenizer.get_vocab().items() if token.startswith("Ġ")]] = True
    return begins


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
    limit = config.text_config.max_position_embeddings
    longest = max(map(len, prompts), default=0)
    if longest + sampling.max_new_tokens > limit:
        raise BadInput(
            f"max_new_tokens {sampling.max_new_tokens}: with a prompt of {longest} tokens that is over the model's "
            f"{limit}; lower it."
        )


class _State:
    """What is kept between the steps of a block: prompts, and keys and values where the cache allows it."""

    def __init__(self, model: Any, context: Context, sampling: Sampling, mask_id: int) -> None:
        self.model = model
        self.contexts = [context]
        if sampling.guidance:
            mask = model.get_input_embeddings()(torch.tensor(mask_id, device=context.embeds.device))
            self.contexts.append(context.without_prompt(mask))
        self.pattern: str = model.config.pattern
        self.dual = sampling.cache == "dual"
        self.cached = sampling.cache == "auto" and self.pattern != "full"
        self.caches: list[FixedCache] = [prefill(model, each) for each in self.contexts] if self.cached else []
        self.start = self.stop = 0

    def begin(self, canvas: Tensor, start: int, stop: int) -> int:
        """Take up the block from `start` to `stop` of canvases (B, N). Gives the forward passes that took."""
        self.start, self.stop = start, stop
        if not self.dual:
            return 0
        (context,) = self.contexts
        cache = DynamicCache(config=self.model.config.text_config)
        run(self.model, context, canvas, self._padding(context, canvas.shape[1]), cache)
        prompt = context.mask.shape[1]
        self.caches = [FixedCache([(layer.keys, layer.values) for layer in cache.layers])]
        self.caches[0].window = prompt + start, prompt + stop
        return 1

    def hidden(self, canvas: Tensor) -> list[Tensor]:
        """Hidden states (B, n, D) of the block in work, of each branch."""
        if self.caches:
            first, ids = (self.start, canvas[:, self.start : self.stop])
            if self.pattern == "prefix":  # the whole canvas sees itself
                ids, first = canvas, 0
            found = [
                run_canvas(self.model, context, ids, first, cache)
                for context, cache in zip(self.contexts, self.caches, strict=True)
            ]
            return [states[:, self.start : self.stop] for states in found] if self.pattern == "prefix" else found
        shown = canvas[:, : self.stop] if self.pattern == "block" else canvas
        found = [run(self.model, context, shown, self._who_sees_whom(context, shown)) for context in self.contexts]
        prompt = self.contexts[0].mask.shape[1]
        return [states[:, prompt + self.start : prompt + self.stop] for states in found]

    def finish(self, canvas: Tensor) -> int:
        """Put the finished block where later ones see it. Gives the forward passes that took."""
        if not self.cached or self.pattern != "block" or self.stop == canvas.shape[1]:
            return 0
        for context, cache in zip(self.contexts, self.caches, strict=True):
            cache.growing = True
            run_canvas(self.model, context, canvas[:, self.start : self.stop], self.start, cache)
            cache.growing = False
        return len(self.contexts)

    def keep(self, kept: Tensor) -> None:
        """Let all other rows go."""
        self.contexts = [context.rows(kept) for context in self.contexts]
        self.caches = [cache.rows(kept) for cache in self.caches]

    def _padding(self, context: Context, count: int) -> Tensor | None:
        """(B, P + N), None without padding."""
        if bool(context.mask.all()):
            return None
        return torch.cat([context.mask, context.mask.new_ones(len(context), count)], 1).long()

    def _who_sees_whom(self, context: Context, shown: Tensor) -> Tensor | None:
        """The mask of a forward over prompts and canvas."""
        count = shown.shape[1]
        if self.pattern == "full":
            return self._padding(context, count)
        size = self.model.config.block_size or count
        blocks = torch.arange(count, device=shown.device) // size
        levels = torch.cat([context.levels, context.levels[:, -1:] + 1 + blocks], 1)
        working = torch.arange(count, device=shown.device) >= (self.start if self.pattern == "block" else 0)
        clean = torch.cat([torch.ones_like(context.mask), ~working.expand(len(shown), -1)], 1)
        documents = torch.cat([torch.where(context.mask, 0, -1), torch.zeros_like(shown)], 1)
        return visible(levels, clean, documents)


class _evaluating:
    """The model in evaluation mode, and back as it was."""

    def __init__(self, model: Any) -> None:
        self.model, self.training = model, model.training

    def __enter__(self) -> None:
        self.model.eval()

    def __exit__(self, *_: Any) -> None:
        self.model.train(self.training)
