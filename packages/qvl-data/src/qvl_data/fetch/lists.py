"""Plain lists of URLs: one on each line, its caption behind a tab."""

from pathlib import Path

from qvl_core.errors import BadInput

from ..errors import BadSample
from ..formats.common import is_address
from ..json_lines import Rows
from ..sample import Media, Message, Part, Sample
from ..spans import MAX_BYTES

_BOM = b"\xef\xbb\xbf"


class UrlList:
    """The lines of a text file as samples: with a caption `t2i` (caption, then picture), without `interleaved`.

    Only where the lines are is held in memory. Raises BadInput for a file that is none; for a line, BadSample.
    """

    def __init__(self, file: Path) -> None:
        if not file.is_file():
            raise BadInput(f"{file}: no such file; name a list of URLs, one on each line.")
        with file.open("rb") as opened:
            if opened.read(2) in (b"\xff\xfe", b"\xfe\xff"):
                raise BadInput(f"{file}: is UTF-16; save the file as UTF-8.")
        self.file, self._rows = file, Rows(file, array=False)
        if len(self) == 0:
            raise BadInput(f"{file}: holds no URLs; write one on each line.")

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.file,)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        place, line = self._rows.place(index), self._rows.raw(index)
        if len(line) > MAX_BYTES:
            raise BadSample("table", f"a line longer than {MAX_BYTES >> 20} MiB; write one URL on each", place)
        try:
            text = line.removeprefix(_BOM).decode("utf-8").strip()
        except UnicodeDecodeError as error:
            problem = f"invalid UTF-8 at byte {error.start + 1}; save the file as UTF-8"
            raise BadSample("table", problem, place) from None
        url, _, caption = text.partition("\t")
        if not is_address(url):
            problem = f"{url[:80]!r} is no URL; write one such as https://host/a.png on each line, or remove it"
            raise BadSample("table", problem, place)
        shown = Part(type="image", media=0)
        messages: tuple[Message, ...]
        if caption:
            said = Message(role="user", parts=(Part(type="text", text=caption),))
            messages = (said, Message(role="assistant", parts=(shown,), train=False))
        else:
            messages = (Message(role="user", parts=(shown,)),)
        sample = Sample(
            task="t2i" if caption else "interleaved",
            media=(Media(kind="image", url=url),),
            messages=messages,
        )
        return sample.read_from(sample.opener, place)
