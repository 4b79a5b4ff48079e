"""Writing by denoising: a canvas of masks, some of which become tokens in every step.

    answers = sample(model, processor, prompts, Sampling(max_new_tokens=64, threshold=0.9))

Rows do not depend on one another: a batch gives what its prompts give alone, in any order; a drawn token depends on the
seed, the prompt's key and the row's step. A row is done when nothing is masked up to its first end token, and is then
let go.

A step is one forward, one head over what is masked in all rows, and one time that the host waits for the device.

Shapes: B rows, N tokens of the canvas, n of a block, M masked places, m of them in one row, D hidden width, V
vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.encoded import Encoded
from qvl_core.qwen3vl.head import CHUNK
from qvl_core.qwen3vl.loss import core_of
from qvl_core.qwen3vl.seen import Seen
from qvl_core.training.seeds import mix
from qvl_mdlm.commit import (
    above,
    by_factor,
    choose,
    ends_wait,
    guarded,
    most_sure,
    probability_of,
    share,
    shares,
    sureness,
    together,
)
from qvl_mdlm.config import markers
from qvl_mdlm.context import read_prompts
from qvl_mdlm.sampling import Sampling, block_of, check_sampling
from qvl_mdlm.state import State

Ids = NDArray[np.int64]
Key = int | str


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
    forwards  forward passes over canvas tokens while the row was not done: two a step with guidance, and what a cache
              takes to read a finished block (`block`) or everything anew (`dual`)
    prefills  forward passes over the prompt alone, which an exact cache takes before the first step; not in `forwards`
    """

    ids: Ids
    answer: Ids
    text: str
    tokens: int
    forwards: int
    prefills: int


def sample(
    model: Any,
    processor: Any,
    prompts: Sequence[Encoded],
    sampling: Sampling,
    canvases: Sequence[Ids] | None = None,
    spaced: Sequence[Ids] | None = None,
    keys: Sequence[Key] | None = None,
    seen: Sequence[Seen] | None = None,
) -> list[Written]:
    """Answers, in the order of the prompts.

    model     a `Qwen3VLForMaskedLM`, as loaded or with peft around it
    prompts   chats up to and including the generation prompt (`qvl_data.chat.prompt`)
    canvases  (N,) of each: what is to stand behind its prompt, with mask tokens where it may be written; default: masks
              alone. What is given stays.
    spaced    (k,) of each: places of a canvas whose token has to begin with a space
    keys      numbers or names that decide, with the seed, what is drawn for each; default: the ids of the prompts, so
              that what is the same sample is answered the same
    seen      of each: what the vision tower gave for its media already (`qvl_core.qwen3vl.seen.look`)

    Raises BadInput for what does not fit together, or what this model cannot do.
    """
    writer = Writer(model, processor, prompts, sampling, canvases, spaced, keys, seen)
    for _ in writer.steps():
        pass
    return writer.results()


@dataclass
class _Row:
    """One prompt's canvas while it is written."""

    number: int
    key: Key
    canvas: Ids  # (N,)
    spaced: NDArray[np.bool_]  # (N,)
    steps: int = 0
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
    keys: Sequence[Key] | None = None
    seen: Sequence[Seen] | None = None
    _done: dict[int, _Row] = field(default_factory=dict, init=False)
    _prefills: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.model = core_of(self.model)
        check_sampling(self.model.config, self.sampling, self.prompts)
        self._check_given()
        tokenizer, config = self.processor.tokenizer, self.model.config
        self._mask = int(config.mask_token_id)
        self._device = self.model.get_input_embeddings().weight.device
        self._ends = np.array(sorted({tokenizer.eos_token_id, tokenizer.pad_token_id}))
        never = never_written(config, tokenizer, self.sampling.suppress)
        if bool(never.all()):
            raise BadInput("suppress: leaves no token that could be written; name fewer.")
        self._never = never.nonzero().flatten().to(self._device)
        self._spaces = begin_with_space(config, tokenizer).to(self._device) if self.spaced is not None else None
        self._pad = int(tokenizer.pad_token_id)

    def _check_given(self) -> None:
        length, rows = self.sampling.max_new_tokens, self.model.config.text_config.vocab_size
        for name in ("canvases", "spaced", "keys", "seen"):
            given = getattr(self, name)
            if given is not None and len(given) != len(self.prompts):
                raise BadInput(f"{name}: are {len(given)}, for {len(self.prompts)} prompts; give one for each.")
        for number, canvas in enumerate(self.canvases or ()):
            if np.shape(canvas) != (length,):
                raise BadInput(
                    f"canvas {number}: has {np.size(canvas)} tokens where max_new_tokens is {length}; fill it up with "
                    "masks, or set max_new_tokens to the length of all canvases."
                )
            if np.min(canvas) < 0 or np.max(canvas) >= rows:
                raise BadInput(f"canvas {number}: has ids outside of 0 to {rows - 1}; remove them.")

    def steps(self) -> Iterator[Step]:
        """Write all canvases; after each step, what has become of those in work."""
        with torch.no_grad(), _evaluating(self.model):
            yield from self._steps()

    def results(self) -> list[Written]:
        return [self._result(self._done[number]) for number in range(len(self.prompts))]

    def _steps(self) -> Iterator[Step]:
        rows = self._rows()
        if not rows:
            return
        how, length = self.sampling, self.sampling.max_new_tokens
        block = block_of(self.model.config, how)
        context = read_prompts(self.model, self.processor, self.prompts, self.seen)
        state = State(self.model, context, length, how.cache, guided=how.guidance > 0)
        self._prefills = state.prefills
        number = 0
        for start, left in zip(range(0, length, block), shares(how.steps or length, length, block), strict=True):
            stop = min(start + block, length)
            _count(rows, state.begin(self._canvas(rows), start, stop))
            while any(map(len, opened := [masked_places(row.canvas, start, stop, self._mask) for row in rows])):
                hidden = state.hidden(self._canvas(rows))  # of the block, one for each branch: (B, n, D)
                written = []
                for row, places, judged in zip(rows, opened, self._judge(rows, opened, start, hidden), strict=True):
                    kept = places[:0]
                    if len(places):
                        tokens, chosen = self._commit(judged, left)
                        kept = places[chosen]
                        row.canvas[kept] = tokens
                        row.steps += 1
                        row.forwards += len(hidden)
                    written.append(kept)
                left = max(1, left - 1)
                yield Step(
                    number, tuple(row.number for row in rows), tuple(row.canvas.copy() for row in rows), tuple(written)
                )
                number += 1
                rows = self._let_go(rows, state)
                if not rows:
                    return
            _count(rows, state.finish(self._canvas(rows)))
        self._done.update((row.number, row) for row in rows)

    def _rows(self) -> list[_Row]:
        length, count = self.sampling.max_new_tokens, len(self.prompts)
        canvases = self.canvases if self.canvases is not None else [np.full(length, self._mask)] * count
        spaced = self.spaced if self.spaced is not None else [np.zeros(0, np.int64)] * count
        keys = self.keys if self.keys is not None else [prompt.id for prompt in self.prompts]
        return [
            _Row(number, key, np.array(canvas, np.int64), np.isin(np.arange(length), places))
            for number, (key, canvas, places) in enumerate(zip(keys, canvases, spaced, strict=True))
        ]

    def _canvas(self, rows: list[_Row]) -> Tensor:
        """(B, N)"""
        return torch.from_numpy(np.stack([row.canvas for row in rows])).to(self._device)

    def _judge(self, rows: list[_Row], opened: list[Ids], start: int, hidden: list[Tensor]) -> Sequence[Tensor]:
        """What the model says of the masked places of each row, on the host: see `_judged`."""
        width = hidden[0].shape[1]
        at = np.concatenate([place * width + places - start for place, places in enumerate(opened)])
        index = torch.from_numpy(at).to(self._device)
        states = [each.flatten(0, 1).index_select(0, index) for each in hidden]  # (M, D)
        counts = list(map(len, opened))
        ends = np.cumsum([0, *counts])
        judged = []
        for run in together(counts, CHUNK // self.model.config.text_config.vocab_size):
            some = slice(ends[run.start], ends[run.stop])
            judged.append(self._judged(rows[run], opened[run], [each[some] for each in states]))
        return torch.cat(judged, 1).cpu().split(counts, 1)

    def _judged(self, rows: list[_Row], opened: list[Ids], states: list[Tensor]) -> Tensor:
        """(3, M) fp64: the token of each place, how sure the model is of it, and its probability."""
        how = self.sampling
        logits = self._logits(states)
        if self._spaces is not None:
            first = np.flatnonzero(np.concatenate([row.spaced[at] for row, at in zip(rows, opened, strict=True)]))
            index = torch.from_numpy(first).to(self._device)
            logits[index] = logits[index].masked_fill(~self._spaces, -torch.inf)
        of_rows = list(zip(rows, logits.split(list(map(len, opened))), strict=True))
        if how.temperature == 0:
            tokens = logits.argmax(-1)
        else:
            drawn = ((own, self._uniform(row, "token", own.shape)) for row, own in of_rows)  # one row's noise at a time
            tokens = torch.cat([choose(own, how.temperature, noise, how.gumbel) for own, noise in drawn])
        probability, norm = probability_of(logits, tokens)
        if how.remasking == "random":
            sure = torch.cat([self._uniform(row, "order", own.shape[:1]) for row, own in of_rows])
        else:
            sure = sureness(logits, norm, probability, how.remasking)
        return torch.stack([tokens.double(), sure.double(), probability.double()])

    def _uniform(self, row: _Row, what: str, shape: Sequence[int]) -> Tensor:
        """Numbers from [0, 1) in fp64, drawn on the device from the seed, the row's key and its step alone."""
        seed = mix(self.sampling.seed, what, row.key, row.steps)
        generator = torch.Generator(self._device).manual_seed(seed)
        return torch.rand(shape, generator=generator, dtype=torch.float64, device=self._device)

    def _logits(self, states: list[Tensor]) -> Tensor:
        """(M, V) from the hidden states (M, D) of each branch, with -inf for what is never written."""
        logits = [self.model.lm_head(each) for each in states]
        given, *rest = [each.to(torch.promote_types(each.dtype, torch.float32)) for each in logits]
        for blind in rest:
            given = blind + (self.sampling.guidance + 1) * (given - blind)
        return given.index_fill_(1, self._never, -torch.inf)

    def _commit(self, judged: Tensor, left: int) -> tuple[Ids, Ids]:
        """Tokens that are written now in one row, and which of its masked places (m,) they are for."""
        how = self.sampling
        tokens, sure, probability = judged  # (m,)
        ends = torch.from_numpy(np.isin(tokens, self._ends))
        if how.eos_guard:
            sure = guarded(sure, ends)
            if ends_wait(ends, probability, how.threshold):
                probability = torch.where(ends, -torch.inf, probability)
        if how.threshold is not None:
            kept = above(sure, probability, how.threshold)
        elif how.factor is not None:
            kept = by_factor(sure, probability, how.factor)
        else:
            kept = most_sure(sure, share(len(sure), left))
        return tokens[kept].long().numpy(), kept.numpy()

    def _let_go(self, rows: list[_Row], state: State) -> list[_Row]:
        """The rows that are not done."""
        done = [self._is_done(row.canvas) for row in rows]
        if not any(done):
            return rows
        self._done.update((row.number, row) for row, finished in zip(rows, done, strict=True) if finished)
        kept = [place for place, finished in enumerate(done) if not finished]
        if kept:
            state.keep(kept)
        return [rows[place] for place in kept]

    def _is_done(self, canvas: Ids) -> bool:
        masks = np.flatnonzero(canvas == self._mask)
        if not len(masks):
            return True
        ends = np.flatnonzero(np.isin(canvas, self._ends))
        return bool(self.sampling.early_stop and len(ends) and ends[0] < masks[0])

    def _result(self, row: _Row) -> Written:
        ends = np.flatnonzero(np.isin(row.canvas, self._ends))
        stop = int(ends[0]) if len(ends) else len(row.canvas)
        ids = np.where(row.canvas == self._mask, self._pad, row.canvas)  # behind the end of a row that stopped early
        text = self.processor.tokenizer.decode(ids[:stop], skip_special_tokens=True)
        return Written(ids, ids[:stop], text, min(stop + 1, len(ids)), row.forwards, self._prefills)


def masked_places(canvas: Ids, start: int, stop: int, mask: int) -> Ids:
    """Places (m,) of a canvas that are masked, from `start` to `stop`."""
    return start + np.flatnonzero(canvas[start:stop] == mask)


def _count(rows: list[_Row], forwards: int) -> None:
    for row in rows:
        row.forwards += forwards


def never_written(config: Any, tokenizer: Any, suppress: Sequence[int] = ()) -> Tensor:
    """(V,) bool: masks, what stands for pictures, openings of turns, and rows of the embedding without a token."""
    rows = config.text_config.vocab_size
    never = torch.ones(rows, dtype=torch.bool)
    never[list(tokenizer.get_vocab().values())] = False
    never[[config.mask_token_id, *markers(config, tokenizer).values(), *suppress]] = True
    return never


def begin_with_space(config: Any, tokenizer: Any) -> Tensor:
    """(V,) bool: tokens of a byte-level vocabulary whose text begins with a space."""
    begins = torch.zeros(config.text_config.vocab_size, dtype=torch.bool)
    begins[[number for token, number in tokenizer.get_vocab().items() if token.startswith("Ġ")]] = True
    return begins


class _evaluating:
    """The model in evaluation mode, and back as it was."""

    def __init__(self, model: Any) -> None:
        self.model, self.training = model, model.training

    def __enter__(self) -> None:
        self.model.eval()

    def __exit__(self, *_: Any) -> None:
        self.model.train(self.training)
