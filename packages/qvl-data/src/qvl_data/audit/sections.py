"""The sections of an audit: figures, samples, distributions, duplicates and what is wrong."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from qvl_core.errors import BadInput
from qvl_core.report import Bars, Block, Card, Cards, Figure, Figures, Histogram, Section, Table, Text

from ..dataset import Dataset
from ..dedup.near import Floats, Ints
from ..errors import REASONS, BadSample, severity
from ..order import order
from ..sample import Sample
from ..stats import COUNTS, NUMBERS, Stats
from ..validate import Finding, Validation
from .cards import card, compared, seen_from, shortened

_GROUPS, _OF_GROUP, _OF_REASON, _PICTURES_OF_REASON = 12, 4, 10, 4
_CHARTS = (
    "tokens", "question_characters", "answer_characters", "width", "height", "aspect", "image_tokens",
    "sample_image_tokens", "images", "videos", "turns", "regions",
)  # fmt: skip
_VALUES = ("answer", "first_word", "script", "region_label", "picture_format", "task", "dataset", "license")
_SHOWN = 12


class Samples(Protocol):
    """Samples by number, such as a `Dataset`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


def lead(found: Validation, sets: Mapping[str, Dataset]) -> str:
    """One line under the title."""
    splits = ", ".join(f"{len(data):,} {split}" for split, data in sets.items())
    return f"{found.samples:,} samples: {splits}" if len(sets) > 1 else f"{found.samples:,} samples"


def summary(stats: Stats, found: Validation, kept: Ints, sets: Mapping[str, Dataset]) -> Section:
    """The headline figures, and a table of the splits."""
    gone = int((kept != np.arange(len(kept))).sum())
    images, videos = (stats.numbers.get(name) for name in ("images", "videos"))
    shown = [
        Figure("samples", found.samples),
        Figure("pictures", round(images.mean * images.count) if images else 0),
        Figure("videos", round(videos.mean * videos.count) if videos else 0),
        Figure("with errors", found.bad, bar=0, at_most=True, note=_share(found.bad, found.samples)),
        Figure("with warnings", found.warned, note=_share(found.warned, found.samples)),
        Figure("look like another", gone, note=_share(gone, found.samples)),
    ]
    rows = [
        {"split": name, "samples": len(data), "file": data.file.name, "fingerprint": _fingerprint(data)}
        for name, data in sets.items()
    ]
    blocks: list[Block] = [Figures([figure for figure in shown if figure.value or figure.label != "videos"])]
    blocks.append(Table(rows))
    if (licences := stats.counts.get("license")) is not None:
        blocks.append(Text("Licences: " + ", ".join(f"{name} ({count:,})" for name, count in licences.top) + "."))
    return Section("What it is", blocks)


def _fingerprint(data: Dataset) -> str:
    """Changes with the content of the data files."""
    return hashlib.sha256(b"".join(data.digests())).hexdigest()[:16]


def gallery(sets: Mapping[str, Samples], most: int, folder: Path) -> Section:
    """Samples of every split, drawn at random but always the same ones."""
    cards: list[Card] = []
    for split, data in sets.items() if most else ():
        share = max(1, round(most * len(data) / sum(map(len, sets.values()))))
        for index in sorted({order(0, place, len(data)) for place in range(min(share, len(data)))}):
            try:
                sample = data[index]
            except BadSample:
                continue  # shown among what is wrong
            cards.append(card(sample, (f"{split} {index}", sample.task), folder))
    drawn = f"{len(cards)} samples, drawn at random."
    lead = f"{drawn} Green is what a model learns from; ▣ stands where a picture is shown."
    return Section("Samples", [Cards(cards)] if cards else [], lead=lead)


def distributions(stats: Stats) -> Section:
    """How lengths and sizes are distributed."""
    charts: list[Block] = []
    for name in _CHARTS:
        numbers = stats.numbers.get(name)
        if numbers is None or numbers.maximum == 0:
            continue
        spread = f"median {numbers.median:,.4g} · 95 % up to {numbers.p95:,.4g} · most {numbers.maximum:,.4g}"
        charts.append(Histogram(_title(NUMBERS[name]), numbers.edges, numbers.counts, spread))
    return Section("Lengths and sizes", charts)


def values(stats: Stats) -> Section:
    """What is said how often, and how evenly it is spread."""
    charts: list[Block] = []
    for name in _VALUES:
        counts = stats.counts.get(name)
        if counts is None or (counts.distinct == 1 and name not in ("answer", "script")):
            continue
        if name == "first_word" and counts.top == stats.counts["answer"].top:
            continue  # answers of one word each
        distinct = "very many" if counts.distinct is None else f"{counts.distinct:,}"
        even = "" if counts.entropy is None or counts.distinct == 1 else f" · evenness {counts.entropy:.2f} of 1"
        rows = [(value or "(empty)", count) for value, count in counts.top[:_SHOWN]]
        charts.append(Bars(_title(COUNTS[name]), rows, counts.total, f"{distinct} different{even}"))
    return Section("Answers and balance", charts, lead=_imbalance(stats))


def duplicates(data: Mapping[str, Dataset], kept: Ints, distance: Floats) -> Section:
    """The largest groups of samples that look the same, with their pictures."""
    where = _Where(data)
    gone = np.flatnonzero(kept != np.arange(len(kept)))
    if not len(gone):
        return Section("Duplicates", [Text("No two samples say the same about pictures that look alike.", tone="good")])
    groups: dict[int, list[int]] = defaultdict(list)
    for row in gone.tolist():
        groups[int(kept[row])].append(row)
    largest = sorted(groups, key=lambda row: (-len(groups[row]), row))[:_GROUPS]
    across = int((where.split(gone) != where.split(kept[gone])).sum())
    cards = [_group(data, where, one, groups[one], distance) for one in largest]
    blocks: list[Block] = [Cards([found for found in cards if found is not None])]
    if across:
        stand = "stands" if across == 1 else "stand"
        said = f"{across:,} of them {stand} in two splits: a model is tested on what it has learned."
        blocks.insert(0, Text(f"{said} qvl-data dedup removes them from train.", tone="bad"))
    lead = (
        f"{len(gone):,} samples in {len(groups):,} groups say the same as an earlier one, about pictures that look"
        f" alike (at most 4 of 64 bits of their perceptual hash differ). The {len(cards)} largest groups:"
    )
    return Section("Duplicates", blocks, lead=lead)


class _Where:
    """Which split and sample a row of all splits is."""

    def __init__(self, data: Mapping[str, Dataset]) -> None:
        self._names = list(data)
        self._starts = np.concatenate([[0], np.cumsum([len(rows) for rows in data.values()])])

    def split(self, rows: Ints) -> Ints:
        return np.searchsorted(self._starts, rows, "right").astype(np.int64) - 1

    def __getitem__(self, row: int) -> tuple[str, int]:
        split = int(self.split(np.array(row)))
        return self._names[split], row - int(self._starts[split])


def _group(
    data: Mapping[str, Dataset], where: "_Where", one: int, others: Sequence[int], distance: Floats
) -> Card | None:
    rows = [one, *others[:_OF_GROUP]]
    try:
        samples = [data[split][index] for split, index in (where[row] for row in rows)]
    except (BadSample, BadInput):
        return None
    pictures = []
    for row, sample in zip(rows, samples, strict=True):
        split, index = where[row]
        far = "first" if row == one else "same" if distance[row] == 0 else f"{distance[row]:g} bits"
        pictures += list(compared(sample, f"{split} {index} · {far}", bad=row != one))
    said = card(samples[0])
    more = len(others) - _OF_GROUP
    return Card(
        title=said.title,
        pictures=pictures,
        turns=[*said.turns[:2]],
        tags=(f"{len(others) + 1:,} alike",),
        note=f"and {more:,} more" if more > 0 else "",
    )


def errors(data: Mapping[str, Samples], found: Validation, findings: Iterable[Finding], folder: Path) -> Section:
    """What is wrong, by reason: the first places of each, and their pictures where they can be opened.

    Places are told as seen from `folder`.
    """
    if not found.reasons:
        return Section("What is wrong", [Text("Nothing: every sample was read and every picture was decoded.", "good")])
    first: dict[str, list[Finding]] = defaultdict(list)
    for finding in findings:
        if len(first[finding.reason]) < _OF_REASON:
            first[finding.reason].append(finding)
    ranked = sorted(found.reasons, key=lambda code: (severity(code) != "error", -found.reasons[code].count, code))
    overview = [
        {"reason": code, "severity": severity(code), "found": found.reasons[code].count, "meaning": REASONS.get(code)}
        for code in ranked
    ]
    blocks: list[Block] = [Table(overview)]
    for code in ranked:
        rows = [
            {
                "place": seen_from(folder, each.place),
                "sample": shortened(each.id, 60),
                "what": seen_from(folder, each.problem),
            }
            for each in first[code]
        ]
        note = (
            f"the first {len(rows)} of {found.reasons[code].count:,}" if found.reasons[code].count > len(rows) else ""
        )
        blocks.append(Table(rows, title=code, note=note))
        if cards := [shown for finding in first[code] if (shown := _shown(data, finding, folder)) is not None]:
            blocks.append(Cards(cards[:_PICTURES_OF_REASON]))
    return Section("What is wrong", blocks)


def _shown(data: Mapping[str, Samples], finding: Finding, folder: Path) -> Card | None:
    """The sample of a finding, if it can be read and has a picture that can be opened."""
    if finding.index < 0 or finding.split not in data:
        return None
    try:
        shown = card(data[finding.split][finding.index], (seen_from(folder, finding.place),), folder)
    except (BadSample, BadInput):
        return None
    return shown if shown.pictures else None


def _imbalance(stats: Stats) -> str:
    answers = stats.counts.get("answer")
    if answers is None or not answers.total:
        return ""
    most = answers.top[0][0]
    named = f"“{most[:40]}{'…' if len(most) > 40 else ''}”" if most.strip() else "the empty answer"
    return f"{answers.largest:.1%} of {answers.total:,} answers are {named}: what a model reaches that always says it."


def _title(meaning: str) -> str:
    return meaning[0].upper() + meaning[1:]


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if part and whole else ""
