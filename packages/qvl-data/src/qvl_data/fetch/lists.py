"""Plain lists of URLs: one on each line, its caption behind a tab."""

from pathlib import Path

from qvl_core.errors import BadInput

from ..sample import Media, Message, Part, Sample

MAX_LINE = 1 << 16


class UrlList:
    """The lines of a text file as samples: with a caption `t2i` (caption, then picture), without `interleaved`."""

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            lines = file.read_text("utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise BadInput(f"{file}: invalid UTF-8 at byte {error.start + 1}; save the file as UTF-8.") from None
        self._lines = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
        if not self._lines:
            raise BadInput(f"{file}: holds no URLs; write one on each line.")

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.file,)

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Sample:
        number, line = self._lines[index]
        url, _, caption = line.strip().partition("\t")
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
        return sample.read_from(sample.opener, f"{self.file}:{number}")
