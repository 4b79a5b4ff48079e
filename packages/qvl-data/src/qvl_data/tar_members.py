"""The members of a tar archive: where the content of each stands, from the headers alone.

POSIX ustar and pax, and GNU's long names (see GNU tar's manual, "Basic Tar Format", and pax in POSIX.1-2001). An
archive is read to its end mark or refused: one that was cut off, or that others were joined to, would lose samples
without a word. What is no plain file with a clean path is named with its problem and never followed.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from qvl_core.errors import BadInput

_BLOCK = 512
_MAX_NAMES = 1 << 20  # bytes of a long name or of a pax header
_FILES = (b"0", b"\0", b"7")
_FOLDER, _NAMES = b"5", (b"L", b"x", b"g")
_NO_FILES = dict(
    zip((b"1", b"2", b"3", b"4", b"6"), ("a hard link", "a link", "a device", "a device", "a pipe"), strict=True)
)
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\3\4": "zip"}


class Member(NamedTuple):
    """A file in an archive.

    name     path in the archive
    start    where its content begins, in bytes
    size     bytes of its content
    problem  why it must not be read; empty if it may
    """

    name: str
    start: int
    size: int
    problem: str


def members(path: Path) -> Iterator[Member]:
    """All members but folders, in order. Raises BadInput if the archive is damaged or not whole."""
    total = path.stat().st_size
    long_name, pax = "", dict[str, str]()
    with path.open("rb") as file:
        at = 0
        while header := _block(file, at, path, total):
            start = at + _BLOCK
            kind, size = header[156:157], _size(header, path, at)
            if kind in _NAMES:
                content = _read(file, start, size, path, at)
                if kind == b"L":
                    long_name = _text(content)
                elif kind == b"x":
                    pax = _pax(content, path, at)
                elif _pax(content, path, at).keys() & {"path", "size"}:
                    raise BadInput(f"{path}: names or sizes for all members at byte {at}; pack the archive again.")
                at = _after(start + size)
                continue
            if kind == b"S" or any(key.startswith("GNU.sparse") for key in pax):
                raise BadInput(f"{path}: a sparse file at byte {at}; pack the archive again without --sparse.")
            if "size" in pax:
                size = _number(pax["size"].encode(), 10, path, at)
            name = pax.get("path") or long_name or _name(header)
            has_content = kind != _FOLDER and kind not in _NO_FILES
            if has_content and start + size > total:
                raise BadInput(
                    f"{path}: is cut off: {name!r} has {size} bytes from byte {start}, but the file ends at byte"
                    f" {total}; get the whole file."
                )
            at = _after(start + size) if has_content else start
            folder = kind == _FOLDER or (kind == b"\0" and name.endswith("/"))
            if kind != b"K" and not folder:
                yield Member(name.removeprefix("./"), start, size if has_content else 0, _problem(name, kind))
            if kind != b"K":  # the name behind a link concerns the member that follows
                long_name, pax = "", {}


def _block(file: BinaryIO, at: int, path: Path, total: int) -> bytes:
    """The header at `at`; empty at the end mark. Raises BadInput."""
    file.seek(at)
    header = file.read(_BLOCK)
    if at == 0 and (kind := next((kind for mark, kind in _COMPRESSED.items() if header.startswith(mark)), None)):
        raise BadInput(f"{path}: is compressed ({kind}), so its members cannot be read in any order; unpack it first.")
    if len(header) < _BLOCK:
        raise BadInput(f"{path}: {'is empty' if not total else 'is cut off: no end mark'}; get the whole file.")
    if not any(header):
        while rest := file.read(1 << 20):
            if rest.strip(b"\0"):
                raise BadInput(
                    f"{path}: goes on behind its end mark at byte {at}; join archives with tar --concatenate."
                )
        return b""
    try:
        stated = int(header[148:156].strip(b"\0 ") or b"0", 8)
    except ValueError:
        stated = -1
    if stated != sum(header[:148]) + 256 + sum(header[156:]):
        what = "not a tar archive" if at == 0 else f"damaged at byte {at}"
        raise BadInput(f"{path}: {what} (wrong checksum of a header); get the file again.")
    return header


def _size(header: bytes, path: Path, at: int) -> int:
    field = header[124:136]
    if field[0] == 0x80:  # GNU: too large for octal digits
        return int.from_bytes(field[1:], "big")
    return _number(field.split(b"\0")[0].strip() or b"0", 8, path, at)


def _number(digits: bytes, base: int, path: Path, at: int) -> int:
    if not digits.isdigit() or len(digits) > 20:
        raise BadInput(f"{path}: damaged at byte {at} (a size that is no number); get the file again.")
    try:
        return int(digits, base)
    except ValueError:
        raise BadInput(f"{path}: damaged at byte {at} (a size that is no number); get the file again.") from None


def _read(file: BinaryIO, start: int, size: int, path: Path, at: int) -> bytes:
    """The names that a header in front of another holds."""
    if size > _MAX_NAMES:
        raise BadInput(f"{path}: a name or header of {size} bytes at byte {at}; pack the archive again.")
    file.seek(start)
    content = file.read(size)
    if len(content) < size:
        raise BadInput(f"{path}: is cut off in the header at byte {at}; get the whole file.")
    return content


def _pax(content: bytes, path: Path, at: int) -> dict[str, str]:
    """The records `LENGTH KEY=VALUE\\n` of an extended header."""
    records: dict[str, str] = {}
    position = 0
    while position < len(content) and content[position]:
        length, space, _ = content[position : position + 24].partition(b" ")
        end = position + (int(length) if length.isdigit() else 0)
        key, equals, value = content[position + len(length) + 1 : max(end - 1, 0)].partition(b"=")
        if not space or not equals or content[end - 1 : end] != b"\n":
            raise BadInput(
                f"{path}: damaged at byte {at} (an extended header that cannot be read); get the file again."
            )
        records[_text(key)] = _text(value)
        position = end
    return records


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0")[0]
    if (prefix := header[345:500].split(b"\0")[0]) and header[257:265] != b"ustar  \0":  # GNU keeps times there
        name = prefix + b"/" + name
    return _text(name)


def _text(data: bytes) -> str:
    """Text up to a NUL; a byte that is no UTF-8 becomes a backslash, which no clean name has."""
    return data.split(b"\0")[0].decode(errors="backslashreplace")


def _problem(name: str, kind: bytes) -> str:
    if kind not in _FILES:
        return f"{name!r} is {_NO_FILES.get(kind, 'a special entry')}; put the file itself into the archive"
    return name_problem(name)


def name_problem(name: str) -> str:
    """Why a member must not have this name; empty if it may."""
    if "\\" in name:
        return f"{name!r} is no clean name; write it in UTF-8, with / between folders"
    if name.startswith("/") or ".." in name.split("/") or name[1:2] == ":":
        return f"{name!r} leads out of the archive; pack it with relative paths without .."
    return ""


def _after(position: int) -> int:
    """The block behind `position`."""
    return -(-position // _BLOCK) * _BLOCK
