"""Drawing: what reading the prompt apart saves in training, what remembering it saves in drawing, and equal prompts.

    python benchmarks/metaquery.py [--quick]

Training: operations of forward and backward at the exact shapes of the 2B and 8B models, counted on the meta device.
`two_phases` reads the prompt without gradients and asks the queries with gradients; `one_phase` takes both together,
with gradients through all (what a model needs whose queries are rows of the vocabulary). Once of the language model
alone, once of the whole step (connector of 24 layers in the model's width, Sana 1.6B, both trained).

Drawing: 20 steps with guidance, one picture of a prompt of 256 tokens, small random parts. `remembered` reads the
prompt once; `each_step` reads it again in each step. fp32, one thread; arms take turns; time is CPU time. The pictures
have to be the same.

Equal prompts: 64 pictures that are asked for with 10 different prompts, read once each or 64 times.

Writes benchmarks/results/metaquery.json, and fails if a bar does not hold: two phases >= 1.7x fewer operations of the
language model at 448 tokens of prompt and 64 queries; the same pictures.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from arms import record
from diffusers import SanaTransformer2DModel
from head import spread
from transformers import AutoModelForImageTextToText, DynamicCache

from qvl_core.qwen3vl import attention
from qvl_core.qwen3vl.presets import config
from qvl_core.qwen3vl.tiny import tiny_config, tiny_processor
from qvl_core.training.operations import counting
from qvl_data.example.drawings import NAMES as NUMBERS
from qvl_metaquery.coder import Pixels
from qvl_metaquery.conditions import Prefix, ask
from qvl_metaquery.connector import Connector
from qvl_metaquery.model import MetaQuery
from qvl_metaquery.pipeline import MetaQueryPipeline
from qvl_metaquery.prompts import Prompt
from qvl_metaquery.settings import Settings
from qvl_metaquery.tiny import tiny_transformer

SHAPES = ("Qwen3-VL-2B", "Qwen3-VL-8B")
LENGTHS = ((448, 64), (100, 256))  # tokens of the prompt, queries
BAR, BAR_AT = 1.7, (448, 64)
RATE = 790e12  # bf16 operations per second that large products reach on an H200
STEPS, WORDS, PICTURES = 20, 256, 64
NAMES = [f"a handwritten {name}" for name in NUMBERS]
RESULT = Path(__file__).parent / "results" / "metaquery.json"


def on_meta(shape: Any) -> MetaQuery:
    """The model of real shapes without weights."""
    with torch.device("meta"):
        mllm = AutoModelForImageTextToText.from_config(shape, dtype=torch.bfloat16).requires_grad_(False)
        mllm.set_attn_implementation("sdpa")
        sana = SanaTransformer2DModel(sample_size=16)
        connector = Connector(shape.text_config.hidden_size, sana.config.caption_channels)
        return MetaQuery(mllm, sana, 256, connector).to(torch.bfloat16)


@torch.no_grad()
def read(model: MetaQuery, tokens: int) -> Prefix:
    """`conditions.read` of one prompt of text, without the mask, at whose values transformers would look."""
    body = model.mllm.model.language_model
    ids, cache = torch.zeros(1, tokens, dtype=torch.long, device="meta"), DynamicCache(config=body.config)
    positions = torch.arange(tokens, device="meta").expand(3, 1, -1)
    body(inputs_embeds=body.embed_tokens(ids), position_ids=positions, past_key_values=cache, use_cache=True)
    keys, values = (tuple(getattr(layer, name) for layer in cache.layers) for name in ("keys", "values"))
    return Prefix(keys, values, torch.ones(1, tokens, dtype=torch.bool, device="meta"), ids[:, 0] + tokens)


def operations(work: Any) -> int:
    with counting() as counter:
        work()
    return int(counter.get_total_flops())


def training(name: str, prompt: int, queries: int) -> dict[str, Any]:
    """Operations of a step of one picture."""
    model = on_meta(config(name))
    body = model.mllm.model.language_model
    rows = torch.empty(queries, body.config.hidden_size, device="meta", dtype=torch.bfloat16, requires_grad=True)

    def two_phases() -> torch.Tensor:
        return ask(model.mllm, rows, read(model, prompt))

    def one_phase() -> torch.Tensor:
        embeds = torch.cat([body.embed_tokens(torch.zeros(1, prompt, dtype=torch.long, device="meta")), rows[None]], 1)
        positions = torch.arange(prompt + queries, device="meta").expand(3, 1, -1)
        # The whole row has gradients, as where the table of embeddings is trained.
        states = body(inputs_embeds=embeds.requires_grad_(), position_ids=positions, use_cache=False)
        return states.last_hidden_state[:, -queries:]

    def behind(states: torch.Tensor) -> torch.Tensor:
        latents = torch.empty(1, 32, 16, 16, device="meta", dtype=torch.bfloat16)
        level = torch.empty(1, device="meta")
        return model.velocity(latents, level, model.connector(states))

    arms = {"two_phases": two_phases, "one_phase": one_phase}
    alone = {arm: operations(lambda arm=arm: arms[arm]().sum().backward()) for arm in arms}
    whole = {arm: operations(lambda arm=arm: behind(arms[arm]()).sum().backward()) for arm in arms}
    return {
        "model": name,
        "prompt_tokens": prompt,
        "queries": queries,
        "language_model": alone,
        "language_model_ratio": round(alone["one_phase"] / alone["two_phases"], 3),
        "whole_step": whole,
        "whole_step_ratio": round(whole["one_phase"] / whole["two_phases"], 3),
        "connector_parameters": sum(p.numel() for p in model.connector.parameters()),
        "milliseconds_at_790_tflops": round(1000 * whole["two_phases"] / RATE, 2),
        "pictures_per_second_at_790_tflops": round(RATE / whole["two_phases"], 1),
    }


def small_pipeline(width: int, layers: int) -> MetaQueryPipeline:
    """Random parts of which Qwen3-VL is the larger, as it is in earnest."""
    processor = tiny_processor(NAMES)
    shape = tiny_config(processor.tokenizer)
    for key, value in {"hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": layers}.items():
        setattr(shape.text_config, key, value)
    shape.vision_config.out_hidden_size = width
    torch.manual_seed(0)
    mllm = AutoModelForImageTextToText.from_config(shape).eval().requires_grad_(False)
    attention.use(mllm)
    coder = Pixels(2)
    sana = tiny_transformer(coder.channels, 4)
    settings = Settings(mllm="random", sana="random", queries=16, layers=2, size=8, caption_tokens=WORDS)
    connector = Connector(width, sana.config.caption_channels, 2)
    model = MetaQuery(mllm, sana, 16, connector).requires_grad_(False)
    return MetaQueryPipeline(model, processor, coder, settings, 1.0)


def drawing(width: int, layers: int, repeats: int) -> dict[str, Any]:
    """CPU seconds and operations of a picture, and whether both arms draw the same."""
    pipeline = small_pipeline(width, layers)
    caption = "a handwritten seven " * WORDS  # cut to the longest caption
    plain = pipeline.model.velocity
    conditions = pipeline.conditions

    def draw(arm: str) -> torch.Tensor:
        pipeline.remembered.clear()
        told: list[Any] = []
        last: list[torch.Tensor] = []

        def noted(prompts: Any) -> torch.Tensor:
            told[:] = prompts
            return conditions(prompts)

        def again(latents: torch.Tensor, levels: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
            pipeline.remembered.clear()
            return plain(latents, levels, conditions(told))

        pipeline.conditions = noted  # type: ignore[method-assign]
        pipeline.model.velocity = again if arm == "each_step" else plain  # type: ignore[method-assign]
        with torch.no_grad():
            pipeline(caption, num_inference_steps=STEPS, on_step=lambda number, latents: last.append(latents))
        return last[-1]

    arms = ("remembered", "each_step")
    pictures = {arm: draw(arm) for arm in arms}  # warm-up
    counted = {arm: operations(lambda arm=arm: draw(arm)) for arm in arms}
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    for arm in arms * repeats:
        began = time.process_time()
        draw(arm)
        seconds[arm].append(time.process_time() - began)
    medians = {arm: statistics.median(times) for arm, times in seconds.items()}
    return {
        "steps": STEPS,
        "caption_tokens": WORDS,
        "repeats": repeats,
        "cpu_seconds": {arm: spread(times) for arm, times in seconds.items()},
        "operations": counted,
        "largest_difference": float((pictures["remembered"] - pictures["each_step"]).abs().max()),
        "speedup": round(medians["each_step"] / medians["remembered"], 2),
    }


def equal_prompts(width: int, layers: int) -> dict[str, Any]:
    """Operations of what 64 pictures are told, whose prompts are ten."""
    pipeline = small_pipeline(width, layers)
    prompts = [NAMES[number % len(NAMES)] for number in range(PICTURES)]

    def once() -> torch.Tensor:
        pipeline.remembered.clear()
        return pipeline.conditions([Prompt(text) for text in prompts])

    def each() -> torch.Tensor:
        told = []
        for text in prompts:
            pipeline.remembered.clear()
            told.append(pipeline.conditions([Prompt(text)])[0])
        return torch.stack(told)

    counted = {"once": operations(once), "each": operations(each)}
    return {
        "pictures": PICTURES,
        "prompts": len(set(prompts)),
        "operations": counted,
        "ratio": round(counted["each"] / counted["once"], 2),
        "largest_difference": float((once() - each()).abs().max()),
    }


def missed(trained: list[dict[str, Any]], drawn: dict[str, Any], equal: dict[str, Any]) -> list[str]:
    """The bars that do not hold, in words."""
    found = [
        f"{one['model']} at {BAR_AT}: {one['language_model_ratio']} x fewer operations, must be {BAR}"
        for one in trained
        if (one["prompt_tokens"], one["queries"]) == BAR_AT and one["language_model_ratio"] < BAR
    ]
    for name, figures in (("drawing", drawn), ("equal prompts", equal)):
        if figures["largest_difference"] > 1e-4:
            found.append(f"{name}: the arms differ by {figures['largest_difference']}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one shape, small parts, two repeats; writes nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    shapes = SHAPES[:1] if arguments.quick else SHAPES
    trained = [training(name, *lengths) for name in shapes for lengths in LENGTHS]
    for one in trained:
        print(
            f"{one['model']} {one['prompt_tokens']}+{one['queries']}: language model {one['language_model_ratio']} x, "
            f"whole step {one['whole_step_ratio']} x fewer operations; {one['milliseconds_at_790_tflops']} ms"
        )
    width, layers, repeats = (128, 2, 2) if arguments.quick else (512, 4, 5)
    drawn = drawing(width, layers, repeats)
    print(f"drawing: {drawn['speedup']} x as fast with the prompt remembered, {drawn['largest_difference']:.1e} apart")
    equal = equal_prompts(width, layers)
    print(f"equal prompts: {equal['ratio']} x fewer operations, {equal['largest_difference']:.1e} apart")
    misses = missed(trained, drawn, equal)
    print(*misses, sep="\n")
    if not arguments.quick:
        figures = {"missed": misses, "training": trained, "drawing": drawn, "equal_prompts": equal}
        record.write(RESULT, record.versions("torch", "transformers", "diffusers"), {"threads": 1}, **figures)
    sys.exit(1 if misses else 0)


if __name__ == "__main__":
    main()
