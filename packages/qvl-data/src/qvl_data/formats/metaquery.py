"""MetaQuery-Instruct rows: source pictures, an instruction, and the picture that it asks for.

    {"source_images": ["a.jpg", "b.jpg"], "source_captions": ["A cat.", "A sofa."],
     "prompt": "The cat on the sofa.", "target_image": "c.jpg", "target_caption": "A cat lies on a sofa."}

Pictures are paths, addresses, or `{bytes, path}` as `datasets` saves them. The sample is an edit whose English
instruction is the prompt; captions are kept as fields. Columns can be renamed.
"""

from collections.abc import Mapping
from typing import Any

from ..errors import BadSample
from ..sample import Edit, Sample
from . import register
from .cells import cells_of, pictures_in
from .columns import Columns
from .common import build, not_expressible, unpack_extra, write_id
from .fitted import fitted

_CAPTIONS = ("source_captions", "target_caption")
FIELDS = ("id", "source_images", "prompt", "target_image", *_CAPTIONS)


@register("metaquery")
class MetaQuery:
    def __init__(self, columns: Mapping[str, str] | None = None) -> None:
        self.columns = Columns("metaquery", FIELDS, columns)

    def matches(self, row: Any) -> bool:
        needed = (self.columns[field] for field in ("source_images", "prompt", "target_image"))
        return isinstance(row, dict) and all(column in row for column in needed)

    def read(self, row: Any, place: str) -> Sample:
        values, others = self.columns.take(row, place)
        for field in ("source_images", "prompt", "target_image"):
            if field not in values:
                raise self.columns.missing(field, others, place)
        sources, prompt = values["source_images"], values["prompt"]
        if not isinstance(sources, list) or not sources:
            problem = f'"{self.columns["source_images"]}" is no list of pictures; give at least one'
            raise BadSample("metaquery", problem, place)
        if not isinstance(prompt, str) or not prompt:
            problem = f'"{self.columns["prompt"]}" is empty or no text; write what the sources are to become'
            raise BadSample("metaquery", problem, place)
        captions = values.get("source_captions")
        if isinstance(captions, list) and len(captions) != len(sources):
            problem = f"{len(captions)} captions of {len(sources)} source pictures; give one for each, or none at all"
            raise BadSample("media_count", problem, place)
        named = [(f"source_images[{number}]", cell) for number, cell in enumerate(sources)]
        media, layout = pictures_in([*named, ("target_image", values["target_image"])], place)
        layout |= self.columns.hint
        layout |= {"others": {"id": others.pop("id")}} if "id" in others else {}
        others |= {self.columns[field]: values[field] for field in _CAPTIONS if field in values}
        last = len(media) - 1
        edit = Edit(sources=tuple(range(last)), target=last, instruction={"en": prompt})
        return build("metaquery", place, {**others, **values}, others, layout, media, [], task="edit", edit=edit)

    @fitted
    def write(self, sample: Sample) -> Any:
        fields, layout = unpack_extra(sample, "metaquery")
        if sample.edit is None:
            raise not_expressible("metaquery", f"the task {sample.task}", sample)
        said = sample.edit.instruction
        if set(said) != {"en"} or not said["en"] or sample.edit.inverse:
            raise not_expressible("metaquery", "an edit without one English instruction alone", sample)
        if not sample.edit.sources or sample.messages or sample.regions:
            raise not_expressible("metaquery", "more or less than sources, instruction and target", sample)
        cells = cells_of([sample.media[index] for index in (*sample.edit.sources, sample.edit.target)], layout)
        row = {"source_images": cells[:-1], "prompt": said["en"], "target_image": cells[-1]}
        return {**fields, **layout.get("others", {}), **self.columns.give({**write_id(sample, layout), **row})}
