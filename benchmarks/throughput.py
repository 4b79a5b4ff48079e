"""Real (not padding) tokens per second of training, QVL against the trainers people use, on one CPU thread.

    python benchmarks/throughput.py [--quick] [--steps 12] [--only ARM ...]

qvl      qvl_core.training.loop.fit: packed rows, per-document attention, head on label rows in chunks, fused AdamW
trainer  transformers.Trainer with a padding collator and the model's own loss, as the documents write it; its default
         optimizer is the fused AdamW by now
tuned    the same with samples grouped by length, as the library groups a set of this size
grouped  the same as it groups a set of thousands: sorted within 50 batches, which here is all of them
trl      TRL's SFTTrainer in an environment of its own, which uv makes; left out, with the reason, where it cannot

Cases: all weights trained, LoRA, QLoRA (nf4); one picture in each sample, three, or a clip; a small body, a tiny one.

And, to know each gain alone, QVL with one thing taken away: padded (rows instead of packing), full_logits (head on
every row), dense_mask (the library's block-diagonal mask), two_gradients (one matrix for the head and another for the
embedding), unfused (AdamW one tensor at a time), conv_patches (Conv3d), with_gradients (the frozen tower is recorded);
and with one thing added, cached (the frozen tower's features from disk, as in all epochs but the first), recomputed
(activations computed again in the backward pass, which costs time and saves memory) and compiled (torch.compile).
Length grouping alone is tuned against trainer; offloading needs a GPU (tests/gpu/test_speed_gpu.py).

Every arm starts from the same weights and makes the same steps of 8 samples, each with media of 64 x 64 pixels, of
log-normal length up to 300 tokens, the last fifth of which are labels. Arms are processes that take turns, one step
each, so that a busy machine is unfair to none. The clock is CPU time from the end of one optimizer step to the end of
the next, starting from encoded samples in memory: collation, forward, backward, clipping, update, logging.
Tokens per second are those of all timed steps together (the samples are the same, in whatever order).

The first step's mean loss must be equal in all arms to 1e-4. Writes benchmarks/results/throughput.json.
Must hold: small body, all cases: qvl >= 3.5 x trainer, 3 x tuned, 4 x trl; tiny body qvl >= 1.3 x trl.
"""

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from arms import record

HERE = Path(__file__).parent
RESULT = HERE / "results" / "throughput.json"
SIZE, PIXELS, LONGEST = 8, 64, 300  # samples per step, side of a picture, tokens of a sample
LABELLED = 0.2
TOLERANCE = 1e-4  # of the mean loss over labels
TRL = "trl==1.16.0"
OPPONENTS = ("qvl", "trainer", "tuned", "grouped", "trl")
MEGABATCHES = {"tuned": None, "grouped": 50}  # batches that are sorted together; None: the library's choice
ADDED = ("recomputed", "compiled")
ABLATIONS = ("qvl", "padded", "full_logits", "dense_mask", "two_gradients", "unfused", "conv_patches", *ADDED)
WITH_ADAPTERS = ("qvl", "padded", "full_logits", "unfused", "conv_patches", "with_gradients", "cached", *ADDED)


@dataclass(frozen=True)
class Body:
    """Shape of a model."""

    layers: int
    width: int
    vocabulary: int

    def config(self, tokens: dict[str, int]) -> Any:
        from transformers import Qwen3VLConfig

        heads, tower = self.width // 64 if self.width > 128 else 4, max(96, self.width // 2)
        head_dim = self.width // heads
        third = head_dim // 6
        return Qwen3VLConfig(
            text_config={
                "vocab_size": self.vocabulary,
                "hidden_size": self.width,
                "intermediate_size": 3 * self.width,
                "num_hidden_layers": self.layers,
                "num_attention_heads": heads,
                "num_key_value_heads": heads // 2,
                "head_dim": head_dim,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 10_000.0,
                    "mrope_section": [head_dim // 2 - 2 * third, third, third],
                    "mrope_interleaved": True,
                },
            },
            vision_config={
                "depth": 3,
                "hidden_size": tower,
                "num_heads": 4,
                "intermediate_size": 4 * tower,
                "out_hidden_size": self.width,
                "num_position_embeddings": 256,
                "deepstack_visual_indexes": [1, 2],
            },
            tie_word_embeddings=True,
            **tokens,
        )


BODIES = {"small": Body(8, 512, 151_936), "tiny": Body(3, 128, 400)}


@dataclass(frozen=True)
class Case:
    """What is trained on what, and how many times faster than each opponent QVL must be."""

    body: str
    method: str = "full"
    media: str = "picture"
    opponents: tuple[str, ...] = ("qvl", "trainer", "tuned", "trl")
    ablations: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.body}, {self.method}, {self.media}"

    @property
    def bars(self) -> dict[str, float]:
        return {"trl": 1.3} if self.body == "tiny" else {"trainer": 3.5, "tuned": 3.0, "trl": 4.0}


CASES = (
    Case("small", opponents=OPPONENTS, ablations=ABLATIONS),
    Case("small", "lora", ablations=WITH_ADAPTERS),
    Case("small", "qlora"),
    Case("small", media="pictures"),
    Case("small", media="video"),
    Case("tiny", opponents=OPPONENTS, ablations=ABLATIONS),
)


def write_model(folder: Path, body: Body) -> int:
    """Save a random model and its processor where every arm loads them from. Returns the number of parameters."""
    import torch
    from transformers import Qwen3VLForConditionalGeneration

    from qvl_core.qwen3vl.tiny import tiny_processor

    processor = tiny_processor(["0"])  # bytes and special tokens alone: fewer than the smallest vocabulary
    names = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    tokens = {key: processor.tokenizer.convert_tokens_to_ids(name) for key, name in names.items()}
    torch.manual_seed(0)
    model = Qwen3VLForConditionalGeneration(body.config(tokens))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model.num_parameters()


def samples(folder: Path, count: int, media: str = "picture", seed: int = 0) -> list[dict[str, Any]]:
    """Encoded samples of random tokens: start, `media`, text, and an answer of LABELLED of the length."""
    import torch
    from transformers import Qwen3VLConfig

    config = Qwen3VLConfig.from_pretrained(folder)
    vision, rng = config.vision_config, np.random.default_rng(seed)
    side = PIXELS // vision.patch_size
    clip, number = media == "video", 1 if media == "picture" else 3  # pictures, or frame pairs of the clip
    pad = config.video_token_id if clip else config.image_token_id
    one = [config.vision_start_token_id, *[pad] * (side // vision.spatial_merge_size) ** 2, config.vision_end_token_id]
    head = one * number
    made = []
    for length in np.clip(rng.lognormal(math.log(48), 0.8, count).astype(int), len(head) + 10, LONGEST):
        ids = rng.integers(300, config.text_config.vocab_size, length)  # beyond the bytes and the special tokens
        ids[1 : 1 + len(head)] = head
        labels = np.where(np.arange(length) >= length - round(LABELLED * length), ids, -100)
        channels = 3 * vision.temporal_patch_size * vision.patch_size**2
        arrays = {
            "input_ids": ids,
            "labels": labels,
            "mm_token_type_ids": (ids == pad) * (2 if clip else 1),
            "pixel_values_videos" if clip else "pixel_values": rng.standard_normal(
                (number * side**2, channels), dtype=np.float32
            ),
            "video_grid_thw" if clip else "image_grid_thw": np.array(
                [[number, side, side]] if clip else [[1, side, side]] * number
            ),
        }
        made.append({name: torch.from_numpy(array) for name, array in arrays.items()})
    return made


class Arm:
    """A trainer in a process of its own, which makes one step at a time."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.steps: list[dict[str, float]] = []
        script = HERE / "arms" / ("hf.py" if name in OPPONENTS[1:] else "qvl.py")
        self._log = (folder / f"{name}.log").open("w+", encoding="utf-8")
        python = trl_python() if name == "trl" else [sys.executable]
        self._process = subprocess.Popen(
            [*python, str(script), str(folder), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        )
        self.versions = self._read()["versions"]

    def step(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self.steps.append(self._read())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._log.close()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        if line := self._process.stdout.readline():
            return json.loads(line)
        self._log.seek(0)
        raise SystemExit(f"{self.name} ended early:\n{self._log.read()[-2000:]}")


def trl_python() -> list[str]:
    """Python with TRL: this one, or one that uv makes and caches, with the same torch and transformers."""
    if find_spec("trl") and f"trl=={version('trl')}" == TRL:
        return [sys.executable]
    same = ("torch", "transformers", "accelerate", "peft", "bitsandbytes")
    pins = [f"{name}=={version(name).split('+')[0]}" for name in same]
    packages = [word for package in (TRL, *pins, "torchvision") for word in ("--with", package)]
    uv = os.environ.get("UV", "uv")
    return [uv, "run", "--isolated", "--no-project", "--python", sys.executable, *packages, "python"]


def trl_failure() -> str | None:
    """Why there is no environment with TRL, or None if there is one."""
    if shutil.which(trl_python()[0]) is None:
        return "uv is not on the path"
    done = subprocess.run([*trl_python(), "-c", "import trl"], capture_output=True, text=True)
    return None if done.returncode == 0 else (done.stderr.strip() or "uv failed").splitlines()[-1]


def take_turns(names: Sequence[str], folder: Path, warmup: int, timed: int) -> list[Arm]:
    """Start an arm of each name and let each make one step after the other, in an order that turns round."""
    with ExitStack() as stack:
        arms = []
        for name in names:
            shutil.rmtree(folder / name, ignore_errors=True)
            arms.append(Arm(name, folder))
            stack.callback(arms[-1].close)
        for step in range(warmup + timed):
            turn = step % len(arms)
            for arm in arms[turn:] + arms[:turn]:
                arm.step()
    return arms


def by_length(lengths: Sequence[int], warmup: int, megabatch: int | None) -> list[int]:
    """The samples in the order of the library's length grouping; those of the warm-up keep their places."""
    import torch
    from transformers.trainer_pt_utils import get_length_grouped_indices

    first = warmup * SIZE
    generator = torch.Generator().manual_seed(0)
    order = get_length_grouped_indices(lengths[first:], SIZE, megabatch, generator)
    return [*range(first), *(first + i for i in order)]


def tokens_of_steps(lengths: Sequence[int]) -> list[int]:
    """Real tokens of each step."""
    return [sum(lengths[i : i + SIZE]) for i in range(0, len(lengths), SIZE)]


def figures(arm: Arm, lengths: Sequence[int], warmup: int) -> dict[str, Any]:
    """Tokens per second of an arm whose samples have these `lengths`, in its order."""
    tokens = tokens_of_steps(lengths)[warmup:]
    seconds = [step["cpu_seconds"] for step in arm.steps[warmup:]]
    tenths = statistics.quantiles([n / s for n, s in zip(tokens, seconds, strict=True)], n=10, method="inclusive")
    return {
        "tokens_per_second": round(sum(tokens) / sum(seconds), 2),
        "of_steps": {"p10": round(tenths[0], 2), "median": round(tenths[4], 2), "p90": round(tenths[8], 2)},
        "cpu_seconds": [round(second, 4) for second in seconds],
        "losses": [step["loss"] for step in arm.steps],
    }


def equal_losses(arms: Sequence[Arm]) -> float:
    """Largest difference of the first step's loss from QVL's. Raises AssertionError above TOLERANCE."""
    first = {arm.name: arm.steps[0]["loss"] for arm in arms}
    difference = max(abs(loss - first["qvl"]) for loss in first.values())
    assert difference <= TOLERANCE, f"the first step's losses differ: {first}"
    return difference


def measure(
    case: Case, groups: Sequence[Sequence[str]], warmup: int, timed: int
) -> tuple[dict[str, Any], dict[str, dict[str, str]]]:
    """All arms of one case, one group of arms after the other, each group with a QVL to compare with."""
    import torch

    body = BODIES[case.body]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        parameters = write_model(folder, body)
        made = samples(folder, (warmup + timed) * SIZE, case.media)
        (folder / "method").write_text(case.method, encoding="utf-8")
        torch.save(made, folder / "samples.pt")
        lengths = [len(sample["input_ids"]) for sample in made]
        orders = {arm: by_length(lengths, warmup, megabatch) for arm, megabatch in MEGABATCHES.items()}
        torch.save(orders, folder / "orders.pt")
        lengths_of = {arm: [lengths[i] for i in order] for arm, order in orders.items()}
        record: dict[str, Any] = {
            "case": case.name,
            "body": case.body,
            "method": case.method,
            "media": case.media,
            "layers": body.layers,
            "width": body.width,
            "vocabulary": body.vocabulary,
            "parameters": parameters,
            "real_tokens": sum(lengths[warmup * SIZE :]),
            "labels": sum(int((sample["labels"] != -100).sum()) for sample in made[warmup * SIZE :]),
            "padded_tokens": sum(SIZE * max(lengths[i : i + SIZE]) for i in range(warmup * SIZE, len(lengths), SIZE)),
            "longest": max(lengths),
            "groups": [],
        }
        versions = {}
        for names in groups:
            arms = take_turns(names, folder, warmup, timed)
            difference = equal_losses(arms)
            results = {arm.name: figures(arm, lengths_of.get(arm.name, lengths), warmup) for arm in arms}
            ours = results["qvl"]["tokens_per_second"]
            ratios = {arm: round(ours / result["tokens_per_second"], 3) for arm, result in results.items()}
            record["groups"].append({"loss_difference": difference, "ratios": ratios, "arms": results})
            versions |= {arm.name: arm.versions for arm in arms}
            show(case.name, record["groups"][-1], case.bars)
    return record, versions


def show(case: str, group: dict[str, Any], bars: dict[str, float]) -> None:
    print(case)
    print(f"{'':>6} {'arm':>14} {'tokens/s':>9} {'p10':>8} {'median':>8} {'p90':>8} {'qvl is':>8}   bar")
    for arm, result in group["arms"].items():
        steps, bar = result["of_steps"], f">= {bars[arm]}" if arm in bars else ""
        print(
            f"{'':>6} {arm:>14} {result['tokens_per_second']:>9.1f} {steps['p10']:>8.1f} {steps['median']:>8.1f} "
            f"{steps['p90']:>8.1f} {group['ratios'][arm]:>7.2f}x   {bar}"
        )
    print(f"{'':>6} first losses differ by at most {group['loss_difference']:.1e}", flush=True)


def missed(cases: Sequence[Case], records: Sequence[dict[str, Any]]) -> list[str]:
    """The bars that do not hold, in words."""
    return [
        f"{case.name}: {group['ratios'][arm]} x {arm}, must be {bar}"
        for case, record in zip(cases, records, strict=True)
        for group in record["groups"]
        for arm, bar in case.bars.items()
        if group["ratios"].get(arm, bar) < bar
    ]


def add(arms: Sequence[str], steps: int) -> None:
    """Measure arms beside QVL in the small cases that have them, and put them into the last result."""
    last = json.loads(RESULT.read_text(encoding="utf-8"))
    for case, before in zip(CASES, last["results"], strict=True):
        names = ["qvl", *(arm for arm in arms if arm in case.ablations)]
        if case.body == "small" and len(names) > 1:
            measured, versions = measure(case, [names], 2, steps)
            others = [group for group in before["groups"] if set(group["ratios"]) != set(names)]
            before["groups"] = others + measured["groups"]
            last["versions"] |= versions
    told = {"left_out": last["left_out"], "missed": last["missed"], "results": last["results"]}
    record.write(RESULT, last["versions"], {"threads": 1}, **told)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few steps, without the ablations; writes nothing")
    parser.add_argument(
        "--steps", type=int, default=12, help="timed steps of a small body; a tiny one makes four times as many"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="ARM",
        help="of the things taken away or added these alone, added to the last result",
    )
    options = parser.parse_args()
    if options.only:
        add(options.only, options.steps)
        return
    quick = options.quick
    why_not = trl_failure()
    if why_not:
        print(f"trl is left out: {why_not}")
    steps = (
        {"small": (1, 2), "tiny": (2, 10)} if quick else {"small": (2, options.steps), "tiny": (5, 4 * options.steps)}
    )

    records: list[dict[str, Any]] = []
    versions: dict[str, str] = {}
    for case in CASES:
        opponents = [name for name in case.opponents if not (name == "trl" and why_not)]
        groups = [opponents] if quick or not case.ablations else [opponents, case.ablations]
        measured, found = measure(case, groups, *steps[case.body])
        records.append(measured)
        versions |= found
    misses = missed(CASES, records)
    print(*misses, sep="\n")
    if quick:
        return
    left_out = {"trl": why_not} if why_not else {}
    record.write(RESULT, versions, {"threads": 1}, left_out=left_out, missed=misses, results=records)
    sys.exit(1 if misses else 0)


if __name__ == "__main__":
    main()
