"""QVL's own format: `qvl.sample/1` as JSON (see qvl_data.sample). Bytes are base64; empty fields may be left out."""

from typing import Any

from ..sample import SCHEMA, Sample, read_sample
from . import register


@register("qvl")
class Qvl:
    def matches(self, row: Any) -> bool:
        return isinstance(row, dict) and row.get("schema") == SCHEMA

    def read(self, row: Any, place: str) -> Sample:
        sample = read_sample(row, place)
        if sample.meta.locator is None:
            sample = sample.model_copy(update={"meta": sample.meta.model_copy(update={"locator": place})})
        return sample

    def write(self, sample: Sample) -> Any:
        return sample.to_dict()
