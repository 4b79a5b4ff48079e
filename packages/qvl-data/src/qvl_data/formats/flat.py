r"""Any table with one question and answer per row: JSON, JSONL, CSV, TSV or Parquet.

    --map image=image_path,user=question,assistant=answer

Fields: `id`, `image` or `images`, `video` or `videos`, `system`, `user`, `assistant`; a field that is not named has a
column of its own name, if there is one. Pictures stand before the question, in their order, unless it shows where: then
every `<image>` and `<video>` stands for one, and `\<image>` is the literal text. Several pictures are a list. Numbers
become text. With `target_image` named, rows are edits or text to image (see `edit`):

    --map source_image=before,target_image=after,instruction=request

Rows of JSON and Parquet come back as they were; what was read from CSV comes back as text. A table is recognised only
by these names: `assistant` beside `user` or media, and by no other format.
"""

from collections.abc import Mapping
from typing import Any, Literal

from ..errors import BadSample
from ..sample import Media, Message, Part, Role, Sample
from . import edit, register, tags
from .cells import cell_of, media_in
from .columns import Columns
from .common import build, not_expressible, unpack_extra, write_id
from .fitted import fitted
from .gallery import is_empty

_ROLES: tuple[Role, ...] = ("system", "user", "assistant")
_MEDIA = ("image", "images", "video", "videos")
FIELDS = ("id", *_MEDIA, *_ROLES)
_EDITS = tuple(field for field in edit.FIELDS if field != "id")


@register("flat")
class Flat:
    def __init__(self, columns: Mapping[str, str] | None = None) -> None:
        self.edits = edit.EditLines(columns) if any(field in _EDITS for field in columns or ()) else None
        self.columns = Columns("flat", FIELDS if self.edits is None else edit.FIELDS, columns)

    def matches(self, row: Any) -> bool:
        if self.edits is not None:
            return self.edits.matches(row)
        asked = (self.columns[field] for field in ("user", *_MEDIA))
        return isinstance(row, dict) and self.columns["assistant"] in row and any(column in row for column in asked)

    def read(self, row: Any, place: str) -> Sample:
        if self.edits is not None:
            return self.edits.read(row, place)
        values, others = self.columns.take(row, place)
        for field in (*self.columns.renamed, "user", "assistant"):
            if field not in values:
                none = "" if field in ("user", "assistant") else "a row without"
                raise self.columns.missing(field, others, place, none)
        layout: dict[str, Any] = {"others": {"id": others.pop("id")}} if "id" in others else {}
        layout |= self.columns.hint
        texts = {role: self._text(role, values, place, layout) for role in _ROLES if role in values}
        media, slots = self._media(values, place, layout)
        messages = []
        for role in _ROLES:
            pieces = list(tags.split(texts.get(role) or ""))
            if role != "user" and any(kind != "text" for kind, _ in pieces):
                reason = "media_tag_in_answer" if role == "assistant" else "flat"
                problem = rf'"{self.columns[role]}" holds a tag; remove it, or write \<image> for the text'
                raise BadSample(reason, problem, place)
            if role == "user":
                parts = self._asked(pieces, slots, place, layout)
            elif texts.get(role) is None:
                continue
            else:
                parts = [Part(type="text", text=pieces[0][1] if pieces else "")]
            messages.append(Message(role=role, parts=tuple(parts)))
        return build("flat", place, {**others, **values}, others, layout, media, messages)

    @fitted
    def write(self, sample: Sample) -> Any:
        if self.edits is not None:
            return self.edits.write(sample)
        fields, layout = unpack_extra(sample, "flat")
        roles = [message.role for message in sample.messages]
        if sample.task not in ("chat", "text") or roles not in (["user", "assistant"], list(_ROLES)):
            raise not_expressible("flat", "more or less than one question and its answer", sample)
        row: dict[str, Any] = dict(layout.get("empty", {}))
        for message in sample.messages:
            row[message.role] = said = self._said(sample, message, layout)
            if said == "" and all(part.media is None for part in message.parts):  # would be read as none, or refused
                raise not_expressible("flat", f"an empty {message.role} turn", sample)
        shown = [index for message in sample.messages for part in message.parts if (index := part.media) is not None]
        for kind in tags.KINDS:
            indices = [index for index in shown if sample.media[index].kind == kind]
            if not indices:
                continue
            field, as_list = layout.get(kind, (f"{kind}s", True) if len(indices) > 1 else (kind, False))
            hints = layout.get("cells", {})
            cells = [cell_of(sample.media[index], hints.get(str(index))) for index in indices]
            row[field] = cells if as_list or len(cells) > 1 else cells[0]
        return {**fields, **layout.get("others", {}), **self.columns.give({**write_id(sample, layout), **row})}

    def _text(self, role: Role, values: Mapping[str, Any], place: str, layout: dict[str, Any]) -> str | None:
        """The text of one column; how it stood there, if not as text, goes into `layout`."""
        value, column = values[role], self.columns[role]
        if role == "assistant" and value in (None, ""):
            raise BadSample("no_answer", f'"{column}" is empty; give an answer, or remove the row', place)
        if role == "system" and value in (None, ""):
            layout.setdefault("empty", {})[role] = value
            return None
        if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf"):
            layout.setdefault("numbers", {})[role] = value
            return str(value)
        if not isinstance(value, str):
            raise BadSample("flat", f'"{column}" is {type(value).__name__}, no text; write it out', place)
        return value

    def _media(
        self, values: Mapping[str, Any], place: str, layout: dict[str, Any]
    ) -> tuple[list[Media], dict[str, list[int]]]:
        """The row's media, and which of them are pictures and videos."""
        media: list[Media] = []
        slots: dict[str, list[int]] = {kind: [] for kind in tags.KINDS}
        for kind in tags.KINDS:
            for field in (kind, f"{kind}s"):
                cell = values.get(field)
                if is_empty(cell):
                    layout |= {"empty": {**layout.get("empty", {}), field: cell}} if field in values else {}
                    continue
                if slots[kind]:
                    problem = f'"{self.columns[kind]}" and "{self.columns[field]}" are both there; keep one'
                    raise BadSample("flat", problem, place)
                several = cell if isinstance(cell, list) else [cell]
                layout |= {kind: [field, isinstance(cell, list)]}
                for number, value in enumerate(several):
                    read, hint = media_in(value, kind, place, f"{self.columns[field]}[{number}]")
                    if hint is not None:
                        layout.setdefault("cells", {})[str(len(media))] = hint
                    slots[kind].append(len(media))
                    media.append(read)
        return media, slots

    def _asked(
        self, pieces: list[Any], slots: Mapping[str, list[int]], place: str, layout: dict[str, Any]
    ) -> list[Part]:
        """The question's parts: media where its tags are, or all before it if it has none."""
        if not any(kind != "text" for kind, _ in pieces):
            pieces = [(kind, None) for kind, indices in slots.items() for _ in indices] + pieces
        else:
            layout["tags"] = True
        for kind, indices in slots.items():
            if (found := sum(piece[0] == kind for piece in pieces)) != len(indices):
                problem = (
                    f'{found} <{kind}> tags in "{self.columns["user"]}" but {len(indices)} {kind}s;'
                    rf" write one tag for each, none at all, or \<{kind}> for the text"
                )
                raise BadSample("media_count", problem, place)
        waiting = {kind: iter(indices) for kind, indices in slots.items()}
        parts = [Part(type=kind, text=text, media=None if text else next(waiting[kind])) for kind, text in pieces]
        if not parts:
            raise BadSample("flat", f'"{self.columns["user"]}" is empty; write a question', place)
        return parts

    def _said(self, sample: Sample, message: Message, layout: Mapping[str, Any]) -> Any:
        if message.train is not None or message.weight is not None:
            raise not_expressible("flat", "what is trained", sample)
        if any(part.type == "regions" for part in message.parts) or sample.regions:
            raise not_expressible("flat", "regions", sample)
        shown = [sample.media[part.media] for part in message.parts if part.media is not None]
        if any(media.video is not None for media in shown):
            raise not_expressible("flat", "how a video is cut", sample)
        if shown and message.role != "user":
            raise not_expressible("flat", "pictures outside the question", sample)
        pieces: list[tuple[Literal["text", "image", "video"], str | None]]
        pieces = [(part.type, part.text) for part in message.parts if part.type != "regions"]
        order = [kind for kind, _ in pieces]
        if not layout.get("tags") and order == sorted(order, key=("image", "video", "text").index):
            pieces = [piece for piece in pieces if piece[0] == "text"]
        text = tags.join(pieces)
        number = layout.get("numbers", {}).get(message.role)
        return number if number is not None and str(number) == text else text
