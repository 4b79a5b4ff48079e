"""Formats of which a row is one edit: source pictures, an English instruction, and the picture that it asks for."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ..sample import Edit, Sample
from .cells import cells_of, pictures_in
from .columns import Columns
from .common import build, not_expressible, unpack_extra


class Instructed:
    """What such formats share: their columns, and the way between these and a sample of the task `edit`."""

    name: ClassVar[str]
    fields: ClassVar[Sequence[str]]
    needed: ClassVar[Sequence[str]]
    """Those of `fields` that every row has."""

    def __init__(self, columns: Mapping[str, str] | None = None) -> None:
        self.columns = Columns(self.name, self.fields, columns)

    def matches(self, row: Any) -> bool:
        return isinstance(row, dict) and all(self.columns[field] in row for field in self.needed)

    def take(self, row: Any, place: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """The fields of a row, and its other columns. Raises BadSample for a column that is not there."""
        values, others = self.columns.take(row, place)
        for field in self.needed:
            if field not in values:
                raise self.columns.missing(field, others, place)
        return values, others

    def sample(
        self,
        place: str,
        named: dict[str, Any],
        pictures: Sequence[tuple[str, Any]],
        instruction: str,
        others: Mapping[str, Any],
        kept: Mapping[str, Any],
    ) -> Sample:
        """The sample of a row. Raises BadSample.

        named     has the row's `id`, if it has one
        pictures  cells of the sources and then of the target, by names for errors
        others    columns that are no fields of the format
        kept      columns that the sample has no place for either
        """
        media, layout = pictures_in(pictures, place)
        layout |= self.columns.hint
        layout |= {"others": {"id": others["id"]}} if "id" in others else {}
        last = len(media) - 1
        edit = Edit(sources=tuple(range(last)), target=last, instruction={"en": instruction})
        return build(self.name, place, named, {**others, **kept}, layout, media, [], task="edit", edit=edit)

    def parts(self, sample: Sample) -> tuple[list[Any], str, dict[str, Any], dict[str, Any]]:
        """Cells of the sources and then of the target, the instruction, other columns, and layout hints.

        Raises BadSample for a sample that no format of this kind has words for.
        """
        fields, layout = unpack_extra(sample, self.name)
        if sample.edit is None:
            raise not_expressible(self.name, f"the task {sample.task}", sample)
        said = sample.edit.instruction
        if set(said) != {"en"} or not said["en"] or sample.edit.inverse:
            raise not_expressible(self.name, "an edit without one English instruction alone", sample)
        if not sample.edit.sources or sample.messages or sample.regions:
            raise not_expressible(self.name, "more or less than sources, instruction and target", sample)
        cells = cells_of([sample.media[index] for index in (*sample.edit.sources, sample.edit.target)], layout)
        return cells, said["en"], fields, layout

    def row(self, values: Mapping[str, Any], fields: Mapping[str, Any], layout: Mapping[str, Any]) -> dict[str, Any]:
        """Fields by their columns, beside other columns."""
        return {**fields, **layout.get("others", {}), **self.columns.give(values)}
