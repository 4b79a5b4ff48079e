"""A web server on loopback that behaves well or badly, byte by byte."""

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

Answer = Callable[[asyncio.StreamWriter], Coroutine[Any, Any, None]]


class Server:
    """Paths and their answers; `asked` counts requests by path, `hosts` keeps their Host headers."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: Counter[str] = Counter()
        self.requests: list[str] = []
        self.port = 0

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    @property
    def name(self) -> str:
        return f"127.0.0.1:{self.port}"

    def give(self, path: str, body: bytes, status: str = "200 OK", **headers: str) -> None:
        """Answer with a body and the headers (underscores are dashes); Content-Length is stated unless given."""
        named = {"Content-Length": str(len(body))} | {key.replace("_", "-"): value for key, value in headers.items()}

        async def answer(out: asyncio.StreamWriter) -> None:
            out.write(f"HTTP/1.1 {status}\r\n".encode())
            out.write("".join(f"{key}: {value}\r\n" for key, value in named.items() if value).encode() + b"\r\n" + body)

        self.answers[path] = answer

    def drip(self, path: str, head: bytes, seconds: float = 0.05) -> None:
        """Send `head`, then a byte every now and then, for ever."""

        async def answer(out: asyncio.StreamWriter) -> None:
            out.write(head)
            while True:
                out.write(b"x")
                await out.drain()
                await asyncio.sleep(seconds)

        self.answers[path] = answer

    async def handle(self, lines: asyncio.StreamReader, out: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            request = (await lines.readuntil(b"\r\n\r\n")).decode("latin-1")
            path = request.split(" ", 2)[1]
            self.asked[path] += 1
            self.requests.append(request)
            if path in self.answers:
                await self.answers[path](out)
            else:
                out.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            await out.drain()
        out.close()


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """A server in a thread of its own."""
    server, loop = Server(), asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    listening = asyncio.run_coroutine_threadsafe(asyncio.start_server(server.handle, "127.0.0.1", 0), loop).result()
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:

        async def stop() -> None:
            listening.close()
            for task in asyncio.all_tasks():
                if task is not asyncio.current_task():
                    task.cancel()

        asyncio.run_coroutine_threadsafe(stop(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
