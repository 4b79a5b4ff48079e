"""One GET as careful as a stranger's URL asks for: bounded in time, in bytes, in redirects, and in where it leads.

The connection goes to the address that was checked. Nothing is sent but the request: no cookies, no proxy, no
credentials. Bodies are taken as they are sent: a compressed one could be a bomb and is refused.
"""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

from qvl_core.errors import BadInput

from .addresses import Refused, Target, check, is_allowed, is_number, pair, parse

if TYPE_CHECKING:
    import httpx

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""Addresses of a host name, for a port."""

MAX_REDIRECTS = 3
TRIED = 3
"""Addresses of one host that are tried."""
_REDIRECTS = (301, 302, 303, 307, 308)
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
_OPT_OUT = {"noai", "noimageai"}  # X-Robots-Tag: the owner wants no training on it


class Failed(Exception):
    """A URL gave nothing; `reason` is a code to count by, `transient` whether trying again may help."""

    def __init__(self, reason: str, problem: str, transient: bool = False) -> None:
        super().__init__(reason, problem, transient)
        self.reason, self.problem, self.transient = reason, problem, transient

    def __str__(self) -> str:
        return self.problem


class _Unreachable(Failed):
    """There was no connection."""


@dataclass(frozen=True)
class Rules:
    """What a fetch may cost, and where it may go."""

    seconds: float = 20.0
    """For one URL in all, redirects included."""
    max_bytes: int = 20_000_000
    allowed: frozenset[str] = frozenset()
    """`host:port` pairs that may be private. Raises BadInput for what is none."""
    agent: str = f"qvl-data/{version('qvl-data')}"

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "allowed", frozenset(map(pair, self.allowed)))
        except Refused as error:
            example = "mirror.example:8080 or [fd00::1]:8080"
            raise BadInput(f"{error}; name an allowed address (--allow-address) like {example}.") from None


async def get(url: str, rules: Rules, resolve: Resolver | None = None) -> bytes:
    """The body behind a URL. Raises Failed."""
    try:
        async with asyncio.timeout(rules.seconds):
            return await _follow(url, rules, resolve or resolve_name)
    except TimeoutError:
        raise Failed("fetch_timeout", f"not complete after {rules.seconds:g} s", transient=True) from None


async def resolve_name(host: str, port: int, threads: Executor | None = None) -> list[str]:
    """All addresses of a host name, by the operating system, which is asked in one of `threads`."""
    ask = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    found = await asyncio.get_running_loop().run_in_executor(threads, ask)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


async def _follow(url: str, rules: Rules, resolve: Resolver) -> bytes:
    for _ in range(MAX_REDIRECTS + 1):
        try:
            target = parse(url, rules.allowed)
            addresses = await _checked_addresses(target, rules, resolve)
        except Refused as error:
            raise Failed("fetch_refused", f"{url[:200]} is not fetched: {error}") from None
        body, location = await _request_any(target, addresses, rules)
        if location is None:
            return body
        try:
            url = urljoin(url, location)
        except ValueError as error:
            raise Failed("fetch_refused", f"{location[:200]} is not fetched: not a URL ({error})") from None
    raise Failed("fetch_redirects", f"redirected more than {MAX_REDIRECTS} times")


async def _checked_addresses(target: Target, rules: Rules, resolve: Resolver) -> Sequence[str]:
    """The addresses to connect to. Raises Refused if any address of the host is not public, Failed if it has none."""
    if is_number(target.host):
        return [target.host]
    try:
        found = await resolve(target.host, target.port)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise Failed("fetch_name", f"{target.host} has no address ({reason})", is_temporary(error)) from None
    if not found:
        raise Failed("fetch_name", f"{target.host} has no address")
    if not is_allowed(target, rules.allowed):
        for address in found:
            check(ip_address(address))
    return found


def is_temporary(error: Exception) -> bool:
    """Whether a name that could not be resolved may be in a while."""
    return isinstance(error, OSError) and error.errno == socket.EAI_AGAIN


async def _request_any(target: Target, addresses: Sequence[str], rules: Rules) -> tuple[bytes, str | None]:
    """The answer of the first address that takes the connection: a host may have some that cannot be reached."""
    for address in addresses[:TRIED]:
        try:
            return await _request(target, address, rules)
        except _Unreachable as error:
            failed = error
    raise failed


async def _request(target: Target, address: str, rules: Rules) -> tuple[bytes, str | None]:
    """Body, or where it redirects to."""
    httpx = _httpx()
    host = f"[{address}]" if ":" in address else address
    request = httpx.Request(
        "GET",
        f"{target.scheme}://{host}:{target.port}{target.path}",
        headers={"Host": target.authority, "User-Agent": rules.agent, "Accept": "*/*", "Accept-Encoding": "identity"},
        extensions={
            "sni_hostname": target.host,
            "timeout": {"connect": rules.seconds / 2, "read": rules.seconds, "write": rules.seconds},
        },
    )
    async with httpx.AsyncHTTPTransport(verify=_tls(), trust_env=False) as transport:
        try:
            response = await transport.handle_async_request(request)
            try:
                if response.status_code in _REDIRECTS and "location" in response.headers:
                    return b"", response.headers["location"]
                _accept(response, rules)
                return await _body(response, rules), None
            finally:
                await response.aclose()
        except (httpx.HTTPError, ssl.SSLError, OSError, UnicodeError) as error:
            what = str(error) or type(error).__name__
            unreachable = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
            kind = _Unreachable if unreachable else Failed
            raise kind("fetch_connection", f"the connection failed ({what[:200]})", transient=True) from None


def _accept(response: "httpx.Response", rules: Rules) -> None:
    """Raise Failed unless the head of a response promises a body that may be kept."""
    status = response.status_code
    if status != 200:
        raise Failed("fetch_status", f"the server answered {status}", transient=status in _TRANSIENT)
    wishes = {wish.strip().lower() for tag in response.headers.get_list("x-robots-tag") for wish in tag.split(",")}
    if _OPT_OUT & {wish.rpartition(":")[2].strip() for wish in wishes}:
        raise Failed("fetch_opt_out", "its owner wants no training on it (X-Robots-Tag)")
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise Failed("fetch_encoding", "the body is compressed, though that was not asked for")
    stated = response.headers.get("content-length", "")
    if stated.isdecimal() and int(stated) > rules.max_bytes:
        raise Failed("fetch_too_large", f"{int(stated)} bytes is over the limit of {rules.max_bytes}")


async def _body(response: "httpx.Response", rules: Rules) -> bytes:
    content = bytearray()
    async for piece in response.aiter_raw():
        content += piece
        if len(content) > rules.max_bytes:
            raise Failed("fetch_too_large", f"longer than the limit of {rules.max_bytes} bytes")
    return bytes(content)


@cache
def _tls() -> ssl.SSLContext:
    context: ssl.SSLContext = _httpx().create_ssl_context(trust_env=False)
    return context


@cache
def _httpx() -> Any:
    try:
        import httpx
    except ImportError:
        raise BadInput('fetching needs httpx: pip install "qvl-data[fetch]".') from None
    return httpx
