"""A judge of edits behind an HTTP address: any model that looks at pictures and is served as OpenAI's chat completions.

    checks["judge"] = Judge("http://localhost:8000/v1", "Qwen/Qwen3-VL-32B-Instruct", out / "judged.jsonl")

It is shown the source, the output and the instruction, and gives three marks from 0 to 10: was the instruction
followed, is the rest preserved, does the picture look right? Their `overall` is that of VIEScore (Ku et al. 2023,
arXiv:2312.14867): the square root of the lesser of the first two times the third. Nothing is asked twice: answers are
kept in a file, and those that failed are asked again by the next run. Nothing is sent before pictures are drawn, and
only to the address that is given; a key is read from the environment variable QVL_JUDGE_KEY.
"""

import base64
import hashlib
import json
import os
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from qvl_core.errors import BadInput, QVLError
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
    """An answer that another try may mend."""


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
        """Marks of each picture, `overall` and whether the judge `failed`; of one without a source nothing is said.

        Raises BadInput where the server refuses what is asked: a wrong address, model or key.
        """
        keys = [self._key(one) for one in edited]
        known = {record["key"]: record["marks"] for record in read_records(self.file)}
        kept = {key: known[key] for key in keys if key in known}
        write_lines(self.file, [{"key": key, "marks": marks} for key, marks in kept.items()])
        shown = {key: one for key, one in zip(keys, edited, strict=True) if one.wanted.asked.pictures}
        kept |= self._ask({key: one for key, one in shown.items() if key not in kept})
        return [
            ({"failed": False, **kept[key]} if key in kept else {"failed": True}) if one.wanted.asked.pictures else {}
            for key, one in zip(keys, edited, strict=True)
        ]

    def _ask(self, asked: "dict[str, Edited]") -> dict[str, dict[str, Scalar]]:
        """The marks of those that could be judged, each kept as soon as it is there."""
        import httpx

        found: dict[str, dict[str, Scalar]] = {}
        key = os.environ.get(KEY)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        with (
            httpx.Client(timeout=self.timeout, headers=headers) as client,
            ThreadPoolExecutor(self.together) as pool,
        ):
            waiting = {pool.submit(self._judged, client, one): key for key, one in asked.items()}
            try:
                for done in as_completed(waiting):
                    if (marks := done.result()) is not None:
                        found[waiting[done]] = marks
                        self._keep(waiting[done], marks)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return found

    def _judged(self, client: "httpx.Client", one: Edited) -> dict[str, Scalar] | None:
        """The marks of a picture; None if no try gave any."""
        for attempt in range(self.tries):
            if attempt:
                time.sleep(self.pause * 2 ** (attempt - 1))
            try:
                return read_marks(self._answer(client, one))
            except Unusable:
                continue
        return None

    def _answer(self, client: "httpx.Client", one: Edited) -> str:
        import httpx

        shown = [one.wanted.sources()[-1], one.output()]
        content: list[dict[str, Any]] = [{"type": "text", "text": ASKED.format(text=one.text)}]
        content += [{"type": "image_url", "image_url": {"url": _data(picture)}} for picture in shown]
        body = {"model": self.model, "temperature": 0, "messages": [{"role": "user", "content": content}]}
        try:
            answer = client.post(f"{self.url.rstrip('/')}/chat/completions", json=body)
        except httpx.TransportError as error:
            raise Unusable(f"{self.url}: {error}") from None
        if answer.status_code in AGAIN:
            raise Unusable(f"{self.url}: {answer.status_code}")
        if answer.is_error or answer.is_redirect:
            said = " ".join(answer.text.split())[:200]
            raise BadInput(
                f"--judge {self.url}: answers {answer.status_code} ({said}); check the address, --judge-model "
                f"{self.model} and {KEY}."
            )
        try:
            return str(answer.json()["choices"][0]["message"]["content"])
        except (ValueError, LookupError, TypeError):
            raise Unusable(f"{self.url}: gives no chat completion") from None

    def _keep(self, key: str, marks: dict[str, Scalar]) -> None:
        with writing(self.file), self.file.open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps({"key": key, "marks": marks}, ensure_ascii=False) + "\n")

    def _key(self, one: Edited) -> str:
        """What the answer depends on."""
        said = json.dumps([ASKED, self.model, one.wanted.key]).encode()
        return hashlib.sha256(said + one.output().tobytes()).hexdigest()


def read_marks(answer: str) -> dict[str, Scalar]:
    """The marks in a judge's answer: one JSON object, alone or in a fence, with whole numbers from 0 to 10.

    Raises Unusable for anything else: a mark that is guessed from other words is none.
    """
    inner = re.fullmatch(r"\s*(?:```(?:json)?\s*\n)?(\{.*\})\s*(?:\n```)?\s*", answer, re.DOTALL)
    try:
        found = json.loads(inner[1]) if inner else None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Unusable("the answer is no JSON object")
    marks: dict[str, Scalar] = {}
    for name in MARKS:
        value = found.get(name)
        if type(value) is not int or not 0 <= value <= MOST:
            raise Unusable(f"`{name}` is no whole number from 0 to {MOST}")
        marks[name] = value
    marks["overall"] = (min(found["instruction"], found["preservation"]) * found["quality"]) ** 0.5
    return marks | ({"why": found["why"]} if isinstance(found.get("why"), str) else {})


def _data(picture: Image.Image) -> str:
    """A picture as an address that holds it."""
    return f"data:image/png;base64,{base64.b64encode(png(picture)).decode()}"
