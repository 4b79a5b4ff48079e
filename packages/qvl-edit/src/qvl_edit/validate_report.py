"""The page of `qvl-edit validate`: what there is, how it is mixed, at which sizes it is learned, and whether pairs lie
on one another."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops

from qvl_core.report import Bars, Block, Card, Cards, Figure, Figures, Picture, Section, Table, Text, Turn, render
from qvl_data.audit import sections
from qvl_data.audit.cards import seen_from, shortened
from qvl_data.formats import edit
from qvl_data.sample import Sample
from qvl_data.shown import small
from qvl_data.validate import read_findings
from qvl_edit.alignment import Shift, steepness
from qvl_edit.cut import Size
from qvl_edit.geometry import resized
from qvl_edit.questions import FORTH, bucket_of, sources_of, target_of
from qvl_edit.validate import Validated

SIDE = 360  # pixels of a picture on the page, at most
SAMPLES = 8
BUCKETS = 16
FARS = ((0, 1, "0 px"), (1, 2, "1 px"), (2, 4, "2 to 3 px"), (4, 8, "4 to 7 px"), (8, 16, "8 to 15 px"),
        (16, np.inf, "16 px or more"))  # fmt: skip


def page(validated: Validated, findings: Path) -> str:
    """The page as HTML."""
    folder = _folder(validated)
    found = [
        _summary(validated),
        _alignment(validated, folder),
        _mixture(validated),
        _sizes(validated),
        sections.errors(validated.lists, validated.found, read_findings(findings), folder),
        sections.gallery(validated.lists, SAMPLES, folder),
    ]
    geometry = validated.geometry
    lead = (
        f"{validated.profile.name} · pictures of about {round(geometry.area**0.5)} x {round(geometry.area**0.5)} "
        f"pixels, in sides of {geometry.step}"
    )
    return render(f"Pairs of {shortened(validated.found.source, 80)}", [one for one in found if one.blocks], lead)


def _folder(validated: Validated) -> Path:
    """The folder around all data: places are told as seen from there, and as they are where there is none."""
    files = [Path(data.file) for rows in validated.lists.values() for data in rows.mixture.datasets]
    try:
        return Path(os.path.commonpath([file if file.is_dir() else file.parent for file in files]))
    except ValueError:  # absolute and relative paths, or several drives
        return Path()


def _summary(validated: Validated) -> Section:
    found, met, far = validated.found, validated.met, validated.met.pairs.distances
    shown = [
        Figure("rows", found.samples),
        Figure("left out", found.bad, bar=0, at_most=True),
        Figure("with warnings", found.warned),
        Figure("tasks", len(met.tasks)),
        Figure("sizes", len(met.buckets), note="of pictures, each learned apart"),
        Figure("moved pairs", int((far > 0).sum()), note=f"of {len(far):,} that agree on a place"),
    ]
    blocks: list[Block] = [Figures(shown)]
    if validated.impossible:
        blocks.append(Text(validated.impossible, tone="bad"))
    blocks += [Text(f"{sentence}.", tone="bad") for sentence in validated.leaks]
    if met.untrained:
        blocks.append(
            Text(f"Not trained, because their number of sources has no weight: {met.untrained:,} rows.", tone="note")
        )
    return Section("What it is", blocks)


def _alignment(validated: Validated, folder: Path) -> Section:
    """How far targets lie from their sources, and the worst pairs."""
    pairs = validated.met.pairs
    if not pairs.shifts:
        return Section("Do pairs lie on one another?", [])
    sure, far = pairs.sure, pairs.distances
    unsure = len(pairs.shifts) - len(sure)
    rows = [(said, int(((far >= low) & (far < high)).sum())) for low, high, said in FARS]
    blocks: list[Block] = [_verdict(validated)]
    blocks.append(Bars("How far targets lie from their sources", [*rows, ("cannot be said", unsure)]))
    if (far > 0).any():
        ways = Counter(_way(int(down), int(right)) for down, right in sure)
        blocks.append(Bars("Which way", ways.most_common(len(rows) + 1), note=f"{len(ways):,} different"))
        cards = [_moved(validated, shift, name, number, folder) for shift, name, number in pairs.far]
        blocks.append(
            Text(
                "The farthest are shown below. On one another: edges of the source in red, of the target in cyan, "
                "white where they agree. Moved back: the same with the target moved by the shift that was found."
            )
        )
        blocks.append(Cards(cards))
    lead = (
        "A model that learns from pairs that are shifted shifts what it edits. The shift is that of the phases of the "
        "edges of source and target, both at the size at which they are learned, whatever was done to colours."
    )
    return Section("Do pairs lie on one another?", blocks, lead=lead)


def _verdict(validated: Validated) -> Text:
    pairs = validated.met.pairs
    far = pairs.distances
    if not len(far):
        return Text("No pair shows enough of the same to be laid on one another.", tone="note")
    if not (far > 0).any():
        return Text(f"All {len(far):,} pairs that show enough of the same lie exactly on one another.", tone="good")
    figures = pairs.figures()
    moved, agree = figures["moved"], figures["agree"]
    median = _way(round(figures["median_down"]), round(figures["median_right"]))
    said = (
        f"{moved:,} of {agree:,} pairs ({moved / agree:.1%}) are moved, by {figures['mean_pixels']:.2g} pixels on "
        f"average over all and {figures['most_pixels']:.3g} at most; the median of all is: {median}."
    )
    return Text(said, tone="note" if moved / agree < 0.05 else "bad")


def _way(down: int, right: int) -> str:
    """A shift in words."""
    words = [
        f"{abs(pixels)} px {positive if pixels > 0 else negative}"
        for pixels, positive, negative in ((down, "down", "up"), (right, "right", "left"))
        if pixels
    ]
    return ", ".join(words) or "in place"


def _moved(validated: Validated, shift: Shift, name: str, number: int, folder: Path) -> Card:
    """A pair side by side, on one another, and with the target moved back."""
    sample = validated.lists[name][number]
    size = bucket_of(sample, FORTH, validated.geometry).target
    source, target = (_opened(sample, at, size) for at in (sources_of(sample)[-1], target_of(sample)))
    back = ImageChops.offset(target, -shift.right, -shift.down)
    shown = (
        (source, "source"),
        (target, "target"),
        (_laid(source, target), "on one another"),
        (_laid(source, back), "moved back"),
    )
    return Card(
        title=seen_from(folder, validated.place(name, number)),
        pictures=[Picture(small(picture, SIDE), caption) for picture, caption in shown],
        turns=[Turn(language, [shortened(text, 300)]) for language, text in edit.texts(sample).items() if text],
        tags=(_way(shift.down, shift.right), f"agreement {shift.peak:.2f}"),
    )


def _opened(sample: Sample, at: int, size: Size) -> Image.Image:
    return resized(sample.opener.open(sample.media[at]), size)


def _laid(source: Image.Image, target: Image.Image) -> Image.Image:
    """Edges of the source in red, of the target in cyan, white where they agree: nothing of colours is in it."""
    red, cyan = (_edges(picture) for picture in (source, target))
    return Image.fromarray(np.stack([red, cyan, cyan], -1))


def _edges(picture: Image.Image) -> NDArray[np.uint8]:
    """(H, W): as bright as they are steep; all but the steepest hundredth, which are white."""
    steep = steepness(np.asarray(picture))
    return (255 * np.clip(steep / max(float(np.percentile(steep, 99)), 1e-9), 0, 1)).astype(np.uint8)


def _mixture(validated: Validated) -> Section:
    """Tasks by number of sources, as the recipe mixes them, and which texts there are."""
    counts, shares = validated.counts, validated.shares
    numbers = sorted({number for by in counts.values() for number in by})
    weights = validated.mixture.numbers if validated.mixture is not None else ()
    rows = [
        {"task": task}
        | {f"{_sources(number)}": by.get(number, 0) for number in numbers}
        | {"part of the steps": f"{shares.get(task, 0):.1%}"}
        for task, by in counts.items()
    ]
    blocks: list[Block] = [Table(rows, title="Rows that can be used, by number of sources")] if rows else []
    if validated.mixture is not None:
        drawn = zip(weights, validated.mixture.shares.sum(1).tolist(), strict=True)
        said = ", ".join(f"{share:.1%} of the steps have {_sources(number)}" for number, share in drawn)
        blocks.append(Text(f"Under the weights of the recipe, {said}."))
    blocks.append(Bars("Texts", sorted(validated.met.texts.items()), total=validated.met.usable))
    return Section("How it is mixed", blocks if validated.met.usable else [])


def _sources(number: int) -> str:
    return {0: "no source", 1: "1 source"}.get(number, f"{number} sources")


def _sizes(validated: Validated) -> Section:
    """Sizes at which pictures are learned, and by how much they are stretched for it."""
    met = validated.met
    if not met.buckets:
        return Section("Sizes", [])
    rows = [
        {
            "target": _sized(bucket.target),
            "sources": ", ".join(map(_sized, bucket.sources)) or None,
            "rows": count,
            "part": f"{count / met.usable:.1%}",
        }
        for bucket, count in met.buckets.most_common(BUCKETS)
    ]
    note = f"the commonest {len(rows)} of {len(met.buckets):,}" if len(met.buckets) > len(rows) else ""
    blocks: list[Block] = [Table(rows, title="Width and height of a row's pictures, in pixels", note=note)]
    bound = validated.geometry.stretch
    edges = np.linspace(0, bound, 8)
    counts = np.histogram(np.clip(met.stretches, 0, bound), edges)[0]
    stretched = [
        (f"{low:.1%} to {high:.1%}", int(count)) for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]
    blocks.append(Bars("How much shapes are changed by it", stretched, note=f"{bound:.0%} is the bound"))
    if met.enlarged:
        blocks.append(
            Text(
                f"{met.enlarged:,} of {met.usable:,} targets are smaller than they are learned, and enlarged: a model "
                "learns to blur from them. Lower pictures.size, or take larger pictures.",
                tone="note",
            )
        )
    lead = "A forward holds rows of one size of target and sources. A rare size makes small forwards."
    return Section("Sizes", blocks, lead=lead)


def _sized(size: Size) -> str:
    return f"{size[1]} x {size[0]}"
