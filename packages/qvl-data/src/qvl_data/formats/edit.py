"""Picture edits, one row each, as the training scripts of Qwen-Image-Edit read them.

    {"source_image": ["a.png", "b.png"], "target_image": "c.png", "instruction": "Put the cat on the sofa.",
     "instruction_cn": "把猫放到沙发上。", "inverse_instruction": "...", "inverse_instruction_cn": "..."}

`source_image` is a picture, a list of pictures, or null (also: missing, empty); `target_image` may be called
`edit_image`. A picture is a path, an address, or, in tables, `{bytes, path}`. A text that is missing, null or empty
counts as "" (`Edit.instruction` has no such language, or ""), and comes back as it was. Columns can be renamed:
`--map source_image=src,instruction=caption`.

Without a source the row is text to image, task `t2i`: the first text that is not empty is the user's turn, the picture
the answer; `texts(sample)` gives it in every language.
"""

from collections.abc import Mapping
from typing import Any

from ..errors import BadSample
from ..sample import Edit, Sample
from . import register
from .cells import cells_of, looks_like_media, pictures_in
from .columns import Columns
from .common import build, drawing, drawn, not_expressible, unpack_extra, write_id
from .fitted import fitted
from .gallery import is_empty

_INSTRUCTION = {"en": "instruction", "zh": "instruction_cn"}
_INVERSE = {"en": "inverse_instruction", "zh": "inverse_instruction_cn"}
_TEXTS = (*_INSTRUCTION.values(), *_INVERSE.values())
FIELDS = ("id", "source_image", "target_image", "edit_image", *_TEXTS)


@register("edit")
class EditLines:
    def __init__(self, columns: Mapping[str, str] | None = None) -> None:
        self.columns = Columns("edit", FIELDS, columns)

    def matches(self, row: Any) -> bool:
        if not isinstance(row, dict):
            return False
        target = self.columns["target_image"] in row or self.columns["edit_image"] in row
        return target and (self.columns["source_image"] in row or any(self.columns[text] in row for text in _TEXTS))

    def read(self, row: Any, place: str) -> Sample:
        values, others = self.columns.take(row, place)
        layout: dict[str, Any] = self.columns.hint
        texts = self._texts(values, others, place)
        name, target = self._target(values, others, place)
        sources = self._sources(values, others, place, layout)
        named = [*((f"source_image[{number}]", cell) for number, cell in enumerate(sources)), (name, target)]
        media, cells = pictures_in(named, place)
        layout |= cells
        layout |= {"target": name} if name != "target_image" else {}
        layout |= {"others": {"id": others.pop("id")}} if "id" in others else {}
        last = len(media) - 1
        row = {**others, **values}
        if sources:
            layout |= {"null": nulls} if (nulls := [text for text in _TEXTS if texts.get(text, "") is None]) else {}
            instruction, inverse = _by_language(_INSTRUCTION, texts), _by_language(_INVERSE, texts)
            edit = Edit(sources=tuple(range(last)), target=last, instruction=instruction, inverse=inverse or None)
            return build("edit", place, row, others, layout, media, [], task="edit", edit=edit)
        spoken = _spoken(texts)
        layout |= {"texts": rest} if (rest := {key: text for key, text in texts.items() if key != spoken}) else {}
        layout |= {"spoken": spoken} if spoken != "instruction" else {}
        said = (texts[spoken] if spoken else None) or ""
        return build("edit", place, row, others, layout, media, drawn(said, [last]), task="t2i")

    @fitted
    def write(self, sample: Sample) -> Any:
        fields, layout = unpack_extra(sample, "edit")
        if sample.regions:
            raise not_expressible("edit", "regions", sample)
        texts: dict[str, Any]
        sources: tuple[int, ...] = ()
        if sample.edit is not None:
            if sample.messages:
                raise not_expressible("edit", "messages beside the edit", sample)
            sources, target = sample.edit.sources, sample.edit.target
            texts = dict.fromkeys(layout.get("null", ()))
            texts |= _columns(_INSTRUCTION, sample.edit.instruction, sample)
            texts |= _columns(_INVERSE, sample.edit.inverse or {}, sample)
        else:
            asked, (target, *more) = drawing("edit", sample)
            if more:
                raise not_expressible("edit", "several target pictures", sample)
            spoken = layout.get("spoken", "instruction") or ("instruction" if asked else None)
            texts = layout.get("texts", {}) | ({spoken: asked} if spoken else {})
        cells = cells_of([sample.media[index] for index in (*sources, target)], layout)
        row = {} if layout.get("source") == "missing" else {"source_image": layout.get("empty")}
        if sources:
            row["source_image"] = cells[0] if len(sources) == 1 and layout.get("source") != "list" else cells[:-1]
        row[layout.get("target", "target_image")] = cells[-1]
        named = self.columns.give({**write_id(sample, layout), **row, **texts})
        return {**fields, **layout.get("others", {}), **named}

    def _texts(self, values: Mapping[str, Any], others: Mapping[str, Any], place: str) -> dict[str, str | None]:
        """The texts that the row has, by field; a misnamed column would pass for missing texts, so it is refused."""
        found = {field: values[field] for field in _TEXTS if field in values}
        for field, value in found.items():
            if value is not None and not isinstance(value, str):
                problem = f'"{self.columns[field]}" is {type(value).__name__}; write a text, or null for none'
                raise BadSample("edit", problem, place)
        if not found and any(isinstance(value, str) for key, value in others.items() if key != "id"):
            raise self.columns.missing("instruction", others, place)
        for field in _TEXTS:
            if field in self.columns.renamed and field not in found and self.columns.close(field, others):
                raise self.columns.missing(field, others, place)
        return found

    def _target(self, values: dict[str, Any], others: dict[str, Any], place: str) -> tuple[str, Any]:
        """Name of the field that holds the target picture, and its cell."""
        if "target_image" in values and "edit_image" in values:
            if "target_image" not in self.columns.renamed:
                problem = '"target_image" and "edit_image" are both there; name one with --map target_image=...'
                raise BadSample("edit", problem, place)
            others[self.columns["edit_image"]] = values.pop("edit_image")
        name = "edit_image" if "edit_image" in values else "target_image"
        if name not in values:
            raise self.columns.missing("target_image", others, place)
        if is_empty(values[name]):
            raise BadSample("edit", f'"{self.columns[name]}" is empty; give the picture after the edit', place)
        return name, values[name]

    def _sources(
        self, values: Mapping[str, Any], others: Mapping[str, Any], place: str, layout: dict[str, Any]
    ) -> list[Any]:
        """The cells of the source pictures; how they stood goes into `layout`."""
        if "source_image" not in values:
            pictures = {key: value for key, value in others.items() if looks_like_media(value)}
            if "source_image" in self.columns.renamed or self.columns.close("source_image", pictures):
                raise self.columns.missing("source_image", others, place, none="text to image")
            layout["source"] = "missing"
            return []
        cell = values["source_image"]
        if is_empty(cell):
            layout |= {} if cell is None else {"empty": cell}
            return []
        if isinstance(cell, list):
            layout |= {"source": "list"} if len(cell) == 1 else {}
            return cell
        return [cell]


def texts(sample: Sample) -> dict[str, str]:
    """What is asked for, by language: of an edit, and of text to image that was read from this format."""
    if sample.edit is not None:
        return dict(sample.edit.instruction)
    _, layout = unpack_extra(sample, "edit")
    said = layout.get("texts", {}) | {layout.get("spoken", "instruction"): drawing("edit", sample)[0]}
    return _by_language(_INSTRUCTION, said)


def _by_language(columns: Mapping[str, str], said: Mapping[str, str | None]) -> dict[str, str]:
    return {lang: text for lang, column in columns.items() if (text := said.get(column)) is not None}


def _columns(columns: Mapping[str, str], said: Mapping[str, str], sample: Sample) -> dict[str, str]:
    for lang in said:
        if lang not in columns:
            raise not_expressible("edit", f"an instruction in the language {lang}", sample)
    return {columns[lang]: text for lang, text in said.items()}


def _spoken(said: Mapping[str, str | None]) -> str | None:
    """Which text a picture without a source is drawn from: the first that says something, else one that is there."""
    there = [column for column in _INSTRUCTION.values() if said.get(column) is not None]
    return next((column for column in there if said[column]), there[0] if there else None)
