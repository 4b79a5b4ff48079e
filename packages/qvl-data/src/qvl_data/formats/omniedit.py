"""Rows of OmniEdit (TIGER-Lab/OmniEdit-Filtered-1.2M): a picture, the picture after an edit, and how the edit is put.

    {"omni_edit_id": "task_obj_add_1", "task": "addition", "src_img": {"bytes": ..., "path": ...}, "edited_img": {...},
     "edited_prompt_list": ["Add a hat.", "Put a red hat on the cat's head."], "width": 1024, "height": 768, ...}

The sample is an edit of one source, and its instruction is the last prompt of the list. Prompts before it, the kind of
edit, sizes and scores are kept as fields. Pictures are paths, addresses, or `{bytes, path}`. Columns can be renamed.
"""

from typing import Any

from ..errors import BadSample
from ..sample import Sample
from . import register
from .common import not_expressible, write_id
from .fitted import fitted
from .instructed import Instructed

_PICTURES = ("src_img", "edited_img")
_PROMPTS = "edited_prompt_list"


@register("omniedit")
class OmniEdit(Instructed):
    name = "omniedit"
    needed = (*_PICTURES, _PROMPTS)
    fields = ("omni_edit_id", *needed)

    def read(self, row: Any, place: str) -> Sample:
        values, others = self.take(row, place)
        prompts, listed = values[_PROMPTS], self.columns[_PROMPTS]
        if not isinstance(prompts, list) or not prompts:
            raise BadSample(self.name, f'"{listed}" is no list of prompts; give at least one', place)
        *before, instruction = prompts
        if not isinstance(instruction, str) or not instruction:
            raise BadSample(self.name, f'the last of "{listed}" is empty or no text; write what is to change', place)
        named = {"id": values["omni_edit_id"]} if "omni_edit_id" in values else {}
        pictures = [(field, values[field]) for field in _PICTURES]
        return self.sample(place, named, pictures, instruction, others, {listed: before} if before else {})

    @fitted
    def write(self, sample: Sample) -> Any:
        cells, instruction, fields, layout = self.parts(sample)
        if len(cells) != 2:
            raise not_expressible(self.name, "several sources", sample)
        prompts = [*fields.pop(self.columns[_PROMPTS], ()), instruction]
        named = write_id(sample, layout)
        identity = {"omni_edit_id": named["id"]} if named else {}
        return self.row({**identity, **dict(zip(_PICTURES, cells, strict=True)), _PROMPTS: prompts}, fields, layout)
