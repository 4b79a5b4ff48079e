"""Each metric against published values, its reference implementation, or brute force, in several scripts."""

import itertools
import math
import random
import time
from collections.abc import Sequence

import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer, _lcs_table

import qvl_sft.metrics.cider
from qvl_sft.metrics import METRICS, Tally, anls, boxes, register_metric, rouge, tallies
from qvl_sft.metrics.bootstrap import differences, intervals, sign_test
from qvl_sft.metrics.script import script_of, words
from qvl_sft.prediction import Prediction, spoken

SURF = (
    "a man riding a wave on top of a surfboard",
    [
        "a man riding a wave on a surfboard in the ocean",
        "a surfer rides a large wave",
        "a person on a surfboard riding a wave",
        "man surfing on a wave in the sea",
        "a surfer is riding a big wave",
    ],
)
CAPTIONS = [
    SURF,
    (
        "a cat sitting on a red chair",
        ["a black cat sitting on top of a red chair", "the cat is on the chair", "a cat rests on a wooden chair"],
    ),
    ("a dog a dog a dog a dog", ["a dog runs on the grass", "a brown dog is running through a field"]),
    (
        "two children play football in a park near a large tree while their parents are watching them",
        ["two kids playing football", "children are playing with a ball in a park"],
    ),
    (
        "a plate of food",
        [
            "a plate of food with rice and vegetables on a wooden table",
            "food on a plate",
            "a plate of food",
        ],
    ),
    ("", ["an empty street at night", "a street without people"]),
]
# pycocoevalcap 1.2, Cider().compute_score on CAPTIONS; none of the words needs its Java tokenizer
CIDER = [2.2762344186617565, 2.4062909567425015, 0.4159900871834252, 0.3633073560246053, 5.078225346843111, 0.0]


def answered(answer: str, *references: str, **more: object) -> Prediction:
    first, *others = references
    return Prediction("test", "", "?", first, answer, answer == first, references=others, **more)  # type: ignore[arg-type]


def score(metric: str, *predictions: Prediction) -> float:
    return METRICS[metric](predictions).total


# Texts


def test_exact_match_takes_any_reference_and_leaves_thinking_out() -> None:
    said = [answered(" 7\n", "7"), answered("seven", "7", "seven"), answered("8", "7"), answered("", "7")]
    assert METRICS["exact_match"](said).scores == [1.0, 1.0, 0.0, 0.0]
    thought = [answered("<think>\n8? No.\n</think>\n\n7", "7"), answered("<think>7", "7"), answered("8</think>7", "7")]
    assert METRICS["exact_match"](thought).scores == [1.0, 0.0, 1.0]
    assert spoken("<think>so</think> yes ") == spoken("yes") == "yes"


@pytest.mark.parametrize(
    ("answer", "references", "value"),
    [
        ("Coca Cola", ["coca  cola"], 1.0),  # case and repeated space are no difference
        ("cocacola", ["coca cola"], 1 - 1 / 9),
        ("coca cola company", ["coca cola"], 1 - 8 / 17),  # ST-VQA: the answer may be longer
        ("pepsi", ["coca cola"], 0.0),
        ("abcd", ["abxy"], 0.0),  # half of the letters is not above the threshold
        ("Mickey", ["Donald", "mickey", "Goofy"], 1.0),  # the best reference counts
        ("", ["word"], 0.0),
        ("", [""], 1.0),
        ("북한산 국립공원", ["북한산 국립공윈"], 1 - 1 / 8),
        ("東京タワ", ["東京タワー"], 0.8),
    ],
)
def test_anls(answer: str, references: list[str], value: float) -> None:
    assert score("anls", answered(answer, *references)) == pytest.approx(value)


def test_levenshtein_is_that_of_the_table() -> None:
    def table(one: str, other: str) -> int:
        row = list(range(len(other) + 1))
        for i, x in enumerate(one, start=1):
            before, row[0] = row[0], i
            for j, y in enumerate(other, start=1):
                before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
        return row[-1]

    rng = random.Random(0)
    for _ in range(500):
        one, other = ("".join(rng.choices("abc猫", k=rng.randrange(9))) for _ in range(2))
        assert anls.levenshtein(one, other) == table(one, other)


@pytest.mark.parametrize(
    ("tokenizer", "texts"),
    [
        ("13a", [("The cat sat on the mat.", ["The cat sat on a mat, today."]), ("Hi there, world!", ["Hi world!"])]),
        ("zh", [("猫坐在红色的垫子上面。", ["一只猫坐在红色的垫子上。"]), ("下雨了,回家", ["下雨了,快回家"])]),
        ("char", [("猫が赤いマットの上に座る", ["猫が赤いマットに座る"]), ("雨が降ります", ["雨が降っている"])]),
        ("char", [("고양이가 빨간 매트 위에 앉아", ["고양이가 빨간 매트에 앉아"]), ("비가 온다", ["비가 내린다"])]),
        ("13a", [("Кошка сидит на красном ковре", ["Кошка сидит на красном коврике"])]),
    ],
)  # fmt: skip
def test_bleu_is_that_of_sacrebleu_with_the_tokenizer_of_the_script(
    tokenizer: str, texts: list[tuple[str, list[str]]]
) -> None:
    said, references = (
        [answer for answer, _ in texts],
        [list(column) for column in zip(*(r for _, r in texts), strict=True)],
    )
    expected = sacrebleu.corpus_bleu(said, references, tokenize=tokenizer).score / 100
    assert 0 < expected < 1
    assert score("bleu", *(answered(answer, *more) for answer, more in texts)) == pytest.approx(expected)


def test_bleu_of_captions_with_several_references() -> None:
    said = [answered(answer, *references[:2]) for answer, references in CAPTIONS]
    columns = [[references[place] for _, references in CAPTIONS] for place in range(2)]
    expected = sacrebleu.corpus_bleu([p.answer for p in said], columns).score / 100
    assert score("bleu", *said) == pytest.approx(expected)
    assert score("bleu", answered("yes", "yes")) == pytest.approx(1.0)  # too short for pairs


def test_scripts() -> None:
    texts = {
        "a cat, 猫": "spaced",
        "一只猫": "han",
        "猫が座る 東京都庁前": "characters",
        "고양이": "characters",
        "แมว": "characters",
    }
    assert {text: script_of([text]) for text in texts} == texts
    assert script_of(["मेरी बिल्ली", "قطة"]) == "spaced"
    assert script_of([]) == script_of(["12 + 3"]) == "spaced"
    assert words("The cat's mat_2, OK?") == ["the", "cat", "s", "mat", "2", "ok"]
    assert words("Straße, CAFÉ और बिल्ली") == ["straße", "café", "और", "बिल्ली"]
    assert words("ＡＢＣ猫です 3個") == ["abc", "猫", "で", "す", "3", "個"]
    assert words("고양이 1") == ["고", "양", "이", "1"]


@pytest.mark.parametrize("kind", ["rouge1", "rouge2", "rougeL"])
def test_rouge_is_that_of_rouge_score_and_sees_every_script(kind: str) -> None:
    own = RougeScorer([kind])
    for answer, references in CAPTIONS:
        expected = max(own.score(reference, answer)[kind].fmeasure for reference in references)
        assert score(kind, answered(answer, *references)) == pytest.approx(expected)
    assert score(kind, answered("红色的猫", "红色的猫")) == score(kind, answered("Это кошка", "это кошка.")) == 1.0
    assert own.score("红色的猫", "红色的猫")[kind].fmeasure == 0.0  # why it needs another tokenizer
    assert 0 < score(kind, answered("赤い猫が座る", "黒い猫が座る")) < 1


def test_the_longest_common_subsequence_is_the_librarys_and_quick() -> None:
    drawn = np.random.default_rng(0)
    for _ in range(50):
        one, other = (drawn.choice(list("abcd"), size=drawn.integers(0, 90)).tolist() for _ in range(2))
        assert rouge.subsequence(one, other) == _lcs_table(one, other)[len(one)][len(other)]
    long, longer = (drawn.choice(list("abcdefgh"), size=size).tolist() for size in (20_000, 30_000))
    began = time.process_time()
    assert rouge.subsequence(long, longer) > 10_000
    assert time.process_time() - began < 5  # a table would take two minutes


def test_rouge_by_hand() -> None:
    said = answered("the cat was under the bed", "the cat was found under the bed")
    assert score("rouge1", said) == pytest.approx(2 * 6 / 13)
    assert score("rouge2", said) == pytest.approx(2 * 4 / 11)
    assert score("rougeL", said) == pytest.approx(2 * 6 / 13)


def test_cider_d_is_that_of_the_reference_implementation() -> None:
    found = METRICS["cider"]([answered(answer, *references) for answer, references in CAPTIONS])
    assert found.scores == pytest.approx(CIDER, abs=1e-12)
    assert found.total == pytest.approx(1.7566746942425666)


def test_cider_d_by_its_formula() -> None:
    """Equations of the paper (section 3 and 7), written out term by term."""
    corpus = [(answer.split(), [text.split() for text in references]) for answer, references in CAPTIONS]

    def count(gram: Sequence[str], text: Sequence[str]) -> int:
        return sum(text[i : i + len(gram)] == gram for i in range(len(text)))

    def grams(text: Sequence[str], n: int) -> list[list[str]]:
        return [list(gram) for gram in dict.fromkeys(tuple(text[i : i + n]) for i in range(len(text) - n + 1))]

    def weight(gram: list[str], text: list[str]) -> float:
        known = sum(any(count(gram, other) for other in references) for _, references in corpus)
        return count(gram, text) * math.log(len(corpus) / max(known, 1))

    def norm(text: list[str], n: int) -> float:
        return math.sqrt(sum(weight(gram, text) ** 2 for gram in grams(text, n)))

    answer, references = corpus[0]
    total = 0.0
    for n, reference in itertools.product(range(1, 5), references):
        shared = sum(min(weight(g, answer), weight(g, reference)) * weight(g, reference) for g in grams(answer, n))
        gauss = math.exp(-((len(answer) - len(reference)) ** 2) / (2 * 6**2))
        total += gauss * shared / (norm(answer, n) * norm(reference, n)) / 4 / len(references)
    found = METRICS["cider"]([answered(a, *r) for a, r in CAPTIONS])
    assert found.scores[0] == pytest.approx(10 * total)


# Boxes


def box(*xy: float, label: str | None = None) -> str:
    named = "" if label is None else f', "label": "{label}"'
    return f'{{"bbox_2d": {list(xy)}{named}}}'


def listed(*texts: str) -> str:
    return f"```json\n[{', '.join(texts)}]\n```"


def test_iou_by_hand() -> None:
    half = answered(box(0, 0, 100, 200), box(0, 100, 100, 300))  # 100 of 300
    assert score("iou", half) == pytest.approx(1 / 3)
    assert score("iou", answered(box(0, 0, 10, 10), box(10, 0, 20, 10))) == 0.0
    assert score("iou", answered(f"There: {box(1, 2, 30, 40)}.", box(1, 2, 30, 40))) == 1.0


def test_a_box_too_many_and_one_that_is_missing_cost() -> None:
    two = listed(box(0, 0, 10, 10), box(50, 50, 60, 60))
    assert score("iou", answered(two, box(0, 0, 10, 10))) == 0.5
    assert score("iou", answered(box(0, 0, 10, 10), two)) == 0.5
    assert score("box_recall_50", answered(two, box(0, 0, 10, 10))) == 1.0
    assert score("box_precision_50", answered(two, box(0, 0, 10, 10))) == 0.5
    twice = listed(box(0, 0, 10, 10), box(0, 0, 10, 10))  # a reference is found once
    assert score("box_precision_50", answered(twice, box(0, 0, 10, 10))) == 0.5


def test_recall_and_precision_count_over_all_boxes() -> None:
    three = listed(box(0, 0, 10, 10), box(20, 0, 30, 10), box(40, 0, 50, 10))
    said = [answered(box(0, 0, 10, 10), three), answered(box(7, 7, 9, 9), box(7, 7, 9, 9))]
    assert score("box_recall_50", *said) == 2 / 4
    assert score("box_precision_50", *said) == 1.0
    assert METRICS["box_recall_50"](said).scores == pytest.approx([1 / 3, 1.0])


def test_labels_are_respected_where_both_have_one() -> None:
    wanted = listed(box(0, 0, 10, 10, label="cat"), box(2, 0, 12, 10, label="dog"))
    swapped = listed(box(0, 0, 10, 10, label="dog"), box(2, 0, 12, 10, label="Cat "))
    assert score("iou", answered(wanted, wanted)) == 1.0
    assert score("iou", answered(swapped, wanted)) == pytest.approx(8 / 12)  # each 8 of 12, not 1 with the wrong name
    assert score("iou", answered(listed(box(0, 0, 10, 10), box(2, 0, 12, 10)), wanted)) == 1.0


def test_a_picture_without_boxes_and_an_answer_without() -> None:
    nothing, something = "There is no cat.", box(0, 0, 10, 10)
    assert score("iou", answered(nothing, "none")) == 1.0
    assert score("iou", answered(something, "none")) == 0.0
    assert score("iou", answered("", something)) == 0.0
    assert METRICS["box_precision_50"]([answered(nothing, "none"), answered("", something)]).scores == [None, 0.0]
    assert score("box_recall_50", answered(nothing, "none"), answered(something, something)) == 1.0
    assert score("box_precision_50", answered(something, "none"), answered(something, something)) == 0.5


def test_boxes_that_leave_the_picture_or_are_none_are_counted() -> None:
    beyond, inverted = box(500, 500, 1200, 1000), box(9, 9, 3, 3)
    said = [answered(beyond, box(500, 500, 1000, 1000)), answered(inverted, box(3, 3, 9, 9))]
    said += [answered(box(1, 2, 3), box(1, 2, 3, 4)), answered('{"bbox_2d": [1, 2, NaN, 4]}', box(1, 2, 3, 4))]
    said += [answered('{"bbox_2d": [0, 0, 1' + "0" * 400 + ", 9]}", box(0, 0, 1000, 9)), answered('{"bbox_2d": [', "")]
    assert METRICS["iou"](said).scores == [1.0, 0.0, 0.0, 0.0, 1.0, 1.0]
    assert boxes.faults(said[:3]) == (3, 1, 2)
    assert METRICS["box_precision_50"](said[:2]).total == 0.5


def test_boxes_are_paired_as_well_as_can_be() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        rows, columns = sorted(rng.integers(0, 6, 2).tolist())
        gains = rng.random((rows, columns)) * (rng.random((rows, columns)) < 0.7)
        choices = itertools.permutations(range(columns), rows)
        best = max(sum(gains[i, j] for i, j in enumerate(choice)) for choice in choices)
        assert boxes.paired(gains).sum() == pytest.approx(best)
        assert boxes.paired(gains.T).sum() == pytest.approx(best)


# What holds for all


def sample_of(metric: str) -> list[Prediction]:
    """Sixty answers, good and bad."""
    rng = random.Random(1)
    said = []
    for _ in range(60):
        if METRICS[metric].needs == "boxes":
            x = rng.randrange(0, 800, 50)
            said.append(answered(box(x, 0, x + 100, 100), box(x + rng.randrange(90), 0, x + 120, 100)))
        else:
            reference = rng.choices(["the", "cat", "sat", "on", "a", "mat", "and", "saw", "two", "red", "birds"], k=8)
            said.append(answered(" ".join(reference[: rng.randrange(3, 9)]), " ".join(reference)))
    return said


@pytest.mark.parametrize("metric", list(METRICS))
def test_a_figure_lies_in_its_interval_and_in_its_range(metric: str) -> None:
    found = METRICS[metric](said := sample_of(metric))
    low, high = intervals({metric: found})[metric]
    assert 0 <= low < found.total < high <= (10 if metric == "cider" else 1)
    assert intervals({metric: found}) == intervals({metric: found})
    assert found.of(range(7)).total != found.total
    alike = [answered(p.reference, p.reference) for p in said]
    assert METRICS[metric](alike).total == pytest.approx(10 if metric == "cider" else 1)
    assert len(METRICS[metric]([]).scores) == 0


def test_the_interval_of_a_share_is_the_binomial_one() -> None:
    share = Tally.mean([1.0] * 80 + [0.0] * 320)
    low, high = intervals({"share": share})["share"]
    spread = 1.96 * math.sqrt(0.2 * 0.8 / 400)
    assert (low, high) == pytest.approx((0.2 - spread, 0.2 + spread), abs=0.006)


def test_a_paired_difference_is_surer_than_two_intervals() -> None:
    rng = np.random.default_rng(0)
    one = rng.random(300)
    a, b = Tally.mean(one), Tally.mean(one + 0.01 * rng.random(300))
    low, high = differences({"x": a}, {"x": b})["x"]
    assert 0 < low < b.total - a.total < high < 0.01
    apart = intervals({"x": a})["x"]
    assert apart[1] - apart[0] > 10 * (high - low)


def test_the_sign_test() -> None:
    assert sign_test(8, 2) == pytest.approx(0.109375)
    assert sign_test(10, 0) == pytest.approx(2 / 1024)
    assert sign_test(0, 0) == sign_test(3, 3) == 1.0
    assert sign_test(5000, 5400) == sign_test(5400, 5000) < 1e-4


def test_a_metric_of_ones_own_sees_the_samples() -> None:
    @register_metric("sure")
    def sure(predictions: Sequence[Prediction]) -> list[float]:
        return [float(p.fields["weight"]) if p.labels else math.nan for p in predictions]

    try:
        found = tallies([answered("a", "a", fields={"weight": 3}, labels=1), answered("b", "b")], ["sure"])["sure"]
    finally:
        del METRICS["sure"]
    assert found.total == 3.0
    assert found.scores == [3.0, None]


def test_ten_thousand_answers_cost_what_they_have_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """CIDEr cuts each text into n-grams once; the words of an answer are never compared with all others."""
    calls = 0
    cut = qvl_sft.metrics.cider._grams

    def counting(tokens: Sequence[str]) -> object:
        nonlocal calls
        calls += 1
        return cut(tokens)

    monkeypatch.setattr(qvl_sft.metrics.cider, "_grams", counting)
    said = [answered(f"a cat number {i}", f"the cat number {i}") for i in range(10_000)]
    assert score("cider", *said) > 5
    assert calls == 20_000
    assert anls.similarity("a" * 100_000, "b" * 10) == 0.0  # no table of a million entries
    assert len(rouge._Words().tokenize("词" * 10_000)) == 10_000
