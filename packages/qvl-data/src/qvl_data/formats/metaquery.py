"""MetaQuery-Instruct rows: source pictures, an instruction, and the picture that it asks for.

    {"source_images": ["a.jpg", "b.jpg"], "source_captions": ["A cat.", "A sofa."],
     "prompt": "The cat on the sofa.", "target_image": "c.jpg", "target_caption": "A cat lies on a sofa."}

Pictures are paths, addresses, or `{bytes, path}` as `datasets` saves them. The sample is an edit whose English
instruction is the prompt; captions are kept as fields. Columns can be renamed.
"""

from typing import Any

from ..errors import BadSample
from ..sample import Sample
from . import register
from .common import write_id
from .fitted import fitted
from .instructed import Instructed

_CAPTIONS = ("source_captions", "target_caption")


@register("metaquery")
class MetaQuery(Instructed):
    name = "metaquery"
    needed = ("source_images", "prompt", "target_image")
    fields = ("id", *needed, *_CAPTIONS)

    def read(self, row: Any, place: str) -> Sample:
        values, others = self.take(row, place)
        sources, prompt = values["source_images"], values["prompt"]
        if not isinstance(sources, list) or not sources:
            problem = f'"{self.columns["source_images"]}" is no list of pictures; give at least one'
            raise BadSample(self.name, problem, place)
        if not isinstance(prompt, str) or not prompt:
            problem = f'"{self.columns["prompt"]}" is empty or no text; write what the sources are to become'
            raise BadSample(self.name, problem, place)
        captions = values.get("source_captions")
        if isinstance(captions, list) and len(captions) != len(sources):
            problem = f"{len(captions)} captions of {len(sources)} source pictures; give one for each, or none at all"
            raise BadSample("media_count", problem, place)
        pictures = [(f"source_images[{number}]", cell) for number, cell in enumerate(sources)]
        pictures.append(("target_image", values["target_image"]))
        kept = {self.columns[field]: values[field] for field in _CAPTIONS if field in values}
        return self.sample(place, values, pictures, prompt, others, kept)

    @fitted
    def write(self, sample: Sample) -> Any:
        (*sources, target), prompt, fields, layout = self.parts(sample)
        values = {"source_images": sources, "prompt": prompt, "target_image": target}
        return self.row({**write_id(sample, layout), **values}, fields, layout)
