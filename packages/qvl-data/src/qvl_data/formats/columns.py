"""Formats that are a table: which column holds which field, and what to say when a column is not there."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from qvl_core.errors import BadInput

from ..errors import BadSample


class Columns:
    """The columns of one format by field; a field that is not renamed has a column of its own name.

    Raises BadInput for a field that the format does not have.
    """

    def __init__(self, format: str, fields: Sequence[str], renamed: Mapping[str, str] | None) -> None:
        self.format, self.fields, self.renamed = format, tuple(fields), dict(renamed or {})
        for field in self.renamed:
            if field not in self.fields:
                hint = _did_you_mean(field, self.fields) or f"it has {', '.join(self.fields)}"
                raise BadInput(f'--map {field}=...: format "{format}" has no field "{field}"; {hint}.')
        named = list(self.renamed.values())
        if doubled := [column for column in named if named.count(column) > 1]:
            raise BadInput(f'--map: column "{doubled[0]}" stands for two fields; name one column for each.')

    def __getitem__(self, field: str) -> str:
        return self.renamed.get(field, field)

    @property
    def hint(self) -> dict[str, Any]:
        """The layout hint by which a writer gives the columns their names again."""
        return {"columns": dict(self.renamed)} if self.renamed else {}

    def take(self, row: Any, place: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """The fields that a row has, and its other columns. Raises BadSample if the row is no object."""
        if not isinstance(row, dict):
            problem = f"expected an object with columns by name, found {type(row).__name__}"
            raise BadSample(self.format, problem, place)
        values = {field: row[self[field]] for field in self.fields if self[field] in row and self._owns(field)}
        taken = {self[field] for field in values}
        return values, {key: value for key, value in row.items() if key not in taken}

    def _owns(self, field: str) -> bool:
        """Whether the column of this name is this field's, not one that another field was mapped to."""
        return field in self.renamed or field not in self.renamed.values()

    def give(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Fields by the names of their columns."""
        return {self[field]: value for field, value in values.items()}

    def close(self, field: str, others: Mapping[str, Any]) -> bool:
        """Whether another column has nearly the name of a field's."""
        return bool(_did_you_mean(self[field], others))

    def missing(self, field: str, others: Mapping[str, Any], place: str, none: str = "") -> BadSample:
        """The error for a field whose column is not there.

        none  what null in it would mean, if it may be null
        """
        there = f"there are {', '.join(map(str, others))[:300]}" if others else "there are no others"
        hint = _did_you_mean(self[field], others) or there
        problem = f'no column "{self[field]}" ({hint}); name it with --map {field}=COLUMN'
        problem += f", or write null for {none}" if none else ""
        return BadSample("column", problem, place)


def _did_you_mean(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, [key for key in known if isinstance(key, str)], 1)
    return f'did you mean "{close[0]}"?' if close else ""
