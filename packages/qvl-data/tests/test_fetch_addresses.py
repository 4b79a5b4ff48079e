"""Hostile addresses: nothing but a public http(s) host is ever fetched, however it is spelled."""

from ipaddress import ip_address

import pytest

from qvl_data.fetch.addresses import Refused, check, pair, parse

HOSTILE = [
    # this machine
    "http://127.0.0.1/",
    "http://127.1.2.3/",
    "http://localhost/",
    "http://LOCALHOST./",
    "http://a.localhost/",
    "http://0.0.0.0/",
    "http://[::1]/",
    "http://[::]/",
    "http://[0:0:0:0:0:0:0:1]/",
    # its network
    "http://10.0.0.1/",
    "http://172.16.0.1/",
    "http://172.31.255.255/",
    "http://192.168.1.1/",
    "http://100.64.0.1/",
    "http://[fc00::1]/",
    "http://[fd12:3456:789a::1]/",
    "http://[fec0::1]/",
    "http://printer/",
    "http://printer.local/",
    "http://db.internal/",
    # link-local, among them the metadata of clouds
    "http://169.254.169.254/latest/meta-data/",
    "http://[fe80::1]/",
    "http://[fe80::1%25eth0]/",
    "http://[fd00:ec2::254]/",
    "http://metadata.google.internal/",
    # multicast, broadcast, reserved, documentation
    "http://224.0.0.1/",
    "http://255.255.255.255/",
    "http://240.0.0.1/",
    "http://192.0.2.1/",
    "http://198.18.0.1/",
    "http://[ff02::1]/",
    "http://[2001:db8::1]/",
    # IPv4 inside IPv6
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:7f00:1]/",
    "http://[::ffff:10.0.0.1]/",
    "http://[::127.0.0.1]/",
    "http://[64:ff9b::7f00:1]/",
    "http://[64:ff9b::192.168.0.1]/",
    "http://[64:ff9b:1::808:808]/",
    "http://[2002:7f00:1::]/",
    "http://[2002:a9fe:a9fe::1]/",
    "http://[2001:0:53aa:64c::80ff:fffe]/",
    "http://[2606:4700::5efe:7f00:1]/",
    # special ones, among them the metadata of clouds
    "http://192.0.0.192/",
    "http://192.88.99.1/",
    "http://168.63.129.16/",
    "http://[2002:808:808::1]/",
    "http://[3fff::1]/",
    "http://[v1.example.com]/",
    "http://[8.8.8.8]/",
    # addresses in unusual spellings
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0x7f.0.0.1/",
    "http://0177.0.0.1/",
    "http://127.1/",
    "http://127.0.0.1./",
    "http://1.1.1.1.1/",
    "http://256.256.256.256/",
    "http://example.0x1/",
    "http://１２７.０.０.１/",
    "http://①②⑦.⓪.⓪.①/",
    # other schemes, ports, users
    "file:///etc/passwd",
    "ftp://example.com/a.png",
    "gopher://example.com/",
    "data:image/png;base64,AA==",
    "javascript:alert(1)",
    "//example.com/a.png",
    "example.com/a.png",
    "http://example.com:22/",
    "http://example.com:8080/",
    "https://example.com:80/",
    "http://example.com:99999/",
    "http://example.com:80:80/",
    "http://user@example.com/",
    "http://user:secret@example.com/",
    "http://example.com@127.0.0.1/",
    # what parsers read in different ways
    "http://example.com\\@127.0.0.1/",
    "http://127.0.0.1\\.example.com/",
    "http://exam ple.com/",
    "http://example.com/a\r\nHost: 127.0.0.1",
    "http://example.com/\x00",
    "http://",
    "http:///a.png",
    "http://[::1/",
    "http://[not an address]/",
    "http://-example.com/",
    "http://example..com/",
    "http://" + "a" * 64 + ".com/",
    "http://xn--/",
    "http://example.com/" + "a" * 8192,
]


@pytest.mark.parametrize("url", HOSTILE)
def test_hostile_addresses_are_refused(url: str) -> None:
    with pytest.raises(Refused):
        parse(url)


@pytest.mark.parametrize(
    ("url", "host", "port", "path"),
    [
        ("http://example.com", "example.com", 80, "/"),
        ("HTTPS://EXAMPLE.com./a/b.png?c=d&e=%20f#part", "example.com", 443, "/a/b.png?c=d&e=%20f"),
        ("https://bücher.example/öl.png", "xn--bcher-kva.example", 443, "/%C3%B6l.png"),
        ("http://8.8.8.8/a", "8.8.8.8", 80, "/a"),
        ("http://[2606:4700:4700::1111]/", "2606:4700:4700::1111", 80, "/"),
        ("http://[64:ff9b::808:808]/", "64:ff9b::808:808", 80, "/"),
        ("https://a_b.example.com:443/x", "a_b.example.com", 443, "/x"),
    ],
)
def test_public_addresses_pass(url: str, host: str, port: int, path: str) -> None:
    target = parse(url)
    assert (target.host, target.port, target.path) == (host, port, path)


@pytest.mark.parametrize(
    ("named", "url", "authority"),
    [
        ("127.0.0.1:8000", "http://127.0.0.1:8000/a", "127.0.0.1:8000"),
        ("localhost:8000", "http://LOCALHOST:8000/a", "localhost:8000"),
        ("Mirror:80", "http://mirror/a", "mirror"),
        ("mirror.lan:443", "https://mirror.lan./a", "mirror.lan"),
        ("[::1]:8000", "http://[0:0::1]:8000/a", "[::1]:8000"),
        ("fd00::1:80", "http://[fd00::1]/a", "[fd00::1]"),
    ],
)
def test_a_mirror_that_was_named_may_be_private(named: str, url: str, authority: str) -> None:
    allowed = {pair(named)}
    assert parse(url, allowed).authority == authority
    for other in (url, "http://127.0.0.1:8001/", "http://127.0.0.2:8000/", "http://[::1]/", "http://other/"):
        with pytest.raises(Refused):
            parse(other, {pair("other.lan:80")} if other == url else allowed)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700:4700::1111", "64:ff9b::808:808"])
def test_public_addresses(address: str) -> None:
    check(ip_address(address))
