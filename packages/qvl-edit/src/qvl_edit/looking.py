"""One row of a recipe's data, looked at as training will: can it be learned from, at which sizes, and does what its
pictures show lie still?

The same functions decide here, in extraction and in training, so what is left out here is what would be left out there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from qvl_data.errors import BadSample, placed, severity
from qvl_data.sample import Sample
from qvl_data.sources import Mixture
from qvl_data.validate import Finding
from qvl_data.validate.checks import Checks
from qvl_data.walk import Step
from qvl_edit.alignment import Shift, shift
from qvl_edit.cut import Bucket
from qvl_edit.geometry import Geometry, resized, stretched
from qvl_edit.profile import Profile
from qvl_edit.questions import Asking, buckets_of, sources_of, target_of, texts_of
from qvl_edit.texts import Text

CHECKS = Checks(pixels=False)  # of texts and headers; pictures are opened once, below
TOLD = ("edit_unchanged", "empty_question")  # what is told below of pixels, and of all texts together


class Facts(NamedTuple):
    """What was seen of a row that can be learned from.

    bucket     sizes, as its instruction learns them
    stretch    by how much rounding changes the ratio of a picture's sides, at most
    enlarged   the target is smaller than it is learned
    shift      of the target against the last source; None without a source of the same size
    trained    its number of sources has a weight
    """

    sources: int
    texts: tuple[Text, ...]
    bucket: Bucket
    stretch: float
    enlarged: bool
    shift: Shift | None
    trained: bool


class Looked(NamedTuple):
    """A row by its number in its list, what was found, and facts; None: it cannot be used."""

    number: int
    source: int
    findings: list[Finding]
    facts: Facts | None


@dataclass(frozen=True)
class Listed:
    """The chosen samples of a list by number."""

    mixture: Mixture

    def __len__(self) -> int:
        return self.mixture.chosen

    def __getitem__(self, number: int) -> Sample:
        return self.mixture.sample(self.mixture.item(number))


@dataclass(frozen=True)
class Looking:
    """Looks at the rows of a step (`qvl_data.walk`); pickled into worker processes.

    identity  pairs whose target shows what the source shows are meant
    """

    lists: Mapping[str, Listed]
    asking: Asking
    profile: Profile
    geometry: Geometry
    identity: bool = False

    def __call__(self, step: Step) -> list[Looked]:
        return [self.row(step.split, number) for number in range(step.start, step.end)]

    def row(self, name: str, number: int) -> Looked:
        """A row of a list. Nothing is raised, whatever the data does."""
        mixture = self.lists[name].mixture
        item = mixture.item(number)
        found: list[BadSample] = []
        facts, sample_id = None, ""
        try:
            sample = mixture.sample(item)
            sample_id = sample.id
            with placed(sample):
                found += [problem for problem in CHECKS.problems(sample)[0] if problem.reason not in TOLD]
                if not any(severity(problem.reason) == "error" for problem in found):
                    facts = self.facts(sample, found, name == "train")
        except BadSample as error:
            found.append(error)
        place = mixture.place(item)
        return Looked(number, item.source, [Finding.of(one, place, sample_id, name, number) for one in found], facts)

    def learned(self, sample: Sample, train: bool) -> tuple[tuple[Text, ...], Bucket, list[Image.Image]]:
        """The texts of a sample, the sizes at which its instruction learns its pictures, and these, the target first.

        train  it is of that list: the others are measured whole, whatever numbers of sources are learned from

        Raises BadSample for what training could not use.
        """
        with placed(sample):
            self.asking.of(sample, self.profile, first=train)  # raises for more sources than the checkpoint takes
            texts = texts_of(sample, self.asking.inverse)
            forth, *_ = buckets_of(sample, self.asking.inverse, self.geometry)
            shown = (target_of(sample), *sources_of(sample))
            return texts, forth, [sample.opener.open(sample.media[at]) for at in shown]

    def facts(self, sample: Sample, found: list[BadSample], train: bool) -> Facts:
        """What a sample is learned as; doubts are added to `found`. Raises BadSample if it cannot be."""
        texts, forth, (target, *sources) = self.learned(sample, train)
        moved = None
        if sources and forth.sources[-1] == forth.target:
            before, after = (np.asarray(resized(one, forth.target)) for one in (sources[-1], target))
            moved = shift(before, after)
            if not self.identity and np.array_equal(before, after):
                problem = (
                    "the target shows what the source shows, so nothing is learned but to copy; replace one of them, "
                    "or allow it (--allow-identity)"
                )
                found.append(BadSample("edit_unchanged", problem))
        heights_widths = [(one.height, one.width) for one in (target, *sources)]
        return Facts(
            sources=len(sources),
            texts=texts,
            bucket=forth,
            stretch=max(abs(stretched(*pair)) for pair in zip(heights_widths, forth.sizes, strict=True)),
            enlarged=target.height * target.width < forth.target[0] * forth.target[1],
            shift=moved,
            trained=not train or self.asking.trains(len(sources)),
        )
