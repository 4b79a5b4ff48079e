"""One GET against servers that are slow, huge, endless, lying, or that lead into the network."""

import asyncio
import gzip
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("httpx", reason="needs qvl-data[fetch]")

from qvl_core.errors import BadInput
from qvl_data.fetch.crowd import Crowd
from qvl_data.fetch.http import Failed, Rules, get

from .server import Server, serving


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


def fetched(server: Server, path: str, **rules: float) -> bytes:
    return asyncio.run(get(server.url(path), replace(Rules(allowed=frozenset({server.name})), **rules)))


def failure(server: Server, path: str, **rules: float) -> Failed:
    with pytest.raises(Failed) as failed:
        fetched(server, path, **rules)
    return failed.value


def test_a_body_comes_back_and_nothing_else_is_sent(server: Server) -> None:
    server.give("/a.png?x=1", b"picture", Set_Cookie="a=b")
    assert fetched(server, "/a.png?x=1#part") == b"picture"
    fetched(server, "/a.png?x=1")
    head = server.requests[-1].lower()
    assert f"host: {server.name}" in head
    assert "user-agent: qvl-data/" in head
    assert "cookie" not in head
    assert "authorization" not in head
    assert "accept-encoding: identity" in head


def test_a_chunked_body(server: Server) -> None:
    server.give("/a", b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", Transfer_Encoding="chunked", Content_Length="")
    assert fetched(server, "/a") == b"abcde"


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nX-",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
    ],
    ids=["silent", "header", "body", "endless"],
)
def test_what_drips_is_cut(head: bytes, server: Server) -> None:
    server.drip("/slow", head)
    began = time.monotonic()
    error = failure(server, "/slow", seconds=0.4)
    assert error.reason in ("fetch_timeout", "fetch_connection")  # a dripped status line is also no HTTP
    assert time.monotonic() - began < 20  # else it is never cut


def test_redirects_share_one_deadline(server: Server) -> None:
    server.give("/a", b"", "302 Found", Location="/slow")
    server.drip("/slow", b"HTTP/1.1 200 OK\r\n\r\n")
    began = time.monotonic()
    assert failure(server, "/a", seconds=0.4).reason == "fetch_timeout"
    assert time.monotonic() - began < 20  # else it is never cut


def test_what_is_huge_is_cut(server: Server) -> None:
    server.give("/stated", b"x", Content_Length="1000000000000")
    server.give("/unstated", b"x" * 300_000, Content_Length="")
    server.give("/lie", b"ffffffff\r\n" + b"x" * 300_000, Transfer_Encoding="chunked", Content_Length="")
    for path in ("/stated", "/unstated", "/lie"):
        error = failure(server, path, max_bytes=100_000)
        assert (error.reason, error.transient) == ("fetch_too_large", False)


def test_a_body_that_stops_early_is_no_body(server: Server) -> None:
    server.give("/short", b"half", Content_Length="8")
    error = failure(server, "/short")
    assert (error.reason, error.transient) == ("fetch_connection", True)


def test_compressed_bodies_are_refused(server: Server) -> None:
    server.give("/bomb", gzip.compress(bytes(10_000_000)), Content_Encoding="gzip")
    assert failure(server, "/bomb").reason == "fetch_encoding"


def test_many_headers_are_cut(server: Server) -> None:
    server.give("/a", b"", **{f"X_{i}": "y" * 1000 for i in range(1000)})
    assert failure(server, "/a").reason == "fetch_connection"


@pytest.mark.parametrize("wish", ["noai", "NoImageAI, noindex", "otherbot: noai"])
def test_owners_can_opt_out(wish: str, server: Server) -> None:
    server.give("/a", b"x", X_Robots_Tag=wish)
    assert failure(server, "/a").reason == "fetch_opt_out"


@pytest.mark.parametrize(("status", "transient"), [("404 Not Found", False), ("503 Busy", True), ("429 Wait", True)])
def test_other_answers(status: str, transient: bool, server: Server) -> None:
    server.give("/a", b"", status)
    error = failure(server, "/a")
    assert (error.reason, error.transient) == ("fetch_status", transient)
    assert status[:3] in str(error)


def test_redirects(server: Server) -> None:
    for number in range(5):
        server.give(f"/{number}", b"", "301 Moved", Location=f"/{number + 1}")
    server.give("/5", b"end")
    assert fetched(server, "/2") == b"end"
    assert failure(server, "/1").reason == "fetch_redirects"
    server.give("/loop", b"", "302 Found", Location="/loop")
    assert failure(server, "/loop").reason == "fetch_redirects"


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1:1/",
        "http://127.0.0.1/",
        "//127.0.0.2:{port}/",
        "http://[::1]:{port}/",
        "http://[::ffff:127.0.0.1]:{port}/",
        "http://2130706433:{port}/",
        "http://localhost:{port}/",
        "http://169.254.169.254/latest/meta-data/",
        "http://user@127.0.0.1:{port}/",
        "file:///etc/passwd",
        "ftp://127.0.0.1/",
        "http://0:{port}/",
        "http://[127.0.0.1]:{port}/",
        "http://[127.0.0.1:{port}/",
        "//[",
        "http://\u2100.example/",
        "/" + "\U0001f600" * 1000,
    ],
)
def test_a_redirect_into_the_network_is_refused(location: str, server: Server) -> None:
    server.give("/", b"secret")
    server.give("/a", b"", "302 Found", Location=location.format(port=server.port))
    assert failure(server, "/a").reason == "fetch_refused"
    assert server.asked["/"] == 0


@pytest.mark.parametrize(
    "found",
    [["127.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["::1"], ["::ffff:10.0.0.1"], ["fe80::1%eth0"], ["169.254.169.254"]],
)
def test_a_name_that_leads_into_the_network_is_refused(found: list[str]) -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        return found

    with pytest.raises(Failed) as failed:
        asyncio.run(get("http://public.example/a.png", Rules(), resolve))
    assert failed.value.reason == "fetch_refused"


def test_the_connection_goes_to_the_address_that_was_checked(server: Server) -> None:
    """DNS rebinding: a name is resolved once, so that it cannot be another one between check and connection."""
    server.give("/a", b"body")
    name = f"rebind.example:{server.port}"
    answers = iter([["127.0.0.1"]])  # a second question would be a StopIteration

    async def resolve(host: str, port: int) -> Sequence[str]:
        assert (host, port) == ("rebind.example", server.port)
        return next(answers)

    assert asyncio.run(get(f"http://{name}/a", Rules(allowed=frozenset({name})), resolve)) == b"body"
    assert f"Host: {name}" in server.requests[-1]


def test_a_rebound_redirect_is_checked_again(server: Server) -> None:
    """The second visit to a host resolves it again, and checks again."""
    server.give("/a", b"", "302 Found", Location="/b")
    server.give("/b", b"secret")
    name = f"mirror.example:{server.port}"

    async def resolve(host: str, port: int) -> Sequence[str]:
        return ["127.0.0.1"]

    with pytest.raises(Failed) as failed:
        asyncio.run(get(f"http://{name}/a", Rules(), resolve))
    assert failed.value.reason == "fetch_refused"
    assert asyncio.run(get(f"http://{name}/a", Rules(allowed=frozenset({name})), resolve)) == b"secret"
    assert f"Host: {name}" in server.requests[-1]


def test_a_name_without_address() -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        raise OSError(-2, "Name or service not known")

    with pytest.raises(Failed) as failed:
        asyncio.run(get("http://nowhere.example/", Rules(), resolve))
    assert failed.value.reason == "fetch_name"
    assert str(failed.value) == "nowhere.example has no address (Name or service not known)"


def test_addresses_that_no_request_can_hold_are_refused(server: Server) -> None:
    for path in ("/\ud800", "/" + "\U0001f600" * 8000):
        assert failure(server, path).reason == "fetch_refused"


def test_an_address_that_cannot_be_reached_is_passed_over(server: Server) -> None:
    server.give("/a", b"body")
    name = f"two.example:{server.port}"

    async def resolve(host: str, port: int) -> Sequence[str]:
        return ["::1", "127.0.0.1"]  # the server listens on the second alone

    assert asyncio.run(get(f"http://{name}/a", Rules(allowed=frozenset({name})), resolve)) == b"body"
    closed = f"closed.example:{server.port}"

    async def resolve_closed(host: str, port: int) -> Sequence[str]:
        return ["::1", "::1"]

    with pytest.raises(Failed) as failed:
        asyncio.run(get(f"http://{closed}/a", Rules(allowed=frozenset({closed})), resolve_closed))
    assert (failed.value.reason, failed.value.transient) == ("fetch_connection", True)


def test_an_allowed_address_is_a_pair() -> None:
    for wrong in ("mirror", "http://mirror:80", "mirror:0", "mirror:99999", "0x7f.1:80", "a b:80"):
        with pytest.raises(BadInput, match=r"name an allowed address \(--allow-address\) like"):
            Rules(allowed=frozenset({wrong}))


def test_proxies_of_the_environment_are_not_used(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.give("/a", b"body")
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert fetched(server, "/a") == b"body"


def test_names_that_never_resolve_hold_up_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: Counter[str] = Counter()
    released = threading.Event()

    def endless(host: str, *more: object, **named: object) -> list[object]:
        asked[host] += 1
        released.wait(60)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", endless)

    async def run() -> None:
        crowd = Crowd(Rules(seconds=1), workers=40, attempts=1)
        fetches = [asyncio.ensure_future(crowd.fetch(f"http://{number}.example/")) for number in range(40)]
        failures = await asyncio.gather(*fetches, return_exceptions=True)
        assert {getattr(failure, "reason", failure) for failure in failures} == {"fetch_timeout"}
        assert len(asked) > 4, "several at a time"
        await asyncio.wait_for(asyncio.to_thread(int), 30)  # as pictures are decoded

    try:
        asyncio.run(run())
    finally:
        released.set()


def test_a_name_that_does_not_exist_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: Counter[int] = Counter()

    def unknown(host: str, *more: object, **named: object) -> list[object]:
        code = socket.EAI_AGAIN if host == "later.example" else socket.EAI_NONAME
        asked[code] += 1
        raise socket.gaierror(code, "unknown")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)

    async def run() -> None:
        crowd = Crowd(Rules(), attempts=1)
        for host in ("never.example", "never.example", "later.example", "later.example"):
            with pytest.raises(Failed, match="has no address"):
                await crowd.fetch(f"http://{host}/")

    asyncio.run(run())
    assert asked == {socket.EAI_NONAME: 1, socket.EAI_AGAIN: 2}


def test_a_certificate_is_checked_for_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection goes to an address, but the certificate must be that of the host."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs openssl to make a certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = ["-nodes", "-newkey", "rsa:2048", "-keyout", str(key), "-out", str(certificate), "-days", "2"]
    names = ["-subj", "/CN=good.example", "-addext", "subjectAltName=DNS:good.example"]
    if subprocess.run([openssl, "req", "-x509", *made, *names], capture_output=True).returncode != 0:
        pytest.skip("this openssl makes no such certificate")
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.load_cert_chain(certificate, key)

    async def answer(lines: asyncio.StreamReader, out: asyncio.StreamWriter) -> None:
        await lines.readuntil(b"\r\n\r\n")
        out.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody")
        await out.drain()
        out.close()

    async def resolve(host: str, port: int) -> Sequence[str]:
        return ["127.0.0.1"]

    async def ask(host: str) -> bytes:
        async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=served) as listening:
            name = f"{host}:{listening.sockets[0].getsockname()[1]}"
            return await get(f"https://{name}/", Rules(allowed=frozenset({name})), resolve)

    with pytest.raises(Failed, match="self-signed certificate"):
        asyncio.run(ask("good.example"))
    trusting = ssl.create_default_context(cafile=certificate)
    monkeypatch.setattr("qvl_data.fetch.http._tls", lambda: trusting)
    assert asyncio.run(ask("good.example")) == b"body"
    for other in ("other.example", "127.0.0.1"):
        with pytest.raises(Failed, match="mismatch, certificate is not valid for"):
            asyncio.run(ask(other))
