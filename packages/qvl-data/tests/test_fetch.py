"""Lists of URLs become shards: in order, resumed after a kill, retried where something failed, asked for once."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("httpx", reason="needs qvl-data[fetch]")

from qvl_core.errors import BadInput
from qvl_data.cli import app
from qvl_data.dataset import Dataset
from qvl_data.errors import BadSample
from qvl_data.fetch import Rules, fetch
from qvl_data.fetch.crowd import Crowd
from qvl_data.fetch.lists import UrlList

from .chats import file_of, picture
from .killing import check_every_kill, tree
from .server import Server, serving


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


def listed(tmp_path: Path, server: Server, count: int = 7, broken: tuple[int, ...] = ()) -> Path:
    """A list of pictures, some of which the server does not have."""
    offer(server, count, broken)
    lines = "".join(f"{server.url(f'/{number}.png')}\tpicture {number}\n" for number in range(count))
    file = tmp_path / "urls.txt"
    file.write_text(lines, encoding="utf-8")
    return file


def offer(server: Server, count: int = 7, broken: tuple[int, ...] = ()) -> None:
    for number in range(count):
        if number not in broken:
            server.give(f"/{number}.png", file_of(picture(8, 6, number)))


def crowd(server: Server, **options: float) -> Crowd:
    return Crowd(Rules(seconds=5, allowed=frozenset({server.name})), pause=0.01, **options)


def test_shards_in_the_order_of_the_list(tmp_path: Path, server: Server) -> None:
    done = fetch(UrlList(listed(tmp_path, server)), tmp_path / "out", crowd(server), shard=3)
    assert (done.samples, done.failed) == (7, [])
    names = sorted(path.name for path in (tmp_path / "out").glob("*.parquet"))
    assert names == [f"train-{number:05d}-of-00003.parquet" for number in range(3)]
    data = Dataset(tmp_path / "out", "train")
    assert [sample.messages[0].text for sample in data] == [f"picture {number}" for number in range(7)]
    for number, sample in enumerate(data):
        (media,) = sample.media
        assert (media.bytes, media.origin) == (file_of(picture(8, 6, number)), server.url(f"/{number}.png"))
        assert (media.width, media.height, media.mime) == (8, 6, "image/png")
        assert sample.task == "t2i"


def test_nothing_is_fetched_twice(tmp_path: Path, server: Server) -> None:
    urls = UrlList(listed(tmp_path, server, broken=(2,)))
    fetch(urls, tmp_path / "out", crowd(server), shard=3)
    before, files = dict(server.asked), tree(tmp_path / "out")
    again = fetch(urls, tmp_path / "out", crowd(server), shard=3)
    assert (again.samples, len(again.failed)) == (6, 1)
    assert (dict(server.asked), tree(tmp_path / "out")) == (before, files)
    with pytest.raises(BadInput, match="holds the output of another command"):
        fetch(urls, tmp_path / "out", crowd(server), shard=4)


def test_a_retry_asks_only_for_what_failed(tmp_path: Path, server: Server) -> None:
    file = listed(tmp_path, server, broken=(1, 5))
    server.give("/3.png", b"<html>no picture</html>")
    first = fetch(UrlList(file), tmp_path / "out", crowd(server), shard=3)
    assert not first.before
    assert [(entry["index"], entry["reason"]) for entry in first.failed] == [
        (1, "fetch_status"),
        (3, "image_format"),
        (5, "fetch_status"),
    ]
    assert first.failed[0]["place"].endswith("urls.txt:2")
    offer(server, broken=(5,))  # now 1 and 3 are there
    server.asked.clear()
    second = fetch(UrlList(file), tmp_path / "out", crowd(server), shard=3, retry=True)
    assert ([entry["index"] for entry in second.failed], second.before) == ([5], False)
    assert dict(server.asked) == {"/1.png": 1, "/3.png": 1, "/5.png": 1}
    offer(server)
    third = fetch(UrlList(file), tmp_path / "out", crowd(server), shard=3, retry=True)
    assert (third.samples, third.failed) == (7, [])
    at_once = fetch(UrlList(file), tmp_path / "at once", crowd(server), shard=3)
    assert at_once.samples == 7
    shards = {name: content for name, content in tree(tmp_path / "out").items() if name.endswith(".parquet")}
    assert shards.items() <= tree(tmp_path / "at once").items(), "a retried set is the one fetched in one go"


def test_what_is_refused_is_not_retried(tmp_path: Path, server: Server) -> None:
    file = tmp_path / "urls.txt"
    file.write_text("http://169.254.169.254/\nfile:///etc/passwd\nhttp://localhost/a.png\n", encoding="utf-8")
    first = fetch(UrlList(file), tmp_path / "out", crowd(server))
    assert [entry["reason"] for entry in first.failed] == ["fetch_refused", "media_path", "fetch_refused"]
    assert (first.samples, server.requests) == (0, [])


def test_a_transient_failure_is_tried_again_at_once(tmp_path: Path, server: Server) -> None:
    file = listed(tmp_path, server, 1)
    good = server.answers["/0.png"]
    server.give("/0.png", b"", "503 Busy")
    busy = server.answers["/0.png"]

    async def at_the_third(out: object) -> None:
        await (good if server.asked["/0.png"] == 3 else busy)(out)  # type: ignore[arg-type]

    server.answers["/0.png"] = at_the_third
    assert fetch(UrlList(file), tmp_path / "a", crowd(server, attempts=2)).samples == 0
    server.asked.clear()
    assert fetch(UrlList(file), tmp_path / "b", crowd(server, attempts=3)).samples == 1


def test_slow_servers_do_not_hold_up_the_others(tmp_path: Path, server: Server) -> None:
    file = listed(tmp_path, server, 5, broken=(0,))
    server.drip("/0.png", b"HTTP/1.1 200 OK\r\n\r\n", 0.02)
    rules = Rules(seconds=3, allowed=frozenset({server.name}))
    done = fetch(UrlList(file), tmp_path / "out", Crowd(rules, attempts=1))
    assert [entry["reason"] for entry in done.failed] == ["fetch_timeout"]
    assert done.samples == 4


def test_addresses_in_any_data_set(tmp_path: Path, server: Server) -> None:
    """A chat with two pictures is whole or not there."""
    listed(tmp_path, server, 2)
    lines = []
    for shown in (["/0.png", "/1.png"], ["/0.png", "/9.png"]):
        parts = [{"type": "image_url", "image_url": {"url": server.url(path)}} for path in shown]
        turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": "b"}]
        lines.append(json.dumps({"messages": turns}) + "\n")
    file = tmp_path / "chats.jsonl"
    file.write_text("".join(lines), encoding="utf-8")
    done = fetch(Dataset(file), tmp_path / "out", crowd(server), container="tar")
    assert [(entry["index"], entry["url"]) for entry in done.failed] == [(1, server.url("/9.png"))]
    (sample,) = Dataset(tmp_path / "out", "train")
    assert [media.bytes for media in sample.media] == [file_of(picture(8, 6, number)) for number in range(2)]


def test_offline_unless_told(tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    file = listed(tmp_path, server, 2, broken=(1,))
    assert app.run(["fetch", str(file), str(tmp_path / "out")]) == 2
    assert "add --online" in capsys.readouterr().err
    assert not server.requests
    command = ["fetch", str(file), str(tmp_path / "out"), "--online", "--attempts", "1"]
    assert app.run([*command, "--allow-address", server.name]) == 0
    said = capsys.readouterr().out
    assert "1 of 2 samples" in said
    assert "1 failed (fetch_status 1)" in said
    assert app.run(["fetch", str(file), str(tmp_path / "private"), "--online"]) == 0
    assert "2 failed (fetch_refused 2)" in capsys.readouterr().out


def test_other_data_is_left_alone(tmp_path: Path, server: Server) -> None:
    urls = UrlList(listed(tmp_path, server, 1))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/train.parquet").write_text("mine")
    with pytest.raises(BadInput, match="holds other data already"):
        fetch(urls, tmp_path / "out", crowd(server))
    assert (tmp_path / "out/train.parquet").read_text() == "mine"


def shards_of(out: Path) -> dict[str, bytes]:
    return {name: content for name, content in tree(out).items() if name.endswith((".parquet", "failed.jsonl"))}


def test_after_a_retry_it_can_start_over(tmp_path: Path, server: Server) -> None:
    """What a retry has brought is forgotten with all else: by --fresh, and in part by a shard that is gone."""
    urls, out = UrlList(listed(tmp_path, server, 6, broken=(1, 5))), tmp_path / "out"
    fetch(urls, out, crowd(server), shard=3)
    offer(server, 6, broken=(5,))
    assert fetch(urls, out, crowd(server), shard=3, retry=True).samples == 5
    del server.answers["/1.png"], server.answers["/4.png"]
    (out / "train-00001-of-00002.parquet").unlink()
    server.asked.clear()
    again = fetch(urls, out, crowd(server), shard=3)
    assert (again.samples, [entry["index"] for entry in again.failed]) == (4, [4, 5]), "1 was fetched before"
    assert set(server.asked) == {"/3.png", "/4.png", "/5.png"}
    fresh = fetch(urls, out, crowd(server), shard=3, fresh=True)
    assert (fresh.samples, [entry["index"] for entry in fresh.failed]) == (3, [1, 4, 5])
    assert fetch(urls, out, crowd(server), shard=3) == fresh
    assert len(Dataset(out, "train")) == 3
    other = fetch(urls, out, crowd(server), shard=2, fresh=True)
    assert other.samples == len(Dataset(out, "train")) == 3
    assert not list(out.glob("*-of-00002*"))


def test_a_retry_without_failures_does_nothing(tmp_path: Path, server: Server) -> None:
    urls, out = UrlList(listed(tmp_path, server, 2)), tmp_path / "out"
    fetch(urls, out, crowd(server))
    before = tree(out)
    for retry in (False, True):
        again = fetch(urls, out, crowd(server), retry=retry)
        assert (again.samples, again.before, tree(out)) == (2, True, before)


def test_a_list_of_failures_that_is_gone_is_written_again(tmp_path: Path, server: Server) -> None:
    urls, out = UrlList(listed(tmp_path, server, 3, broken=(1,))), tmp_path / "out"
    first = fetch(urls, out, crowd(server))
    before = tree(out)
    (out / "failed.jsonl").unlink()
    server.asked.clear()
    assert fetch(urls, out, crowd(server)) == first
    assert (tree(out), dict(server.asked)) == (before, {})


def test_shards_of_which_nothing_came(tmp_path: Path, server: Server) -> None:
    for container in ("parquet", "tar"):
        urls, out = UrlList(listed(tmp_path, server, 3, broken=(0, 2))), tmp_path / container
        fetch(urls, out, crowd(server), shard=1, container=container)
        assert [sample.messages[0].text for sample in Dataset(out, "train")] == ["picture 1"]
        offer(server, 3)
        assert fetch(urls, out, crowd(server), shard=1, container=container, retry=True).samples == 3
        assert len(Dataset(out, "train")) == 3
        del server.answers["/0.png"], server.answers["/2.png"]


def test_lists_of_any_kind(tmp_path: Path) -> None:
    file = tmp_path / "urls.txt"
    file.write_bytes(
        "\ufeffhttp://a.example/\tone\u2028two\x85\r\n\r\nhttp://b.example/\n".encode() + b"\xff\nhttp://c"
    )
    urls = UrlList(file)
    assert len(urls) == 4
    assert (urls[0].media[0].url, urls[0].messages[0].text) == ("http://a.example/", "one\u2028two")
    assert (urls[1].media[0].url, urls[1].place) == ("http://b.example/", f"{file}:3")
    with pytest.raises(BadSample, match=r"urls\.txt:4: invalid UTF-8 at byte 1"):
        urls[2]
    assert urls[3].media[0].url == "http://c"
    file.write_text("not a url\na.png\tcaption\n")
    with pytest.raises(BadSample, match=r"urls\.txt:1: 'not a url' is no URL; write one such as https://"):
        UrlList(file)[0]
    with pytest.raises(BadSample, match=r"urls\.txt:2: 'a\.png' is no URL"):
        UrlList(file)[1]
    file.write_bytes("http://a.example/".encode("utf-16"))
    with pytest.raises(BadInput, match="is UTF-16; save the file as UTF-8"):
        UrlList(file)
    file.write_text("\n")
    with pytest.raises(BadInput, match="holds no URLs"):
        UrlList(file)
    with pytest.raises(BadInput, match=r"none\.txt: no such file"):
        UrlList(tmp_path / "none.txt")


def test_a_line_that_cannot_be_read_fails_alone(tmp_path: Path, server: Server) -> None:
    file = listed(tmp_path, server, 2)
    file.write_bytes(file.read_bytes() + b"http://\xff\n")
    done = fetch(UrlList(file), tmp_path / "out", crowd(server))
    assert done.samples == 2
    before = tree(tmp_path / "out")
    assert fetch(UrlList(file), tmp_path / "out", crowd(server), retry=True) == done
    assert tree(tmp_path / "out") == before, "what no address was asked for is not tried again"
    assert [(entry["reason"], entry["place"]) for entry in done.failed] == [("table", f"{file}:3")]


def test_another_command_is_refused(tmp_path: Path, server: Server) -> None:
    urls = UrlList(listed(tmp_path, server, 1))
    fetch(urls, tmp_path / "out", crowd(server), reading={"columns": {"image": "url"}})
    with pytest.raises(BadInput, match=r'\(options .*"url".*, now .*"link"'):
        fetch(urls, tmp_path / "out", crowd(server), reading={"columns": {"image": "link"}})
    for split in ("../up", "a/b", ""):
        with pytest.raises(BadInput, match="is no name of a file"):
            fetch(urls, tmp_path / "out", crowd(server), split=split)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/README.md").write_text("precious")
    with pytest.raises(BadInput, match="holds other data already"):
        fetch(urls, tmp_path / "mine", crowd(server))


@pytest.mark.parametrize("every", [20, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_anywhere_it_ends_the_same(every: int, tmp_path: Path, server: Server) -> None:
    file = listed(tmp_path, server, 5, broken=(3,))

    def command(out: Path) -> list[str]:
        options = ["--online", "--allow-address", server.name, "--shard", "2", "--attempts", "1"]
        return ["fetch", str(file), str(out / "set"), *options]

    assert check_every_kill(command, tmp_path / "kills", every) > 5
