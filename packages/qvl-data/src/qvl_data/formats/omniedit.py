"""Rows of OmniEdit (TIGER-Lab/OmniEdit-Filtered-1.2M): a picture, the picture after an edit, and how the edit is put.

    {"omni_edit_id": "task_obj_add_1", "task": "addition", "src_img": {"bytes": ..., "path": ...}, "edited_img": {...},
     "edited_prompt_list": ["Add a hat.", "Put a red hat on the cat's head."], "width": 1024, "height": 768, ...}

The sample is an edit of one source, and its instruction is the last prompt of the list. Prompts before it, the kind of
edit, sizes and scores are kept as fields. Pictures are paths, addresses, or `{bytes, path}`. Columns can be renamed.
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

_NEEDED = ("src_img", "edited_img", "edited_prompt_list")
FIELDS = ("omni_edit_id", *_NEEDED)


@register("omniedit")
class OmniEdit:
    def __init__(self, columns: Mapping[str, str] | None = None) -> None:
        self.columns = Columns("omniedit", FIELDS, columns)

    def matches(self, row: Any) -> bool:
        return isinstance(row, dict) and all(self.columns[field] in row for field in _NEEDED)

    def read(self, row: Any, place: str) -> Sample:
        values, others = self.columns.take(row, place)
        for field in _NEEDED:
            if field not in values:
                raise self.columns.missing(field, others, place)
        prompts, listed = values["edited_prompt_list"], self.columns["edited_prompt_list"]
        if not isinstance(prompts, list) or not prompts:
            raise BadSample("omniedit", f'"{listed}" is no list of prompts; give at least one', place)
        *before, instruction = prompts
        if not isinstance(instruction, str) or not instruction:
            raise BadSample("omniedit", f'the last of "{listed}" is empty or no text; write what is to change', place)
        media, layout = pictures_in([(field, values[field]) for field in ("src_img", "edited_img")], place)
        layout |= self.columns.hint
        layout |= {"others": {"id": others.pop("id")}} if "id" in others else {}
        others |= {listed: before} if before else {}
        named = {"id": values["omni_edit_id"]} if "omni_edit_id" in values else {}
        edit = Edit(sources=(0,), target=1, instruction={"en": instruction})
        return build("omniedit", place, named, others, layout, media, [], task="edit", edit=edit)

    @fitted
    def write(self, sample: Sample) -> Any:
        fields, layout = unpack_extra(sample, "omniedit")
        if sample.edit is None:
            raise not_expressible("omniedit", f"the task {sample.task}", sample)
        said = sample.edit.instruction
        if set(said) != {"en"} or not said["en"] or sample.edit.inverse:
            raise not_expressible("omniedit", "an edit without one English instruction alone", sample)
        if len(sample.edit.sources) != 1 or sample.messages or sample.regions:
            raise not_expressible("omniedit", "more or less than one source, instruction and target", sample)
        source, target = cells_of([sample.media[index] for index in (*sample.edit.sources, sample.edit.target)], layout)
        prompts = [*fields.pop(self.columns["edited_prompt_list"], ()), said["en"]]
        named = write_id(sample, layout)
        identity = {"omni_edit_id": named["id"]} if named else {}
        row = {**identity, "src_img": source, "edited_img": target, "edited_prompt_list": prompts}
        return {**fields, **layout.get("others", {}), **self.columns.give(row)}
