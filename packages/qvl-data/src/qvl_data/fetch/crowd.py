"""Many GETs at a time: bounded in number, polite to each host, tried again where that may help."""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from .http import Failed, Rules, get, is_temporary, resolve_name

PER_HOST = 4
"""Connections to one host at a time."""


@dataclass
class Crowd:
    """Fetches with shared limits; made anew for each event loop.

    workers   connections at a time
    attempts  how often a URL is tried where trying again may help
    pause     seconds before the second attempt; doubled for each further one
    """

    rules: Rules
    workers: int = 32
    attempts: int = 3
    pause: float = 1.0
    _names: dict[tuple[str, int], "asyncio.Task[Sequence[str]]"] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._all = asyncio.Semaphore(self.workers)
        self._hosts: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(PER_HOST))
        self._threads = ThreadPoolExecutor(self.workers)  # of their own: names that never resolve hold up nothing else

    def renewed(self) -> "Crowd":
        """The same limits for another event loop."""
        return Crowd(self.rules, self.workers, self.attempts, self.pause)

    async def fetch(self, url: str) -> bytes:
        """The body behind a URL. Raises Failed after the last attempt."""
        for attempt in range(1, self.attempts + 1):
            try:
                async with self._hosts[_host(url)], self._all:
                    return await get(url, self.rules, self._resolve)
            except Failed as error:
                if not error.transient or attempt == self.attempts:
                    raise
            await asyncio.sleep(self.pause * 2 ** (attempt - 1))
        raise ValueError(f"attempts must be at least 1, got {self.attempts}")

    async def _resolve(self, host: str, port: int) -> Sequence[str]:
        """Each name is resolved once: thousands of pictures of one host are one question."""
        key = host, port
        if key not in self._names:
            self._names[key] = asyncio.ensure_future(resolve_name(host, port, self._threads))
        task = self._names[key]
        try:
            return await asyncio.shield(task)
        except OSError as error:
            if is_temporary(error):
                self._names.pop(key, None)
            raise


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
