"""The sampler against a loop that commits one token at a time, caches against none, batches against singles."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from asking import prompts
from peft import LoraConfig, get_peft_model

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.encoded import Encoded
from qvl_mdlm.commit import above, by_factor, choose, ends_wait, probability_of, shares, sureness, together
from qvl_mdlm.context import prefill, read_prompts, run, run_canvas
from qvl_mdlm.infill import infill
from qvl_mdlm.pattern import visible
from qvl_mdlm.sample import Writer, never_written, sample
from qvl_mdlm.sampling import Sampling

LENGTH = 8
KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "prefix": {"attention": "prefix"},
    "block": {"attention": "block", "block_size": 4},
}


@pytest.fixture(scope="module")
def models(masked: Callable[..., Any]) -> dict[str, Any]:
    """One of each pattern, with weights three times as large, so that its answers differ from place to place."""
    found = {}
    for name, options in KINDS.items():
        found[name] = masked(**options)
        with torch.no_grad():
            for layer in found[name].model.language_model.layers:
                for parameter in layer.parameters():
                    if parameter.ndim == 2:
                        parameter.mul_(3)
    return found


@pytest.fixture(scope="module")
def asked(processor: Any) -> list[Encoded]:
    return prompts(processor)


def naive(model: Any, processor: Any, prompt: Encoded, block: int) -> np.ndarray:
    """One forward over everything, one token: the place with the largest probability in the first unfinished block."""
    config = model.config
    never = never_written(config, processor.tokenizer)
    context = read_prompts(model, processor, [prompt])
    canvas = torch.full((1, LENGTH), config.mask_token_id)
    for start in range(0, LENGTH, block):
        for _ in range(block):
            shown = canvas[:, : start + block] if config.pattern == "block" else canvas
            mask = None
            if config.pattern != "full":
                count = shown.shape[1]
                blocks = torch.arange(count) // (config.block_size or count)
                levels = torch.cat([context.levels[0], context.levels[0, -1] + 1 + blocks])[None]
                old = torch.arange(count) < (start if config.pattern == "block" else 0)
                clean = torch.cat([torch.ones(len(prompt), dtype=torch.bool), old])[None]
                mask = visible(levels, clean, torch.zeros_like(levels))
            hidden = run(model, context, shown, mask)[0, len(prompt) :]
            logits = model.lm_head(hidden).masked_fill(never, -torch.inf).softmax(-1)
            best, tokens = logits.max(-1)
            open_ = (shown[0] == config.mask_token_id) & (torch.arange(shown.shape[1]) >= start)
            open_ &= torch.arange(shown.shape[1]) < start + block
            place = torch.where(open_, best, -1.0).argmax()
            canvas[0, place] = tokens[place]
    return canvas[0].numpy()


@torch.no_grad()
@pytest.mark.parametrize(("name", "block"), [("full", 8), ("full", 4), ("prefix", 8), ("prefix", 2), ("block", 4)])
def test_one_token_a_step_is_the_naive_loop(
    models: dict[str, Any], processor: Any, asked: list[Encoded], name: str, block: int
) -> None:
    model = models[name]
    how = Sampling(max_new_tokens=LENGTH, block=block, early_stop=False)
    written = sample(model, processor, asked, how)
    for prompt, answer in zip(asked, written, strict=True):
        np.testing.assert_array_equal(answer.ids, naive(model, processor, prompt, block))
    assert len({tuple(answer.ids.tolist()) for answer in written}) > 1  # they say different things


HOWS = [
    Sampling(max_new_tokens=LENGTH),
    Sampling(max_new_tokens=LENGTH, steps=3),
    Sampling(max_new_tokens=LENGTH, temperature=0.7, seed=3),
    Sampling(max_new_tokens=LENGTH, threshold=0.01, remasking="margin"),
    Sampling(max_new_tokens=LENGTH, factor=1.99, eos_guard=True),
    Sampling(max_new_tokens=LENGTH, guidance=0.5, remasking="entropy"),
    Sampling(max_new_tokens=LENGTH, remasking="random", steps=4, seed=1),
]


@pytest.mark.parametrize("how", HOWS, ids=str)
@pytest.mark.parametrize("name", ["prefix", "block"])
def test_cached_is_uncached_token_for_token(
    models: dict[str, Any], processor: Any, asked: list[Encoded], name: str, how: Sampling
) -> None:
    plain = Sampling(**{**vars(how), "cache": "none"})
    cached, uncached = (sample(models[name], processor, asked, each) for each in (how, plain))
    for one, other in zip(cached, uncached, strict=True):
        np.testing.assert_array_equal(one.ids, other.ids)


@pytest.mark.parametrize("how", HOWS, ids=str)
@pytest.mark.parametrize("name", KINDS)
def test_a_batch_of_unequal_prompts_is_its_singles(
    models: dict[str, Any], processor: Any, asked: list[Encoded], name: str, how: Sampling
) -> None:
    together = sample(models[name], processor, asked, how, keys=range(4))
    alone = [sample(models[name], processor, [one], how, keys=[key])[0] for key, one in enumerate(asked)]
    backwards = sample(models[name], processor, asked[::-1], how, keys=range(3, -1, -1))[::-1]
    for one, *others in zip(together, alone, backwards, strict=True):
        for other in others:
            np.testing.assert_array_equal(one.ids, other.ids)
            assert one.forwards == other.forwards


def test_what_is_drawn_follows_the_seed_and_the_key(
    models: dict[str, Any], processor: Any, asked: list[Encoded]
) -> None:
    def drawn(keys: list[int | str] | None, seed: int = 0) -> list[list[int]]:
        how = Sampling(max_new_tokens=LENGTH, temperature=1.0, seed=seed)
        return [one.ids.tolist() for one in sample(models["full"], processor, [asked[1]] * 3, how, keys=keys)]

    first, second, third = drawn([7, "eight", 7])
    assert first == third != second
    assert drawn([0, 7, 1])[1] == first
    assert drawn([7, 0, 1], seed=1)[0] != first
    assert len(set(map(tuple, drawn(None)))) == 1  # the same sample three times


@pytest.mark.parametrize("name", KINDS)
def test_what_is_given_stays_and_only_masks_are_written(
    models: dict[str, Any], processor: Any, asked: list[Encoded], name: str
) -> None:
    model = models[name]
    mask = model.config.mask_token_id
    rng = np.random.default_rng(0)
    canvases = [np.where(rng.random(LENGTH) < 0.5, mask, rng.integers(5, 250, LENGTH)) for _ in asked]
    for answer, given in zip(
        sample(model, processor, asked, Sampling(max_new_tokens=LENGTH), canvases), canvases, strict=True
    ):
        np.testing.assert_array_equal(answer.ids[given != mask], given[given != mask])
        assert (answer.ids != mask).all()


@pytest.mark.parametrize("name", KINDS)
def test_no_mask_and_no_picture_ever_comes_out(
    models: dict[str, Any], processor: Any, asked: list[Encoded], name: str
) -> None:
    model = models[name]
    never = never_written(model.config, processor.tokenizer).numpy()
    added, words = processor.tokenizer.get_added_vocab(), ("vision", "image", "video", "im_start")
    named = [number for token, number in added.items() if any(word in token for word in words)]
    assert len(named) == 6
    assert never[[model.config.mask_token_id, *named]].all()
    bias = torch.zeros_like(model.lm_head.weight[:, :1])
    bias[torch.from_numpy(never)] = 1e4  # the model wants nothing else
    hook = model.lm_head.register_forward_hook(lambda _, __, logits: logits + bias[:, 0])
    try:
        for how in (Sampling(max_new_tokens=LENGTH), Sampling(max_new_tokens=LENGTH, temperature=2.0, gumbel="llada")):
            for answer in sample(model, processor, asked, how):
                assert not never[answer.ids].any()
    finally:
        hook.remove()


def test_steps_are_kept_and_seen(models: dict[str, Any], processor: Any, asked: list[Encoded]) -> None:
    writer = Writer(models["full"], processor, asked, Sampling(max_new_tokens=LENGTH, steps=3, early_stop=False))
    steps = list(writer.steps())
    mask = models["full"].config.mask_token_id
    assert [step.number for step in steps] == [0, 1, 2]
    assert [len(places) for step in steps for places in step.written[:1]] == [3, 3, 2]
    for before, after in pairwise(steps):
        for old, new in zip(before.canvases, after.canvases, strict=True):
            np.testing.assert_array_equal(new[old != mask], old[old != mask])  # what is written stays
    assert all(answer.forwards == 3 for answer in writer.results())


def test_a_row_is_let_go_when_its_answer_has_ended(
    models: dict[str, Any], processor: Any, asked: list[Encoded]
) -> None:
    model, end = models["full"], processor.tokenizer.eos_token_id
    canvases = [np.full(LENGTH, model.config.mask_token_id) for _ in asked]
    canvases[1][1] = end  # one token stands before it
    writer = Writer(model, processor, asked, Sampling(max_new_tokens=LENGTH), canvases)
    steps = list(writer.steps())
    answers = writer.results()
    assert answers[1].forwards < answers[0].forwards
    assert answers[1].tokens == 2
    assert 1 in steps[0].rows
    assert 1 not in steps[-1].rows


def test_the_guard_writes_end_tokens_last(models: dict[str, Any], processor: Any, asked: list[Encoded]) -> None:
    model, end = models["full"], processor.tokenizer.eos_token_id
    wish = torch.zeros(model.config.text_config.vocab_size, dtype=torch.float64)
    wish[end] = 3.0  # surest of all

    def first_end(guard: bool) -> int:
        hook = model.lm_head.register_forward_hook(
            lambda _, __, logits: logits + wish * (torch.arange(len(logits)) > (0 if len(logits) > 3 else -1))[:, None]
        )
        try:
            how = Sampling(max_new_tokens=LENGTH, eos_guard=guard, early_stop=False)
            writer = Writer(model, processor, asked[:1], how)
            return next(step.number for step in writer.steps() if (step.canvases[0] == end).any())
        finally:
            hook.remove()

    assert first_end(False) == 0
    assert first_end(True) == LENGTH - 3  # nothing but end tokens is wished for


@pytest.mark.parametrize("how", [{"threshold": 0.0}, {"factor": 1e3}], ids=str)
def test_the_guard_holds_whatever_is_sure_enough(
    models: dict[str, Any], processor: Any, asked: list[Encoded], how: dict[str, float]
) -> None:
    model, end = models["full"], processor.tokenizer.eos_token_id

    def wish(_: Any, __: Any, logits: torch.Tensor) -> torch.Tensor:
        """An end at every second place."""
        wished = torch.zeros_like(logits)
        wished[::2, end] = 1e3
        return logits + wished

    hook = model.lm_head.register_forward_hook(wish)
    try:
        first = next(Writer(model, processor, asked[:1], Sampling(LENGTH, eos_guard=True, **how)).steps())
    finally:
        hook.remove()
    assert sorted(first.written[0].tolist()) == [1, 3, 5, 7]


def test_end_tokens_are_written_with_the_last_of_everything_else() -> None:
    sure = torch.tensor([0.9, 0.95, 0.99, 0.99])
    behind, between = torch.tensor([False, False, True, True]), torch.tensor([False, True, False, True])
    assert not ends_wait(behind, sure, 0.9)
    assert not ends_wait(torch.ones(4, dtype=torch.bool), sure, 1.0)
    assert ends_wait(behind, sure, 0.92)  # the first is not written yet
    assert ends_wait(between, sure, 0.9)  # one is written behind an end
    assert ends_wait(between, sure, None)


@torch.no_grad()
def test_guidance_moves_away_from_the_prompt_unseen(
    models: dict[str, Any], processor: Any, asked: list[Encoded]
) -> None:
    model, prompt = models["full"], asked[0]
    mask = model.config.mask_token_id
    seen, unseen = np.full(len(prompt) + LENGTH, mask), np.full(len(prompt) + LENGTH, mask)
    seen[: len(prompt)] = prompt.ids
    given, blind = model(input_ids=torch.from_numpy(np.stack([seen, unseen]))).logits[:, -LENGTH:]
    never = never_written(model.config, processor.tokenizer)
    found = []
    for guidance in (0.0, 1.5):
        logits = (blind + (guidance + 1) * (given - blind)).masked_fill(never, -torch.inf)
        (written,) = sample(model, processor, [prompt], Sampling(LENGTH, steps=1, guidance=guidance, early_stop=False))
        found.append(logits.argmax(-1).tolist())
        assert written.ids.tolist() == found[-1]
    assert found[0] != found[1]


def test_what_is_suppressed_never_comes_out(models: dict[str, Any], processor: Any, asked: list[Encoded]) -> None:
    plain = {token for one in sample(models["full"], processor, asked, Sampling(LENGTH)) for token in one.ids.tolist()}
    how = Sampling(LENGTH, suppress=tuple(plain))
    for one in sample(models["full"], processor, asked, how):
        assert plain.isdisjoint(one.ids.tolist())


def test_how_sure_a_place_is() -> None:
    probabilities = torch.tensor([[0.5, 0.4, 0.1, 0.0], [0.4, 0.2, 0.2, 0.2]], dtype=torch.float64)
    logits = probabilities.log() + 3
    tokens = torch.tensor([0, 1])
    probability, norm = probability_of(logits, tokens)
    assert probability.tolist() == pytest.approx([0.5, 0.2])
    assert sureness(logits, norm, probability, "confidence").tolist() == pytest.approx([0.5, 0.2])
    assert sureness(logits, norm, probability, "margin").tolist() == pytest.approx([0.1, 0.2])
    entropies = [-sum(p * math.log(p) for p in row if p) for row in probabilities.tolist()]
    assert sureness(logits, norm, probability, "entropy").tolist() == pytest.approx([-each for each in entropies])


@pytest.mark.parametrize(("threshold", "kept"), [(0.9, [2]), (0.8, [2]), (0.5, [2, 0]), (0.1, [2, 0, 3, 1])])
def test_a_threshold_writes_what_reaches_it_and_the_surest(threshold: float, kept: list[int]) -> None:
    sure = torch.tensor([0.6, 0.1, 0.8, 0.3])
    assert above(sure, sure, threshold).tolist() == kept


def test_a_factor_writes_as_many_as_its_bound_allows() -> None:
    sure = torch.tensor([0.95, 0.5, 0.99, 0.9])  # (n + 1)(1 - p) of the n-th surest: 0.02, 0.15, 0.4, 2.5
    for factor, count in ((0.01, 1), (0.1, 1), (0.2, 2), (0.5, 3), (3.0, 4)):
        assert by_factor(sure, sure, factor).tolist() == [2, 0, 3, 1][:count]


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_gumbel_draws_follow_the_softmax(temperature: float) -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]], dtype=torch.float64).expand(20_000, 3)
    uniform = torch.rand(logits.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    drawn = choose(logits, temperature, uniform)
    wanted = (logits[0] / temperature).softmax(-1)
    found = torch.bincount(drawn, minlength=3) / len(drawn)
    assert (found - wanted).abs().max() < 4 * (0.25 / len(drawn)) ** 0.5
    assert torch.equal(choose(logits, temperature, uniform, "llada"), drawn)  # another way to write the same


@pytest.mark.parametrize(("length", "block"), [(16, 16), (16, 4), (9, 4), (10, 4), (5, 1), (7, 3)])
def test_each_block_has_its_share_of_the_steps(length: int, block: int) -> None:
    sizes = [min(block, length - start) for start in range(0, length, block)]
    for steps in range(len(sizes), length + 1):
        found = shares(steps, length, block)
        assert sum(found) == steps
        assert all(1 <= share <= size for share, size in zip(found, sizes, strict=True))
    assert shares(8, 16, 4) == [2, 2, 2, 2]


def test_rows_are_judged_together_as_far_as_there_is_room() -> None:
    assert list(together([3, 3, 3], 6)) == [slice(0, 2), slice(2, 3)]
    assert list(together([9, 0, 1], 6)) == [slice(0, 1), slice(1, 3)]
    assert list(together([4], 0)) == [slice(0, 1)]


@pytest.mark.parametrize("how", HOWS, ids=str)
def test_little_room_changes_no_token(
    models: dict[str, Any], processor: Any, asked: list[Encoded], how: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = sample(models["full"], processor, asked, how)
    monkeypatch.setattr("qvl_mdlm.sample.CHUNK", 1)
    for one, other in zip(wide, sample(models["full"], processor, asked, how), strict=True):
        np.testing.assert_array_equal(one.ids, other.ids)


@pytest.mark.parametrize(
    ("name", "how", "forwards", "prefills"),
    [
        ("full", {}, 8, 0),
        ("full", {"steps": 2, "guidance": 1.0}, 4, 0),
        ("full", {"cache": "dual", "block": 4}, 8 + 2, 0),  # everything anew for each block
        ("prefix", {}, 8, 1),
        ("prefix", {"cache": "none"}, 8, 0),
        ("prefix", {"steps": 2, "guidance": 1.0}, 4, 2),
        ("block", {"steps": 2}, 2 + 1, 1),  # the first block is read once it is finished
    ],
)
def test_every_pass_is_counted(
    models: dict[str, Any],
    processor: Any,
    asked: list[Encoded],
    name: str,
    how: dict[str, Any],
    forwards: int,
    prefills: int,
) -> None:
    passes = []
    body = models[name].model.language_model
    hook = body.register_forward_hook(lambda _, __, output: passes.append(output.last_hidden_state.shape[1]))
    try:
        (written,) = sample(
            models[name], processor, asked[:1], Sampling(max_new_tokens=LENGTH, early_stop=False, **how)
        )
    finally:
        hook.remove()
    assert (written.forwards, written.prefills) == (forwards, prefills)
    assert len(passes) == forwards + prefills
    assert passes[:prefills] == [len(asked[0])] * prefills


def test_a_step_is_one_head_and_copies_no_prompt(models: dict[str, Any], processor: Any, asked: list[Encoded]) -> None:
    heads, rooms = [], set()
    model = models["prefix"]
    hook = model.lm_head.register_forward_hook(lambda _, __, logits: heads.append(len(logits)))
    writer = Writer(model, processor, asked, Sampling(max_new_tokens=LENGTH, early_stop=False))
    try:
        for number, step in enumerate(writer.steps()):
            assert len(heads) == number + 1  # one head for all rows, of what was masked
            assert heads[-1] == len(step.rows) * (LENGTH - number)
    finally:
        hook.remove()
    context = read_prompts(model, processor, asked)
    cache = prefill(model, context, LENGTH)
    canvas = torch.full((len(asked), LENGTH), model.config.mask_token_id)
    with torch.no_grad():
        for _ in range(3):
            run_canvas(model, context, canvas, 0, cache)
            rooms.add(tuple(keys.data_ptr() for keys, _ in cache.pairs))
    assert len(rooms) == 1
    assert cache.get_seq_length() == max(map(len, asked))


def test_the_dual_cache_answers_and_says_what_it_is(
    models: dict[str, Any], processor: Any, asked: list[Encoded]
) -> None:
    how = Sampling(max_new_tokens=LENGTH, block=4, cache="dual")
    answers = sample(models["full"], processor, asked, how)
    assert all((answer.ids != models["full"].config.mask_token_id).all() for answer in answers)
    first = sample(models["full"], processor, asked, Sampling(max_new_tokens=LENGTH, steps=1))
    once = sample(models["full"], processor, asked, Sampling(max_new_tokens=LENGTH, steps=1, cache="dual"))
    for one, other in zip(first, once, strict=True):  # nothing has changed since the keys were computed
        np.testing.assert_array_equal(one.ids, other.ids)


@pytest.mark.parametrize(
    ("name", "how", "words"),
    [
        ("block", Sampling(max_new_tokens=8, block=2), "trained with blocks of 4"),
        ("prefix", Sampling(max_new_tokens=8, cache="dual"), "whose cache is exact"),
        ("full", Sampling(max_new_tokens=40_000), "over the model's 32768; lower it"),
        ("full", Sampling(max_new_tokens=8, steps=9), "steps 9: must be from 1 to the 8"),
        ("full", Sampling(max_new_tokens=8, steps=2, block=2), "has 4 blocks of 2, and each takes a step; give 4"),
        ("block", Sampling(max_new_tokens=8, steps=1), "has 2 blocks of 4, and each takes a step; give 2"),
        ("full", Sampling(suppress=(999_999,)), "suppress 999999: there is no such token; ids are from 0 to"),
        ("full", Sampling(suppress=(-1,)), "suppress -1: there is no such token"),
    ],
)
def test_what_cannot_be_meant(
    models: dict[str, Any], processor: Any, asked: list[Encoded], name: str, how: Sampling, words: str
) -> None:
    with pytest.raises(BadInput, match=words):
        sample(models[name], processor, asked, how)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"canvases": [np.zeros(8, int), np.zeros(7, int)]}, "canvas 1: has 7 tokens where max_new_tokens is 8"),
        ({"canvases": [np.zeros(8, int)]}, "canvases: are 1, for 2 prompts; give one for each"),
        ({"canvases": [np.zeros(8, int), np.full(8, 99_999)]}, "canvas 1: has ids outside of 0 to"),
        ({"keys": [1, 2, 3]}, "keys: are 3, for 2 prompts"),
        ({"spaced": []}, "spaced: are 0, for 2 prompts"),
    ],
)
def test_what_does_not_fit_together(
    models: dict[str, Any], processor: Any, asked: list[Encoded], given: dict[str, Any], words: str
) -> None:
    with pytest.raises(BadInput, match=words):
        sample(models["full"], processor, asked[:2], Sampling(max_new_tokens=8), **given)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"steps": 4, "threshold": 0.9}, "steps and threshold"),
        ({"max_new_tokens": 0}, "max_new_tokens 0: must be a number of at least 1"),
        ({"block": 0}, "block 0: must be a number of at least 1"),
        ({"temperature": -0.5}, "temperature -0.5: must be a number of at least 0"),
        ({"temperature": float("nan")}, "temperature nan: must be"),
        ({"guidance": float("inf")}, "guidance inf: must be"),
        ({"threshold": 1.5}, "threshold 1.5: is a probability"),
        ({"remasking": "chance"}, "remasking chance: choose of confidence, margin, entropy, random"),
        ({"cache": "yes"}, "cache yes: choose of auto, none, dual"),
    ],
)
def test_what_no_model_can_do(how: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        Sampling(**how)


def test_something_has_to_be_left_to_write(models: dict[str, Any], processor: Any, asked: list[Encoded]) -> None:
    everything = tuple(range(models["full"].config.text_config.vocab_size))
    with pytest.raises(BadInput, match="leaves no token that could be written"):
        sample(models["full"], processor, asked, Sampling(suppress=everything))


def test_a_model_in_peft_writes_as_the_model(masked: Callable[..., Any], processor: Any, asked: list[Encoded]) -> None:
    model = masked()
    adapter = LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.5, init_lora_weights=False)
    wrapped = get_peft_model(model, adapter).train()
    answers = sample(wrapped, processor, asked, Sampling(LENGTH))
    assert [one.ids.tolist() for one in answers] == [
        one.ids.tolist() for one in sample(model.eval(), processor, asked, Sampling(LENGTH))
    ]
    assert infill(wrapped, processor, "What is it?", "It is [2].").tokens == 2


def test_no_prompt_is_no_answer(models: dict[str, Any], processor: Any) -> None:
    assert sample(models["full"], processor, [], Sampling()) == []
