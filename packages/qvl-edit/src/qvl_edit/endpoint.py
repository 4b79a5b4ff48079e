"""A judge of edits behind an HTTP address: any model that looks at pictures and is served as OpenAI's chat completions.

    checks["judge"] = Judge("http://localhost:8000/v1", "Qwen/Qwen3-VL-32B-Instruct", out / "judged.jsonl")

It is shown the source, the output and the instruction, and gives three marks from 0 to 10: was the instruction
followed, is the rest preserved, does the picture look right? Their `overall` is that of VIEScore (Ku et al. 2023,
arXiv:2312.14867): the square root of the lesser of the first two times the third. Nothing is asked twice: answers are
kept in a file as they come, and those that failed are asked again by the next run. Nothing is sent before pictures are
drawn, and only to the address that is given; a key is read from the environment variable QVL_JUDGE_KEY.
"""

import base64
import hashlib
import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from qvl_core.abreast import abreast
from qvl_core.errors import BadInput, QVLError, first_line
from qvl_core.evaluation import write_lines
from qvl_core.files import writing
from qvl_core.run import Scalar, read_records
from qvl_data.shown import png
from qvl_edit.wanted import Edited

if TYPE_CHECKING:
    import httpx

KEY = "QVL_JUDGE_KEY"
MARKS = ("instruction", "preservation", "quality")
MOST = 10
AGAIN = {408, 409, 429, 500, 502, 503, 504}  # answers that another try may not get
ASKED = """The first picture was to be edited into the second one. The instruction was:

{text}

Mark three things from 0 (not at all) to 10 (perfectly):
instruction: the second picture shows what the instruction asks for, all of it and nothing beyond it.
preservation: what the instruction does not speak of is the same in both pictures, and in the same place.
quality: the second picture looks natural, without traces of editing.

Answer with one JSON object and nothing else:
{{"instruction": 0, "preservation": 0, "quality": 0, "why": "one sentence"}}"""


class Unusable(QVLError):
    """An answer that another try may mend; its text is the reason, the same for all that fail alike."""


@dataclass(frozen=True)
class Judge:
    """A check that asks a judge of every picture (`qvl_data.drawing.scores.Scorer`).

    url       of the server, such as http://localhost:8000/v1
    file      JSONL with the answers so far
    tries     of a picture; between them `pause` seconds, then twice as many, and so on
    together  requests at a time
    """

    url: str
    model: str
    file: Path
    tries: int = 4
    pause: float = 1.0
    timeout: float = 120.0
    together: int = 8

    def __post_init__(self) -> None:
        if not re.match(r"https?://", self.url):
            raise BadInput(f"--judge {self.url}: is no address; give one such as http://localhost:8000/v1.")
        if find_spec("httpx") is None:
            raise BadInput("httpx is not installed; run: pip install 'qvl-edit[judge]'")

    def __call__(self, edited: Sequence[Edited]) -> list[dict[str, Scalar]]:
        """Marks of each picture and their `overall`, or that the judge `failed` and the `reason`; of one without a
        source nothing is said. Reasons are counted, printed, and asked about again by the next run.

        Raises BadInput where the server refuses what is asked: a wrong address, model or key.
        """
        keys = [self._key(one) for one in edited]
        known = {record["key"]: record["marks"] for record in read_records(self.file)}
        kept = {key: known[key] for key in keys if key in known}
        write_lines(self.file, [{"key": key, "marks": marks} for key, marks in kept.items()])
        shown = {key: one for key, one in zip(keys, edited, strict=True) if one.wanted.bucket.sources}
        found = {key: {"failed": False, **marks} for key, marks in kept.items()}
        found |= self._ask({key: one for key, one in shown.items() if key not in kept})
        for reason, count in Counter(said["reason"] for said in found.values() if said["failed"]).items():
            print(f"judge: {count} of {len(shown)} stay without marks: {reason}")
        return [found[key] if one.wanted.bucket.sources else {} for key, one in zip(keys, edited, strict=True)]

    def _ask(self, asked: "dict[str, Edited]") -> dict[str, dict[str, Scalar]]:
        """What is said of pictures. Marks are kept as they come, and whoever stops it waits for no others."""
        import httpx

        secret = os.environ.get(KEY)
        headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        found: dict[str, dict[str, Scalar]] = {}
        with httpx.Client(timeout=self.timeout, headers=headers) as client:
            for (key, _), said in abreast(partial(self._judged, client), list(asked.items()), self.together):
                found[key] = said
                if not said["failed"]:
                    self._keep(key, {name: value for name, value in said.items() if name != "failed"})
        return found

    def _judged(self, client: "httpx.Client", asked: "tuple[str, Edited]") -> dict[str, Scalar]:
        """The marks of a picture, or why the last try gave none."""
        reason = ""
        for attempt in range(self.tries):
            if attempt:
                time.sleep(self.pause * 2 ** (attempt - 1))
            try:
                return {"failed": False, **read_marks(self._answer(client, asked[1]))}
            except Unusable as error:
                reason = str(error)
        return {"failed": True, "reason": reason}

    def _answer(self, client: "httpx.Client", one: Edited) -> str:
        import httpx

        shown = [one.wanted.sources()[-1], one.output()]
        content: list[dict[str, Any]] = [{"type": "text", "text": ASKED.format(text=one.text)}]
        content += [{"type": "image_url", "image_url": {"url": _data(picture)}} for picture in shown]
        body = {"model": self.model, "temperature": 0, "messages": [{"role": "user", "content": content}]}
        try:
            answer = client.post(f"{self.url.rstrip('/')}/chat/completions", json=body)
        except httpx.TransportError as error:
            raise Unusable(f"the server cannot be reached ({first_line(error)})") from None
        if answer.status_code in AGAIN:
            raise Unusable(f"the server answers {answer.status_code}")
        if answer.is_error or answer.is_redirect:
            said = " ".join(answer.text.split())[:200]
            raise BadInput(
                f"--judge {self.url}: answers {answer.status_code} ({said}); check the address, --judge-model "
                f"{self.model} and {KEY}."
            )
        try:
            choice = answer.json()["choices"][0]
            text = choice["message"]["content"]
        except (ValueError, LookupError, TypeError):
            raise Unusable("the server gives no chat completion") from None
        if choice.get("finish_reason") == "length":
            raise Unusable("the answer is cut off; let the server give longer ones")
        if not isinstance(text, str):
            raise Unusable("the answer has no text")
        return text

    def _keep(self, key: str, marks: dict[str, Scalar]) -> None:
        with writing(self.file), self.file.open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps({"key": key, "marks": marks}, ensure_ascii=False) + "\n")

    def _key(self, one: Edited) -> str:
        """What the answer depends on."""
        said = json.dumps([ASKED, self.model, one.wanted.key]).encode()
        return hashlib.sha256(said + one.output().tobytes()).hexdigest()


def read_marks(answer: str) -> dict[str, Scalar]:
    """The marks at the end of a judge's answer: whole numbers from 0 to 10 in a JSON object, the last one that has any.

    Before and behind it there may be anything: thoughts, a draft, a fence. Raises Unusable where there is none: a mark
    that is guessed from other words is no mark.
    """
    *_, said = answer.rpartition("</think>")
    if "<think>" in said:
        raise Unusable("the answer ends in thoughts")
    found = [one for one in _objects(said) if any(name in one for name in MARKS)]
    if not found:
        raise Unusable("the answer has no JSON object with marks")
    marks: dict[str, Scalar] = {}
    for name in MARKS:
        value = found[-1].get(name)
        if type(value) is not int or not 0 <= value <= MOST:
            raise Unusable(f"`{name}` is no whole number from 0 to {MOST}")
        marks[name] = value
    instruction, preservation, quality = (found[-1][name] for name in MARKS)
    marks["overall"] = (min(instruction, preservation) * quality) ** 0.5
    why = found[-1].get("why")
    return marks | ({"why": why} if isinstance(why, str) else {})


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """All JSON objects in a text, in the order in which they begin."""
    decoder = json.JSONDecoder()
    for brace in re.finditer("{", text):
        try:
            yield decoder.raw_decode(text, brace.start())[0]
        except (ValueError, RecursionError):
            continue


def _data(picture: Image.Image) -> str:
    """A picture as an address that holds it."""
    return f"data:image/png;base64,{base64.b64encode(png(picture)).decode()}"
