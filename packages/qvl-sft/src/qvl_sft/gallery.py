"""Answers with their pictures as blocks of a page. Short ones stand in a grid, long ones and boxes on cards."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from qvl_core.report import Block, Card, Cards, Picture, Pictures, Shape, Table, Turn
from qvl_sft.figures import is_right
from qvl_sft.metrics.boxes import SIDE, Box, answer_boxes, faults
from qvl_sft.prediction import Prediction

SHORT = 40  # letters of an answer that fit below a small picture
_GREEN, _ORANGE, _VIOLET = 3, 2, 4  # of the page's colours
BOX_NOTE = "Boxes of the reference are green; those of the answer are dashed, in orange."


def gallery(folder: Path, predictions: Sequence[Prediction], metrics: Sequence[str], title: str) -> list[Block]:
    """Question, answer and reference of each prediction, with the picture if one was kept in the folder."""
    if not predictions:
        return []
    if any(not is_short(p) for p in predictions):
        cards = [_card(folder, p, metrics) for p in predictions]
        return [Cards(cards, title)]
    seen, unseen = [p for p in predictions if has_picture(folder, p)], [p for p in predictions if p.picture is None]
    blocks: list[Block] = []
    if seen:
        blocks.append(Pictures([_picture(folder, p, metrics) for p in seen], title))
    if unseen:
        blocks.append(_texts(unseen, metrics, title))
    return blocks


def has_picture(folder: Path, prediction: Prediction) -> bool:
    return prediction.picture is not None and (folder / prediction.picture).is_file()


def drawn(folder: Path, prediction: Prediction, answers: Mapping[str, str]) -> list[Picture]:
    """The kept picture with the boxes of the reference, and of the answers by name, each in a colour."""
    if prediction.picture is None or not has_picture(folder, prediction):
        return []
    data = (folder / prediction.picture).read_bytes()
    size = Image.open(io.BytesIO(data)).size
    wanted = answer_boxes(prediction.reference).sound
    shapes = [_shape(box, size, box.label or "", _GREEN) for box in wanted]
    known = {box.label for box in wanted}  # a label is written once, where it stands
    for (name, text), colour in zip(answers.items(), (_ORANGE, _VIOLET), strict=False):
        for box in answer_boxes(text).sound:
            label = "" if box.label is None or box.label in known else f"{name}: {box.label}".removeprefix(": ")
            shapes.append(_shape(box, size, label, colour, dashed=True))
    return [Picture(data, shapes=shapes, size=size)]


def caption(prediction: Prediction, right: bool | None) -> str:
    """Question and answer, with the reference unless the answer is right; None: no line is drawn."""
    reference = {True: "", False: f" (not {prediction.accepted[0]})", None: f"\nreference: {prediction.accepted[0]}"}
    return f"{prediction.question.strip()}\n{prediction.said or '(no answer)'}{reference[right]}"


def _picture(folder: Path, prediction: Prediction, metrics: Sequence[str]) -> Picture:
    right = is_right(prediction, metrics[0]) if metrics else prediction.correct
    mark = None if right is None else "good" if right else "bad"
    return Picture((folder / str(prediction.picture)).read_bytes(), caption(prediction, right), mark)  # type: ignore[arg-type]


def _card(folder: Path, prediction: Prediction, metrics: Sequence[str]) -> Card:
    pictures = drawn(folder, prediction, {"": prediction.answer})
    question: list[str | int] = [*range(len(pictures)), prediction.question.strip()]
    turns = [Turn("question", question), Turn("answer", [prediction.said or "(no answer)"])]
    turns += [Turn("reference", [text]) for text in prediction.accepted]
    return Card(prediction.id, pictures, turns, tags(prediction, metrics))


def tags(prediction: Prediction, metrics: Sequence[str]) -> list[str]:
    """Scores of one answer."""
    scores = {name: prediction.scores.get(name) for name in metrics}
    return [f"{name} {score:.2f}" for name, score in scores.items() if score is not None]


def _texts(predictions: Sequence[Prediction], metrics: Sequence[str], title: str) -> Table:
    rows = []
    for p in predictions:
        right = is_right(p, metrics[0]) if metrics else p.correct
        rows.append({"question": p.question, "answer": p.said, "reference": p.accepted[0], "right": right})
    return Table(rows, title, note="Questions without a picture.")


def _shape(box: Box, size: tuple[int, int], label: str, colour: int, dashed: bool = False) -> Shape:
    """A box in pixels of a picture of this size."""
    xy = [round(value / SIDE * side, 2) for value, side in zip(box.xy, (*size, *size), strict=True)]
    return Shape("box", xy, label, colour, dashed)


def is_short(prediction: Prediction) -> bool:
    return max(len(prediction.said), *map(len, prediction.accepted)) <= SHORT and len(prediction.accepted) == 1


def box_note(predictions: Sequence[Prediction]) -> str:
    """How boxes are told apart, if there are any, and how many were mended."""
    written, outside, unsound = faults(predictions)
    if not written and not any(answer_boxes(p.reference).written for p in predictions):
        return ""
    counted = ((outside, "reach beyond the picture and were clipped"), (unsound, "are empty or inverted"))
    mended = [f"{count:,} {what}" for count, what in counted if count]
    return BOX_NOTE + (f" Of {written:,} boxes that were written {' and '.join(mended)}." if mended else "")
