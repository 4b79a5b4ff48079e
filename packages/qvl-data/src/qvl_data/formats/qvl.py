"""QVL's own format: `qvl.sample/1` as JSON (see qvl_data.sample). Bytes are base64; empty fields may be left out."""

from typing import Any

from ..sample import SCHEMA, Sample, read_sample
from . import register


@register("qvl")
class Qvl:
    def matches(self, row: Any) -> bool:
        return isinstance(row, dict) and row.get("schema") == SCHEMA

    def read(self, row: Any, place: str) -> Sample:
        return read_sample(row, place)

    def write(self, sample: Sample) -> Any:
        return sample.to_dict()
