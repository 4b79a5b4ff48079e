"""The local server behind `qvl-data view --browser`.

It listens on 127.0.0.1 alone. Every address begins with a random token, so that no other page and no other user of the
machine can guess one; the Host header must name this server (DNS rebinding); what changes something is a POST of JSON
from this origin. Pictures are decoded and written anew: no byte of the data set reaches the browser as it is.
"""

import hmac
import json
import secrets
import sys
import threading
import webbrowser
from collections.abc import Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, urlsplit

from qvl_core.errors import BadInput, QVLError

from ..dataset import Dataset
from ..errors import REASONS, BadSample
from .describe import describe, picture
from .marks import COMMENT, Mark, Marks
from .search import Filter, find

HOST = "127.0.0.1"
_PAGE = {
    "": ("page.html", "text/html"),
    "view.css": ("view.css", "text/css"),
    "view.js": ("view.js", "text/javascript"),
}
_BODY = 100_000  # bytes of a request
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Server(ThreadingHTTPServer):
    """Serves one data set; `url` is what to open. Start with `serve_forever`, end with `shutdown`."""

    daemon_threads = True

    def __init__(self, data: Dataset, marks: Marks, start: int = 0, port: int = 0) -> None:
        self.data, self.marks, self.start = data, marks, start
        self.token = secrets.token_urlsafe(24)
        self.lock = threading.Lock()  # readers of data files are made for one thread
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise BadInput(f"port {port} cannot be listened on ({error.strerror}); choose another --port.") from None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went on before the answer came is no error."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_port}/{self.token}/"

    @property
    def names(self) -> set[str]:
        """What the Host header may say."""
        return {f"{HOST}:{self.server_port}", f"localhost:{self.server_port}"}


def serve(data: Dataset, marks: Marks, start: int = 0, port: int = 0, open_it: bool = True) -> None:
    """Serve until Ctrl-C; port 0 is any free one. `open_it` opens the browser."""
    with Server(data, marks, start, port) as server, suppress(KeyboardInterrupt):
        print(f"{data.file}: open {server.url}\nmarks are kept in {marks.file}; stop with Ctrl-C", flush=True)
        if open_it:
            webbrowser.open(server.url)
        server.serve_forever()


class _Refused(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, said: str) -> None:
        self.status, self.said = status, said


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "qvl-data", ""
    timeout = 30

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is logged: addresses hold the token."""

    def _answer(self, work: Any) -> None:
        try:
            kind, body = work(*self._asked())
            self._send(200, kind, body)
        except _Refused as error:
            self._send(error.status, "text/plain", error.said.encode())
        except (BadSample, QVLError) as error:
            self._send(422, "text/plain", str(error).encode("utf-8", "replace"))

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind if kind.startswith("image/") else f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        if status >= 400:
            self.close_connection = True
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def _asked(self) -> tuple[list[str], Mapping[str, str]]:
        """Path below the token, and the query. Refuses other hosts and wrong tokens."""
        if self.headers.get("Host", "") not in self.server.names:
            raise _Refused(403, "This page is only served under its own address.")
        parts = urlsplit(self.path)
        token, _, path = parts.path.removeprefix("/").partition("/")
        if not hmac.compare_digest(token.encode(), self.server.token.encode()):
            raise _Refused(404, "No such page; open the address that qvl-data view printed.")
        return path.split("/"), {name: values[0] for name, values in parse_qs(parts.query).items()}

    def _get(self, path: list[str], query: Mapping[str, str]) -> tuple[str, bytes]:
        data, marks = self.server.data, self.server.marks
        match path:
            case [name] if name in _PAGE:
                file, kind = _PAGE[name]
                return kind, (files(__package__) / file).read_bytes()
            case ["about"]:
                about = {"file": str(data.file), "total": len(data), "start": self.server.start}
                return _json({**about, "marks": str(marks.file), "reasons": sorted(REASONS)})
            case ["sample", number]:
                with self.server.lock:
                    return _json(describe(data, marks, _number(number, len(data))))
            case ["media", number, media]:
                with self.server.lock:
                    sample = data[_number(number, len(data))]
                    body = picture(sample, _number(media, len(sample.media)))
                return "image/png" if body.startswith(b"\x89PNG") else "image/jpeg", body
            case ["find"]:
                wanted = Filter(*(query.get(name, "") for name in ("text", "mark", "reason")))
                start, step = _number(query.get("from", ""), len(data)), -1 if query.get("back") else 1
                with self.server.lock:
                    return _json(find(data, marks, wanted, start, step).__dict__)
        raise _Refused(404, "No such page.")

    def _post(self, path: list[str], query: Mapping[str, str]) -> tuple[str, bytes]:
        if self.headers.get("Origin") not in {f"http://{name}" for name in self.server.names}:
            raise _Refused(403, "Only the page itself may change marks.")
        if self.headers.get_content_type() != "application/json" or path != ["mark"]:
            raise _Refused(400, "A mark is sent as JSON.")
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > _BODY:
            raise _Refused(413, "That is too long for a mark.")
        data, marks = self.server.data, self.server.marks
        mark = _mark(self.rfile.read(int(length)), len(data))
        with self.server.lock:
            try:
                identity = data.outline(mark.index).id
            except BadSample:
                identity = ""
            marks.set(Mark(mark.index, identity, mark.mark, mark.comment))
            return _json(marks.counts())


def _number(text: str, count: int) -> int:
    if not (text.isascii() and text.isdecimal()) or len(text) > 15 or int(text) >= count:
        raise _Refused(404, f"There is no {text[:20]!r}; the last is {count - 1}.")
    return int(text)


def _mark(body: bytes, count: int) -> Mark:
    try:
        given = json.loads(body)
        index, verdict, comment = given["index"], given["mark"], given["comment"]
    except (ValueError, RecursionError, KeyError, TypeError):
        raise _Refused(400, "A mark is JSON with index, mark and comment.") from None
    if type(index) is not int or not 0 <= index < count or verdict not in ("accept", "reject", ""):
        raise _Refused(400, "There is no such sample, or no such mark.")
    if not isinstance(comment, str) or len(comment) > COMMENT:
        raise _Refused(400, f"A comment is a text of at most {COMMENT} characters.")
    return Mark(index, "", verdict, comment)


def _json(value: Any) -> tuple[str, bytes]:
    return "application/json", json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
