"""Which addresses may be fetched: a list of URLs is hostile input, and who fetches stands inside a network.

Only http(s) to public unicast addresses passes. The name is checked, then every address it resolves to; the connection
goes to the address that was checked, so that a name cannot resolve to another one in between (DNS rebinding).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import quote, urlsplit

MAX_URL = 8192
PORTS = {"http": 80, "https": 443}

_KEPT = "%/?:@!$&'()*+,;=~-._"  # RFC 3986: may stand in a path or query as they are
_UNPRINTABLE = re.compile(r"[\x00-\x20\x7f\\\ud800-\udfff]")
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)", re.ASCII)
_NUMBER = re.compile(r"\d+|0x[0-9a-f]*", re.ASCII)  # WHATWG URL: a host that ends in a number is an IPv4 address
_TRANSLATED = IPv6Network("64:ff9b::/96")  # NAT64 (RFC 6052)
_UNICAST = IPv6Network("2000::/3")  # all that is given out for public use (RFC 4291)
_NEVER = (
    *map(
        ip_network, ("192.0.0.0/24", "192.88.99.0/24", "2001::/32", "2002::/16", "3fff::/20")
    ),  # Pythons differ on them
    ip_network("168.63.129.16/32"),  # Azure's own services, the same for every machine in it
)
_INSIDE = ("localhost", "local", "internal", "lan", "home", "intranet", "onion")  # endings of names inside a network
_COMPATIBLE = IPv6Network("::/96")  # IPv4-compatible (RFC 4291, deprecated)


class Refused(ValueError):
    """This address is never fetched; the message says why."""


@dataclass(frozen=True)
class Target:
    """Where a checked URL leads."""

    url: str
    scheme: str
    host: str
    """Name in ASCII, or an address without brackets."""
    port: int
    path: str
    """Path and query, in ASCII."""

    @property
    def authority(self) -> str:
        """What the Host header says."""
        pair = _pair(self.host, self.port)
        return pair.rpartition(":")[0] if self.port == PORTS[self.scheme] else pair


def parse(url: str, allowed: Iterable[str] = ()) -> Target:
    """The parts of a URL that may be fetched, as far as its text tells. Raises Refused.

    allowed  `host:port` pairs that may be private and on any port (a mirror in one's own network)
    """
    if len(url) > MAX_URL:
        raise Refused(f"longer than {MAX_URL} characters")
    if _UNPRINTABLE.search(url):
        raise Refused("holds a space, a backslash, a control character or half a character")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise Refused(f"not a URL ({error})") from None
    scheme = parts.scheme.lower()
    if scheme not in PORTS:
        raise Refused(f"scheme {scheme!r} is not http or https")
    if parts.username is not None or parts.password is not None:
        raise Refused("holds a user name")
    host = _host(parts.hostname or "", "[" in parts.netloc)
    path = quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), safe=_KEPT)
    if len(path) > MAX_URL:
        raise Refused(f"longer than {MAX_URL} characters when it is sent")
    target = Target(url, scheme, host, port if port is not None else PORTS[scheme], path)
    if not is_allowed(target, allowed):
        if target.port != PORTS[scheme]:
            raise Refused(f"port {target.port} is not the one of {scheme}")
        if is_number(host):
            check(ip_address(host))
        elif "." not in host or host.rpartition(".")[2] in _INSIDE:
            raise Refused(f"{host!r} is a name inside a network")
    return target


def pair(text: str) -> str:
    """A `HOST:PORT` that may be private (`mirror.lan:8080`, `[fd00::1]:80`), in one spelling. Raises Refused."""
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdecimal() and 0 < int(port[:6]) < 65536):
        raise Refused(f"{text!r} is no HOST:PORT")
    bracketed = host.startswith("[") and host.endswith("]")
    return _pair(_host(host[1:-1] if bracketed else host, bracketed), int(port))


def _pair(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_allowed(target: Target, allowed: Iterable[str]) -> bool:
    """Whether a target was named as one that may be private."""
    return _pair(target.host, target.port) in set(allowed)


def is_number(host: str) -> bool:
    """Whether a checked host is an address and not a name."""
    return ":" in host or bool(_NUMBER.fullmatch(host.rpartition(".")[2]))


def check(address: IPv4Address | IPv6Address) -> None:
    """Raise Refused unless an address is a public one, the IPv4 addresses that IPv6 can carry included."""
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            raise Refused(f"{address} is bound to one interface")
        for inner in _carried(address):
            check(inner)
        if address in _TRANSLATED:
            return  # the address inside decides, and it has just been checked
        if address not in _UNICAST:
            raise Refused(f"{address} is no public address")
    if any(address in network for network in _NEVER):
        raise Refused(f"{address} is no public address")
    if not address.is_global or address.is_multicast or address.is_reserved or address.is_unspecified:
        raise Refused(f"{address} is no public address")


def _carried(address: IPv6Address) -> Iterable[IPv4Address]:
    """The IPv4 addresses inside an IPv6 address: mapped, compatible, NAT64, ISATAP."""
    if address.ipv4_mapped is not None:
        yield address.ipv4_mapped
    low = IPv4Address(int(address) & 0xFFFFFFFF)
    if address in _TRANSLATED or address in _COMPATIBLE:
        yield low
    if int(address) >> 32 & 0xFDFFFFFF == 0x00005EFE:  # RFC 5214
        yield low


def _host(host: str, bracketed: bool) -> str:
    """The host in one spelling. Raises Refused for what resolvers read in different ways."""
    host = host.removesuffix(".")
    if not host:
        raise Refused("names no host")
    if ":" in host or bracketed:
        try:
            address = IPv6Address(host)
        except ValueError:
            raise Refused(f"{host!r} is no IPv6 address") from None
        return str(address)
    try:
        name = host.encode("ascii").decode() if host.isascii() else host.encode("idna").decode()
    except UnicodeError:
        raise Refused(f"{host[:80]!r} is no host name") from None
    name = name.lower()
    if is_number(name):
        try:
            return str(IPv4Address(name))
        except ValueError:  # 2130706433, 0x7f.1, 0177.0.0.1: resolvers read them as addresses
            raise Refused(f"{name!r} is an address in an unusual spelling") from None
    labels = name.split(".")
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise Refused(f"{name[:80]!r} is no host name")
    return name
