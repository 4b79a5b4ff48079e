"""Masked diffusion: what the exact prefix and block caches save when answers are written, and label rows in training.

    python benchmarks/mdlm.py [--quick]

Writing: 16 tokens, one in each step, behind prompts 2, 8 and 16 times as long, by models of random weights whose head
is to the body as that of the 2B model is (about 13M parameters in 4 layers, 4,096 rows); `uncached` computes prompt and
canvas in every step, `cached` the prompt once. The tokens have to be the same. The loss step (forward and backward of
the head) is at the real vocabulary: `full` takes logits of every token and weighs those that are masked, as dllm does,
`masked` takes logits of masked rows only, in chunks (qvl_core.qwen3vl.head). 512 tokens, half of them answers, of which
exact-count masks hide what they do.

fp32, one thread. Arms take turns, so that a busy machine is unfair to none; time is CPU time. Memory is the highest
resident size over the size before the step, each arm in a process of its own. Writes benchmarks/results/mdlm.json, and
fails if a bar does not hold: both caches >= 2x tokens per second at 8:1 and above, the same tokens everywhere; full >=
2x the memory of masked.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from arms import record
from head import peak, spread
from torch import Tensor
from torch.nn.functional import cross_entropy

from qvl_core.qwen3vl.head import label_nll
from qvl_core.qwen3vl.tiny import tiny_config, tiny_processor
from qvl_core.training.samples import Place
from qvl_mdlm.bench import measure
from qvl_mdlm.config import masked_config
from qvl_mdlm.model import Qwen3VLForMaskedLM
from qvl_mdlm.noise import Noise
from qvl_mdlm.sampling import Sampling

TOKENS, RATIOS = 16, (2, 8, 16)
BODY = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 4, "num_attention_heads": 8}
HEAD_ROWS, VOCABULARY = 4096, 151_936
ROWS, ANSWERS, LENGTH, WIDTH = 512, 8, 32, 512  # tokens; answers among them, and their length; hidden width
PATTERNS: dict[str, dict[str, Any]] = {"prefix": {"pattern": "prefix"}, "block": {"pattern": "block", "block_size": 8}}
LONG, BAR = 8, 2.0  # tokens of the prompt for each of the answer from which a cache has to be so many times as fast
RESULT = Path(__file__).parent / "results" / "mdlm.json"
Case = tuple[Tensor, Tensor, Tensor, Tensor]  # hidden (512, D), weight (V, D), targets (512,), weights (512,)


def model_of(processor: Any, settings: dict[str, Any], body: dict[str, int], rows: int) -> Any:
    """A model of random weights, three times as large as at birth, so that answers differ from place to place."""
    config = tiny_config(processor.tokenizer)
    for name, value in {**body, "vocab_size": rows}.items():
        setattr(config.text_config, name, value)
    config.vision_config.out_hidden_size = body["hidden_size"]
    torch.manual_seed(0)
    model = Qwen3VLForMaskedLM(masked_config(config, processor.tokenizer, **settings)).eval()
    with torch.no_grad():
        for parameter in model.model.language_model.layers.parameters():
            if parameter.ndim == 2:
                parameter.mul_(3)
    return model


def writing(pattern: str, ratio: int, repeats: int, body: dict[str, int]) -> dict[str, Any]:
    """What `qvl-mdlm bench` says of both ways to write one answer, in CPU time."""
    processor = tiny_processor()
    model = model_of(processor, PATTERNS[pattern], body, HEAD_ROWS)
    plain = Sampling(max_new_tokens=TOKENS, early_stop=False, cache="none")
    ways = {"uncached": plain, "cached": replace(plain, cache="auto")}
    uncached, cached = measure(model, processor, ways, ratio, repeats=repeats, clock=time.process_time)
    return {
        "pattern": pattern,
        "prompt_tokens": cached.prompt_tokens,
        "answer_tokens": TOKENS,
        "repeats": repeats,
        "tokens_per_cpu_second": {one.way: round(one.tokens_per_second, 2) for one in (uncached, cached)},
        "forwards": {one.way: one.forwards for one in (uncached, cached)},
        "prefills": {one.way: one.prefills for one in (uncached, cached)},
        "same_tokens": cached.same == 1,
        "speedup": round(cached.tokens_per_second / uncached.tokens_per_second, 2),
    }


def full(hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    nll = cross_entropy((hidden @ weight.T).float(), targets, reduction="none")
    return (nll * weights).sum()


def masked(hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    rows = weights.nonzero().flatten()
    return label_nll(hidden[rows], weight, targets[rows], weights[rows])[0]


ARMS: dict[str, Callable[..., Tensor]] = {"full": full, "masked": masked}


def case(width: int) -> Case:
    """Hidden states of a batch, and what its masks weigh: 0 where nothing is masked."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, width, generator=generator, requires_grad=True)
    weight = torch.empty(VOCABULARY, width).normal_(std=0.02, generator=generator)
    targets = torch.randint(VOCABULARY, (ROWS,), generator=generator)
    weights = torch.zeros(ROWS)
    noise = Noise()
    for answer in range(ANSWERS):
        start = (2 * answer + 1) * LENGTH  # behind its prompt, which is as long
        weights[start : start + LENGTH] = torch.from_numpy(
            noise.draw(np.zeros(LENGTH, int), 0, Place(0, answer, ANSWERS))[1]
        )
    return hidden, weight, targets, weights


def step(arm: str, inputs: Case) -> tuple[float, float]:
    """Loss and the norm of the hidden states' gradient after one forward and backward."""
    hidden = inputs[0]
    hidden.grad = None
    loss = ARMS[arm](*inputs)
    loss.backward()
    assert hidden.grad is not None
    return loss.item(), hidden.grad.norm().item()


def extra_memory(arm: str, width: int) -> float:
    """MiB that one step adds, measured in a fresh process."""
    command = [sys.executable, __file__, "--memory-of", arm, "--width", str(width)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def print_extra_memory(arm: str, width: int) -> None:
    inputs = case(width)
    small = torch.randn(4, width), torch.randn(8, width), torch.zeros(4, dtype=torch.long), torch.ones(4)
    ARMS[arm](*small)  # load
    before = psutil.Process().memory_info().rss
    step(arm, inputs)
    print((peak() - before) / 2**20)


def loss_step(width: int, repeats: int, memory: dict[str, float]) -> dict[str, Any]:
    inputs = case(width)
    figures = {arm: step(arm, inputs) for arm in ARMS}  # warm-up
    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for arm in list(ARMS) * repeats:
        began = time.process_time()
        step(arm, inputs)
        seconds[arm].append(time.process_time() - began)
    medians = {arm: statistics.median(times) for arm, times in seconds.items()}
    return {
        "tokens": ROWS,
        "masked": int((inputs[3] > 0).sum()),
        "vocabulary": VOCABULARY,
        "width": width,
        "repeats": repeats,
        "cpu_seconds": {arm: spread(times) for arm, times in seconds.items()},
        "extra_mib": {arm: round(mib, 1) for arm, mib in memory.items()},
        "loss": {arm: loss for arm, (loss, _) in figures.items()},
        "gradient_norm": {arm: norm for arm, (_, norm) in figures.items()},
        "time_ratio": round(medians["full"] / medians["masked"], 2),
        "memory_ratio": round(memory["full"] / memory["masked"], 2),
    }


def missed(written: Sequence[dict[str, Any]], loss: dict[str, Any]) -> list[str]:
    """The bars that do not hold, in words."""
    found = []
    for one in written:
        name = f"{one['pattern']} cache at {one['prompt_tokens']}:{one['answer_tokens']}"
        if not one["same_tokens"]:
            found.append(f"{name}: other tokens than uncached")
        if one["prompt_tokens"] >= LONG * one["answer_tokens"] and one["speedup"] < BAR:
            found.append(f"{name}: {one['speedup']} x uncached, must be {BAR}")
    if loss["memory_ratio"] < BAR:
        found.append(f"loss step: full takes {loss['memory_ratio']} x the memory of masked, must be {BAR}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a narrow model, one ratio, two repeats; writes nothing")
    parser.add_argument("--memory-of", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--width", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.memory_of:
        print_extra_memory(arguments.memory_of, arguments.width)
        return

    width, repeats = (64, 2) if arguments.quick else (WIDTH, 3)
    body = {"hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 3} if arguments.quick else BODY
    # First, while this process is small: Linux lets a child start from its parent's peak.
    memory = {arm: extra_memory(arm, width) for arm in ARMS}
    loss = loss_step(width, repeats, memory)
    print(f"loss step: full / masked: time {loss['time_ratio']}, memory {loss['memory_ratio']} {loss['extra_mib']}")
    written = []
    for pattern in PATTERNS:
        for ratio in (8,) if arguments.quick else RATIOS:
            one = writing(pattern, ratio, repeats, body)
            written.append(one)
            print(
                f"{pattern:>7} {one['prompt_tokens']:>4}:{TOKENS} tokens/CPU-s {one['tokens_per_cpu_second']} "
                f"speed-up {one['speedup']}, same tokens: {one['same_tokens']}"
            )
    if arguments.quick:  # too narrow for the bars
        return
    misses = missed(written, loss)
    print(*misses, sep="\n")
    figures = {"missed": misses, "writing": written, "loss_step": loss}
    record.write(RESULT, record.versions("torch", "transformers"), {"threads": 1}, **figures)
    sys.exit(1 if misses else 0)


if __name__ == "__main__":
    main()
