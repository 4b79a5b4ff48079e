"""Any format of objects with its keys under other names: `--map messages=dialog,images=pages`."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import BadSample
from ..sample import Sample
from .kept import keep

if TYPE_CHECKING:
    from . import Format


class Renamed:
    """A format whose keys have other names in the data, `columns` by the format's own name."""

    def __init__(self, form: "Format", columns: Mapping[str, str]) -> None:
        self.form, self.columns = form, dict(columns)

    def matches(self, row: Any) -> bool:
        return isinstance(row, dict) and self.form.matches(
            _rename(row, {own: name for name, own in self.columns.items()})
        )

    def read(self, row: Any, place: str) -> Sample:
        if not isinstance(row, dict):
            return self.form.read(row, place)
        names = {column: name for name, column in self.columns.items()}
        renamed = _rename(row, names)
        if len(renamed) < len(row):
            both = next(name for name in self.columns if name in row and name not in names)
            problem = f'columns "{both}" and "{self.columns[both]}" are both "{both}" by --map; rename one in the data'
            raise BadSample("column", problem, place)
        return self._noted(self.form.read(renamed, place))

    def _noted(self, sample: Sample) -> Sample:
        """The sample with the layout hint by which a writer gives the keys their names again."""
        extra = json.loads(sample.extra or "{}")
        extra["layout"] = extra.get("layout", {}) | {"columns": keep(self.columns)}
        return sample.model_copy(update={"extra": json.dumps(extra, ensure_ascii=False)})

    def write(self, sample: Sample) -> Any:
        row = self.form.write(sample)
        renamed = _rename(row, self.columns)
        if len(renamed) < len(row):
            both = next(column for name, column in self.columns.items() if column in row and name in row)
            problem = f'sample {sample.id}: its own field "{both}" stands where --map puts another; map it elsewhere'
            raise BadSample("not_expressible", problem, sample.place, sample.id)
        return renamed


def _rename(row: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(key, key): value for key, value in row.items()}
