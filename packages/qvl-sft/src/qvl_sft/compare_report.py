"""The page of `qvl-sft compare`: figures of both, and the samples on which they differ."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from qvl_core.report import Block, Card, Cards, Code, Picture, Pictures, Section, Table, Text, Turn, write
from qvl_core.run import RunFolder
from qvl_sft.compare import Contest, Pairs, better
from qvl_sft.figures import is_right
from qvl_sft.gallery import box_note, drawn, has_picture, is_short, tags

SURE = 0.05
COLOURS = "Boxes of the reference are green; those of A are dashed in orange, those of B in violet."
NOTE = (
    "The interval is of B - A, from a paired bootstrap over the samples; p is of the two-sided sign test on those "
    "where one of them is better. Of the loss, less is better."
)


def comparison_report(
    run: RunFolder, names: tuple[str, str], pairs: Mapping[str, Pairs], contests: Mapping[str, Mapping[str, Contest]]
) -> Path:
    """Write report.html in the folder of a comparison."""
    sections = []
    for name, of_list in pairs.items():
        metric = next(iter(contests[name]))
        said = Text(verdict(metric, contests[name][metric], of_list), tone="note")
        sections.append(Section(f"Figures of {name}", [said, Table(rows(contests[name]), note=NOTE)]))
        colours = COLOURS if box_note([*of_list.a, *of_list.b]) else ""
        for who, places in zip("AB", better(of_list, metric), strict=True):
            title = ("" if len(pairs) == 1 else f"{name}: ") + heading(who, of_list, places, metric)
            sections.append(Section(title, _shown(run, of_list, places), colours if places else ""))
    command = (run.read_result() or {}).get("command", "")
    sections.append(Section("Command", [Code(command)], folded=True))
    return write(run, sections, title="A against B", lead="A is {}\nB is {}".format(*names))


def heading(who: str, pairs: Pairs, places: Sequence[int], metric: str) -> str:
    """What these samples, on which `who` is better, have in common."""
    winner, loser, other = (pairs.a, pairs.b, "B") if who == "A" else (pairs.b, pairs.a, "A")
    split = all(is_right(winner[i], metric) and is_right(loser[i], metric) is False for i in places)
    return f"{who} right, {other} wrong" if split and places else f"{who} better by {metric}"


def verdict(metric: str, contest: Contest, pairs: Pairs) -> str:
    """What the first figure says."""
    leader = "A and B are equal" if contest.difference == 0 else f"{'B' if contest.difference > 0 else 'A'} is ahead"
    less, more = sorted((contest.a, contest.b))
    sure = contest.p < SURE and not contest.low <= 0 <= contest.high
    left_out = " ".join(
        f" {count:,} samples that only {who} answered are left out."
        for who, count in (("A", pairs.only_a), ("B", pairs.only_b))
        if count
    )
    return (
        f"{leader} by {metric}, {more:.3f} against {less:.3f} on {len(pairs.a):,} samples: "
        f"{'more' if sure else 'no more'} than chance explains. A is better on {contest.a_better:,} of them, "
        f"B on {contest.b_better:,}.{left_out}"
    )


def rows(contests: Mapping[str, Contest]) -> list[dict[str, object]]:
    return [
        {
            "figure": metric,
            "A": c.a,
            "B": c.b,
            "B - A": f"{c.difference:+.4f}",
            "95 % interval": f"{c.low:+.4f} to {c.high:+.4f}",
            "A better": c.a_better,
            "B better": c.b_better,
            "p": f"{c.p:.2g}",
        }
        for metric, c in contests.items()
    ]


def _shown(run: RunFolder, pairs: Pairs, places: Sequence[int]) -> list[Block]:
    """Samples with both answers: in a grid if all are short and have a picture, else on cards."""
    if not places:
        return [Text("None.")]
    folder = run.path / "a"
    chosen = [(pairs.a[place], pairs.b[place]) for place in places]
    if all(is_short(a) and is_short(b) and has_picture(folder, a) for a, b in chosen):
        pictures = [
            Picture(
                (folder / str(a.picture)).read_bytes(),
                f"{a.question.strip()}\nA: {a.said or '–'}\nB: {b.said or '–'}\nreference: {a.accepted[0]}",
            )
            for a, b in chosen
        ]
        return [Pictures(pictures, width=140)]
    cards = []
    for a, b in chosen:
        seen = drawn(folder, a, {"A": a.answer, "B": b.answer})
        turns = [Turn("question", [*range(len(seen)), a.question.strip()])]
        turns += [Turn(who, [p.said or "(no answer)"]) for who, p in (("A", a), ("B", b))]
        turns += [Turn("reference", [text]) for text in a.accepted]
        scores = [f"{who}: {tag}" for who, p in (("A", a), ("B", b)) for tag in tags(p, list(p.scores)[:1])]
        cards.append(Card(a.id, seen, turns, scores))
    return [Cards(cards)]
