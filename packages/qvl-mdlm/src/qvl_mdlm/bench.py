"""`qvl-mdlm bench`: how fast a model writes, in each way that it can, at several lengths of the prompt.

Prompts are of random words and answers are written to their last token: what is measured is time, not quality. How
many tokens a threshold writes at once depends on the model and on what it is asked; measure that with `evaluate`. Ways
take turns, so that a busy machine is unfair to none.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from qvl_core.errors import BadInput
from qvl_core.files import write_atomic
from qvl_core.qwen3vl.encoded import IGNORE, Encoded
from qvl_core.qwen3vl.generate import inputs_of
from qvl_core.qwen3vl.load import find_folder, load_model
from qvl_core.recipe.blocks import Model
from qvl_core.training.engine import resolve_precision
from qvl_data.asked import asked
from qvl_data.chat import prompt
from qvl_mdlm.config import Pattern
from qvl_mdlm.opening import open_masked
from qvl_mdlm.sample import sample
from qvl_mdlm.sampling import Sampling

THRESHOLD = 0.9
BLOCKS = 4  # of an answer, where the dual cache works block by block
AUTOREGRESSIVE = "autoregressive"


@dataclass(frozen=True)
class Timing:
    """One way to write, at one length of the prompt.

    way                the first is the plain one, which computes everything in every step
    ratio              tokens of the prompt for each of the answer
    tokens_per_second  median over the repeats, of all answers together
    forwards           forward passes over an answer's tokens (the base's first is over the prompt)
    prefills           forward passes over the prompt alone; their time counts
    same               part of the answers that are the plain way's, token for token; None: has another model
    """

    way: str
    ratio: int
    prompt_tokens: int
    answer_tokens: int
    answers: int
    tokens_per_second: float
    forwards: float
    prefills: int
    same: float | None

    @property
    def forwards_per_token(self) -> float:
        return self.forwards / self.answer_tokens


def bench(
    model: str,
    base: str | None = None,
    ratios: Sequence[int] = (2, 8, 16),
    tokens: int = 32,
    rows: int = 1,
    repeats: int = 3,
    out: Path | None = None,
) -> list[Timing]:
    """Print a table of a model's speeds, and write them to the JSON file `out`.

    base  an autoregressive model to compare with

    Raises BadInput for a model that is no masked diffusion model, and for a base or a file's folder that is not there.
    """
    if out is not None and not out.parent.is_dir():
        raise BadInput(f"--out {out}: there is no folder {out.parent}; make it first.")
    against = None if base is None else Model(name=str(find_folder(base, key="--base")))
    opened = open_masked(model)
    hows = ways(opened[0].config.pattern, tokens)
    timings = [timing for ratio in ratios for timing in measure(*opened, hows, ratio, rows, repeats)]
    if against is not None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        autoregressive = load_model(against, precision=resolve_precision("auto", device), device=device)
        timings += [measure_base(*autoregressive, ratio, tokens, rows, repeats) for ratio in ratios]
    Console().print(_table(timings))
    if out is not None:
        records = [{**vars(one), "forwards_per_token": one.forwards_per_token} for one in timings]
        write_atomic(out, json.dumps({"model": model, "base": base, "timings": records}, indent=1) + "\n")
        print(out)
    return timings


def ways(pattern: Pattern, tokens: int) -> dict[str, Sampling]:
    """How a model of this pattern can write an answer; the first is the plain way."""
    plain = Sampling(max_new_tokens=tokens, early_stop=False, cache="none")
    cached = replace(plain, cache="auto")
    if pattern == "full":
        dual = replace(plain, cache="dual", block=max(1, tokens // BLOCKS))
        return {
            "uncached": plain,
            f"uncached, threshold {THRESHOLD}": replace(plain, threshold=THRESHOLD),
            "dual cache (approximate)": dual,
            f"dual cache (approximate), threshold {THRESHOLD}": replace(dual, threshold=THRESHOLD),
        }
    return {
        "uncached": plain,
        f"exact {pattern} cache": cached,
        f"exact {pattern} cache, threshold {THRESHOLD}": replace(cached, threshold=THRESHOLD),
    }


def measure(
    model: Any,
    processor: Any,
    hows: Mapping[str, Sampling],
    ratio: int,
    rows: int = 1,
    repeats: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Timing]:
    """Each way to write `rows` answers behind prompts `ratio` times as long, with the first way's answers compared."""
    tokens = next(iter(hows.values())).max_new_tokens
    prompts = random_prompts(processor, ratio * tokens, rows)
    timed = _timed({way: partial(sample, model, processor, prompts, how) for way, how in hows.items()}, repeats, clock)
    plain = next(iter(timed.values()))[0]
    timings = []
    for way, (written, seconds) in timed.items():
        same = sum(np.array_equal(one.ids, other.ids) for one, other in zip(written, plain, strict=True)) / rows
        forwards = sum(one.forwards for one in written) / rows
        speed, prefills = rows * tokens / seconds, written[0].prefills
        timings.append(Timing(way, ratio, len(prompts[0]), tokens, rows, speed, forwards, prefills, same))
    return timings


def measure_base(model: Any, processor: Any, ratio: int, tokens: int, rows: int = 1, repeats: int = 3) -> Timing:
    """The library's greedy generation of an autoregressive model, at the same lengths."""
    inputs = inputs_of(model, processor.tokenizer, random_prompts(processor, ratio * tokens, rows))
    options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
    pad = processor.tokenizer.pad_token_id
    works = {AUTOREGRESSIVE: lambda: model.generate(**inputs, **options, pad_token_id=pad).cpu()}
    _, seconds = _timed(works, repeats)[AUTOREGRESSIVE]
    length = inputs["input_ids"].shape[1]
    return Timing(AUTOREGRESSIVE, ratio, length, tokens, rows, rows * tokens / seconds, tokens, 0, None)


def random_prompts(processor: Any, tokens: int, rows: int) -> list[Encoded]:
    """Questions of random words, each `tokens` long with what the template writes around it (at least that)."""
    tokenizer = processor.tokenizer
    frame = prompt(asked("?"), processor)[0].ids
    place = int(np.flatnonzero(frame == tokenizer.convert_tokens_to_ids("<|im_end|>"))[-1])
    words = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.added_tokens_decoder))
    rng = np.random.default_rng(0)
    found = []
    for number in range(rows):
        ids = np.insert(frame, place, rng.choice(words, max(0, tokens - len(frame))))
        found.append(Encoded(f"random-{number}", ids, np.full(len(ids), IGNORE), np.zeros(len(ids), np.int64)))
    return found


def _timed(
    works: Mapping[str, Callable[[], Any]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, tuple[Any, float]]:
    """What each work gives, and the median of its seconds after a first time that does not count."""
    done = {name: work() for name, work in works.items()}
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for name in list(works) * repeats:
        began = clock()
        works[name]()
        seconds[name].append(clock() - began)
    return {name: (done[name], median(seconds[name])) for name in works}


def _table(timings: Sequence[Timing]) -> Table:
    """Speeds, and how they relate to the plain way's at the same length."""
    plain = {one.ratio: one.tokens_per_second for one in timings if one.way == "uncached"}
    shown = Table()
    for column in ("tokens", "way", "a second", "× plain", "forwards each", "prefills", "same"):
        shown.add_column(column, justify="left" if column == "way" else "right")
    for one in sorted(timings, key=lambda one: one.ratio):
        shown.add_row(
            f"{one.prompt_tokens}:{one.answer_tokens}",
            one.way,
            f"{one.tokens_per_second:.1f}",
            f"{one.tokens_per_second / plain[one.ratio]:.2f}",
            f"{one.forwards_per_token:.2f}",
            f"{one.prefills}",
            "" if one.same is None else f"{one.same:.0%}",
        )
    return shown
