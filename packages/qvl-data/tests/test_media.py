"""Pictures: upright, in RGB, whole; everything else refused with the file's name and the reason."""

import base64
import hashlib
import io
import os
import struct
import sys
import time
import zlib

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageColor, ImageOps

from qvl_data import hashing
from qvl_data.augment import Augmentation
from qvl_data.errors import BadSample
from qvl_data.hashing import media_key
from qvl_data.jpeg import quick_size
from qvl_data.limits import Limits
from qvl_data.media import Opener, image_frames, image_size, in_memory, open_image, read_bytes
from qvl_data.sample import Media, Message, Part, Sample

from .chats import file_of, picture, write_png


def embedded(content: bytes) -> Media:
    return Media(kind="image", bytes=content, origin="photo.png")


def at(path: str) -> Media:
    return Media(kind="image", path=path)


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_known_formats(format):
    media = embedded(file_of(picture(30, 20), format))
    opened = open_image(media)
    assert (opened.mode, opened.size) == ("RGB", (30, 20))
    assert image_size(media) == (30, 20)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_rotation_is_applied(format, orientation):
    options = {"quality": 100, "subsampling": 0} if format == "JPEG" else {"lossless": True} if format == "WEBP" else {}
    image = picture(24, 16).resize((48, 32), Image.Resampling.NEAREST)
    content = file_of(image, format, exif=exif(orientation), **options)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    opened = open_image(embedded(content))
    assert opened.size == expected.size == image_size(embedded(content))
    assert opened.tobytes() == expected.tobytes()
    assert (opened.size == (32, 48)) == (orientation >= 5)


def test_exif_after_the_pixels_of_a_png_counts_too():
    content = file_of(picture(30, 20), exif=exif(6))
    start = content.index(b"eXIf") - 4
    size = struct.unpack(">I", content[start : start + 4])[0] + 12
    chunk, rest = content[start : start + size], content[:start] + content[start + size :]
    end = rest.index(b"IEND") - 4
    late = rest[:end] + chunk + rest[end:]
    assert image_size(embedded(late)) == open_image(embedded(late)).size == (20, 30)


def test_files_in_memory_are_what_they_were_on_the_disk(tmp_path):
    for name, side in (("a.png", 4), ("b.png", 6)):
        picture(side, side).save(tmp_path / name)
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:50])
    parts = [Part(type="image", media=index) for index in range(3)]
    media = (at("a.png"), at("b.png"), at("cut.png"))
    sample = Sample(task="chat", media=media, messages=(Message(role="user", parts=tuple(parts)),))
    sample = sample.read_from(Opener(tmp_path), "rows:1")
    wanted = [media_key(one, sample.opener) for one in sample.media], sample.opener.open(sample.media[0]).tobytes()
    read = in_memory(sample, (0, 2))
    for name in ("a.png", "b.png", "cut.png"):
        (tmp_path / name).unlink()
    keys = [media_key(read.media[index], read.opener) for index in (0, 2)]
    assert (keys, read.opener.open(read.media[0]).tobytes()) == ([wanted[0][0], wanted[0][2]], wanted[1])
    assert (read.id, read.place, read.opener.size(read.media[0])) == (sample.id, "rows:1", (4, 4))
    assert (read.media[1], sample.media[0].bytes) == (media[1], None)
    with pytest.raises(BadSample, match=r"cut\.png: truncated or damaged"):
        read.opener.open(read.media[2])
    for name, limits, said in (("none.png", Limits(), "cannot be opened"), ("b.png", Limits(image_bytes=8), "limit")):
        picture(6, 6).save(tmp_path / "b.png")
        one = Sample(task="chat", media=(at(name),), messages=(Message(role="user", parts=(parts[0],)),))
        with pytest.raises(BadSample, match=said):
            in_memory(one.read_from(Opener(tmp_path, limits=limits), ""), (0,))


def test_a_file_is_read_once_for_its_key_until_it_changes(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(hashing, "read_bytes", lambda *given: read.append(1) or read_bytes(*given))
    file, opener = tmp_path / "a.png", Opener(tmp_path)

    def key(content, changed):
        """Of a file with such a time, asked for twice."""
        file.write_bytes(content)
        os.utime(file, ns=(changed, changed))
        keys = {media_key(at("a.png"), opener) for _ in range(2)}
        assert keys == {hashlib.sha256(content).digest()}
        times, read[:] = len(read), []
        return times

    old = time.time_ns() - 2 * hashing.SETTLED
    assert [key(b"one", old), key(b"two", old + 1), key(b"three", old + 1)] == [1, 1, 1]
    assert key(b"fresh", time.time_ns()) == 2  # it may change again without a sign
    assert key(b"three", old + 1) == 0
    file.unlink()
    with pytest.raises(BadSample, match="cannot be opened"):
        media_key(at("a.png"), opener)
    (tmp_path / "below").mkdir()
    key(b"outside", old)
    with pytest.raises(BadSample, match="outside"):
        media_key(at(str(file)), Opener(tmp_path / "below"))


def test_a_meaningless_orientation_is_ignored():
    media = embedded(file_of(picture(30, 20), "JPEG", exif=exif(9)))
    assert image_size(media) == open_image(media).size == (30, 20)


def test_alpha_lies_on_white():
    clear = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    half = Image.new("LA", (4, 4), (0, 128))
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([255, 0, 0] + [0] * 765)
    for image, options, expected in (
        (clear, {}, (255, 255, 255)),
        (half, {}, (127, 127, 127)),
        (palette, {"transparency": 0}, (255, 255, 255)),
        (Image.new("RGB", (4, 4), (9, 9, 9)), {"transparency": (9, 9, 9)}, (255, 255, 255)),
    ):
        assert open_image(embedded(file_of(image, **options))).getpixel((1, 1)) == expected


def test_the_background_can_be_chosen():
    half = Image.new("RGBA", (4, 4), (255, 255, 255, 128))
    assert Opener(background=(0, 0, 0)).open(embedded(file_of(half))).getpixel((0, 0)) == (128, 128, 128)
    assert Opener(background=(0, 0, 200)).open(embedded(file_of(half))).getpixel((0, 0)) == (128, 128, 228)


VALUES = np.array([[0, 128, 257 * 100, 65535]], np.uint16)


def test_sixteen_bits_are_scaled():
    big_endian = Image.frombytes("I;16B", (4, 1), VALUES.astype(">u2").tobytes())
    for content in (
        file_of(Image.fromarray(VALUES)),
        file_of(Image.fromarray(VALUES), "TIFF"),
        file_of(big_endian, "TIFF"),
    ):
        opened = open_image(embedded(content))
        assert [opened.getpixel((x, 0)) for x in range(4)] == [(0,) * 3, (0,) * 3, (100,) * 3, (255,) * 3]


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: bytes, interlace: int = 0) -> bytes:
    """A PNG written by hand; `rows` begin with their filter byte."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace))
    data = chunk(b"IDAT", zlib.compress(rows, 9))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + data + chunk(b"IEND", b"")


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def test_sixteen_bits_in_colour_and_with_alpha():
    colours = b"\0" + struct.pack(">6H", 65535, 257 * 100, 0, 0, 65535, 257 * 7)
    opened = open_image(embedded(png(2, 1, 16, 2, colours)))
    assert [opened.getpixel((x, 0)) for x in range(2)] == [(255, 100, 0), (0, 255, 7)]
    clear = b"\0" + struct.pack(">8H", 65535, 0, 0, 0, 0, 65535, 0, 65535)
    opened = open_image(embedded(png(2, 1, 16, 6, clear)))
    assert [opened.getpixel((x, 0)) for x in range(2)] == [(255, 255, 255), (0, 255, 0)]
    grey = b"\0" + struct.pack(">2H", 500, 65535 // 2)
    opened = open_image(embedded(png(2, 1, 16, 0, grey, chunk(b"tRNS", struct.pack(">H", 500)))))
    assert [opened.getpixel((x, 0)) for x in range(2)] == [(255, 255, 255), (127, 127, 127)]


def test_cmyk_has_the_right_colours():
    inks = {(0, 255, 255, 0): "red", (255, 0, 255, 0): "lime", (255, 255, 0, 0): "blue", (0, 0, 0, 255): "black"}
    for ink, name in inks.items():
        picture = Image.new("CMYK", (16, 16), ink)
        adobe = file_of(picture, "JPEG", quality=95)
        assert b"Adobe" in adobe  # which keeps the inks inverted; a TIFF does not
        expected = np.array(ImageColor.getrgb(name))
        for content in (adobe, file_of(picture, "TIFF")):
            assert abs(np.array(open_image(embedded(content)).getpixel((8, 8))) - expected).max() < 8


def test_other_colours():
    assert open_image(embedded(file_of(Image.new("1", (4, 4), 1)))).getpixel((0, 0)) == (255, 255, 255)
    for mode in ("F", "I"):
        with pytest.raises(BadSample, match=rf"32-bit values \(mode {mode}\) .* convert it to 8 or 16 bits"):
            open_image(embedded(file_of(Image.new(mode, (4, 4)), "TIFF")))


def test_lab_is_converted():
    lab = Image.new("LAB", (8, 8), (136, 209, 196))  # sRGB red: L 53, a 81, b 68
    red, green, blue = open_image(embedded(file_of(lab, "TIFF"))).getpixel((4, 4))
    assert red > 245
    assert max(green, blue) < 20


def test_a_damaged_exif_block_says_nothing():
    row = b"\0" + bytes(6)
    for block in (b"", b"MM", b"garbage " * 4, b"MM\0*\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff" + b"\x12\x01" * 9):
        media = embedded(png(2, 1, 8, 2, row, chunk(b"eXIf", block)))
        assert open_image(media).size == image_size(media) == (2, 1)


def test_colour_profiles_are_not_applied():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    content = file_of(Image.new("RGB", (8, 8), (10, 200, 30)), icc_profile=profile)
    assert open_image(embedded(content)).getpixel((0, 0)) == (10, 200, 30)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation(format):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue", "lime")]
    media = embedded(file_of(frames[0], format, save_all=True, append_images=frames[1:]))
    red, _, blue = open_image(media).getpixel((0, 0))
    assert red > 200 > 50 > blue
    assert image_frames(media) == 3
    assert image_frames(embedded(file_of(frames[0], format))) == 1
    refusing = Limits(animation="refuse")
    for read in (open_image, image_size):
        with pytest.raises(BadSample, match="is an animation or a document of 3 pictures; give the one") as error:
            read(media, limits=refusing)
        assert error.value.reason == "image_animated"
    assert image_size(embedded(file_of(frames[0], format)), limits=refusing) == (8, 8)


def test_previews_that_cameras_keep_in_a_jpeg_are_no_animation():
    frames = [picture(32, 32, seed) for seed in range(2)]
    media = embedded(file_of(frames[0], "MPO", save_all=True, append_images=frames[1:]))
    assert open_image(media, limits=Limits(animation="refuse")).size == (32, 32)
    assert image_frames(media) == 1


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated_pictures_are_refused(format, tmp_path):
    content = file_of(picture(), format)
    for keep in (len(content) // 2, len(content) * 9 // 10):
        (tmp_path / "photo.png").write_bytes(content[:keep])
        with pytest.raises(
            BadSample, match=r"^photo\.png: truncated or damaged picture \(.*\); replace the file\.$"
        ) as error:
            open_image(at("photo.png"), tmp_path)
        assert error.value.reason == "image_truncated"


def test_damaged_pixels_are_refused():
    content = bytearray(file_of(picture()))
    content[len(content) // 2] ^= 0xFF
    with pytest.raises(BadSample, match="truncated or damaged"):
        open_image(embedded(bytes(content)))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty"),
        (b"<!DOCTYPE html><html></html>", "is a web page"),
        (b"  <html>", "is a web page"),
        (b"<?xml version='1.0'?><svg xmlns='x'/>", "is an SVG drawing"),
        (b"\x00\x01\x02", r"no picture in a known format \(JPEG, PNG, WEBP, GIF, BMP, TIFF\)"),
        (b"%PDF-1.4", "is a PDF document, which is not read; convert it to JPEG, PNG or WebP"),
        (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf", "is an AVIF picture, which is not read as a picture; convert it"),
        (
            b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
            "is a HEIC picture, which is not read as a picture; convert it to JPEG",
        ),
        (b"\0\0\0\x18ftypmsf1\0\0\0\0hevcmsf1", "is a HEIF animation"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", "is a video, which is not read as a picture"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "is a JPEG XL picture"),
        (file_of(picture(8, 8), "PPM"), "no picture in a known format"),
        (file_of(picture(8, 8), "ICO"), "no picture in a known format"),
    ],
)
def test_what_is_no_picture(content, words):
    with pytest.raises(BadSample, match=words) as error:
        open_image(embedded(content))
    assert error.value.reason == "image_format"


def bomb(width: int, height: int, interlace: int = 0) -> bytes:
    """A PNG whose header promises many pixels, and which holds none of them."""
    return png(width, height, 8, 2, b"\0" * 1000, interlace=interlace)


def progressive(width: int, height: int) -> bytes:
    """A JPEG in many scans whose header promises many pixels."""
    content = file_of(picture(64, 64), "JPEG", progressive=True)
    at = content.index(b"\xff\xc2") + 5
    return content[:at] + struct.pack(">HH", height, width) + content[at + 4 :]


@pytest.mark.parametrize("make", [bomb, lambda w, h: bomb(w, h, interlace=1), progressive])
def test_bombs_of_every_kind_are_refused(make):
    for read in (open_image, image_size):
        with pytest.raises(BadSample, match="over the limit of 64 megapixels"):
            read(embedded(make(13_000, 13_000)))
        with pytest.raises(BadSample, match="over the limit of 32768 pixels a side; crop it"):
            read(embedded(make(33_000, 64)))


def test_a_whole_bomb_takes_no_memory():
    rows = (b"\0" + b"\0" * 13_000) * 13_000  # sound to the last pixel
    content = png(13_000, 13_000, 8, 0, rows)
    assert len(content) < 1 << 20
    del rows
    process = psutil.Process()
    before, started = process.memory_info().rss, time.process_time()
    with pytest.raises(BadSample, match=r"photo\.png: 13000 x 13000 pixels is over the limit of 64 megapixels"):
        open_image(embedded(content))
    assert process.memory_info().rss - before < 8 << 20
    assert time.process_time() - started < 0.1


def test_files_that_are_too_long_are_not_read():
    with pytest.raises(BadSample, match=r"1 MiB is over the limit of 0\.5 MiB; compress it") as error:
        image_size(embedded(b"\xff\xd8\xff" + b"\0" * (1 << 20)), limits=Limits(image_bytes=1 << 19))
    assert error.value.reason == "image_too_large"


@pytest.mark.parametrize("side", [8001, 10_000, 13_000, 50_000])
def test_bombs_are_refused_from_the_header(side, recwarn):
    for read in (open_image, image_size):
        with pytest.raises(BadSample, match="over the limit of 64 megapixels; resize it") as error:
            read(embedded(bomb(side, side)))
        assert error.value.reason == "image_too_large"
    assert not recwarn.list
    with pytest.raises(BadSample, match=r"photo\.png: 10000 x 6401 pixels is over the limit"):
        image_size(embedded(bomb(10_000, 6401)))
    assert image_size(embedded(bomb(10_000, 6400))) == (10_000, 6400)


def test_size_reads_the_header_only():
    assert image_size(embedded(bomb(3000, 2000))) == (3000, 2000)
    with pytest.raises(BadSample, match="truncated or damaged"):
        open_image(embedded(bomb(3000, 2000)))


def of_pillow(content: bytes) -> tuple[int, int, int]:
    opened = Image.open(io.BytesIO(content), formats=("JPEG",))
    turn = opened.getexif().get(0x0112, 1)
    return (*opened.size, turn if turn in range(1, 9) else 1)


JPEGS = [
    file_of(picture(31, 20), "JPEG"),
    file_of(picture(31, 20), "JPEG", progressive=True, exif=exif(6)),
    file_of(picture(31, 20).convert("L"), "JPEG", exif=exif(3), comment=b"x" * 50),
    file_of(picture(31, 20).convert("CMYK"), "JPEG", dpi=(300, 300), icc_profile=b"p" * 100),
    file_of(picture(31, 20), "JPEG", xmp=b'<x:xmpmeta tiff:Orientation="6"/>'),
]


def test_plain_jpegs_are_measured_from_their_first_bytes():
    assert [quick_size(io.BytesIO(content)) for content in JPEGS] == [*map(of_pillow, JPEGS[:4]), None]
    assert image_size(embedded(JPEGS[1])) == (20, 31)
    assert image_size(embedded(JPEGS[4])) == open_image(embedded(JPEGS[4])).size  # Pillow reads XMP, too


@settings(max_examples=1000, deadline=None)
@given(st.data())
def test_what_is_measured_quickly_is_what_pillow_says(data):
    content = bytearray(data.draw(st.sampled_from(JPEGS)))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, min(len(content) - 1, 400)))] = data.draw(st.integers(0, 255))
    content = bytes(content[: data.draw(st.integers(1, len(content)))])
    quick = quick_size(io.BytesIO(content))
    if quick is not None:
        assert quick == of_pillow(content)


# places


def test_paths_start_at_the_media_root(tmp_path):
    write_png(tmp_path / "a/b.png", picture(8, 9))
    assert open_image(at("a/b.png"), tmp_path).size == (8, 9)
    assert read_bytes(at("a/b.png"), tmp_path) == (tmp_path / "a/b.png").read_bytes()
    with pytest.raises(BadSample, match=r"^a/c\.png: cannot be opened \(No such file or directory\)") as error:
        open_image(at("a/c.png"), tmp_path)
    assert error.value.reason == "media_missing"
    with pytest.raises(BadSample, match="no media root is known"):
        open_image(at("a/b.png"))
    with pytest.raises(BadSample, match="is not a regular file"):
        open_image(at("a"), tmp_path)


def test_absolute_paths_need_an_allowed_root(tmp_path):
    file = write_png(tmp_path / "photos/b.png", picture())
    root = tmp_path / "data"
    root.mkdir()
    for media in (at(file.as_posix()), Media(kind="image", url=file.as_uri())):
        with pytest.raises(
            BadSample, match=r"lies outside the media root; allow its folder with --allow-root"
        ) as error:
            open_image(media, root)
        assert error.value.reason == "media_path"
        assert open_image(media, root, (tmp_path / "photos",)).size == (64, 64)
        with pytest.raises(BadSample, match="lies outside"):
            open_image(media, root, (tmp_path / "other",))
        with pytest.raises(BadSample, match="lies outside"):
            open_image(media, tmp_path / "photos")  # the root is for relative paths
    for escape in ("C:/Windows/x.png", "/etc/passwd", "/"):
        with pytest.raises(BadSample, match="lies outside the media root"):
            open_image(at(escape), root, (tmp_path / "photos",))


def test_links_must_not_leave_the_root(tmp_path):
    outside, root = tmp_path / "outside", tmp_path / "root"
    write_png(outside / "a.png", picture())
    write_png(root / "b.png", picture())
    try:
        (root / "inside.png").symlink_to(root / "b.png")
        (root / "link.png").symlink_to(outside / "a.png")
        (root / "folder").symlink_to(outside)
        (root / "loop.png").symlink_to(root / "loop.png")
    except OSError:
        pytest.skip("this system does not let us make links")
    assert open_image(at("inside.png"), root).size == (64, 64)
    for path in ("link.png", "folder/a.png"):
        with pytest.raises(BadSample, match="lies outside the media root"):
            open_image(at(path), root)
        assert open_image(at(path), root, (outside,)).size == (64, 64)
    with pytest.raises(BadSample, match="cannot be opened"):
        open_image(at("loop.png"), root)


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes in folders")
def test_pipes_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(BadSample, match="is not a regular file"):
        open_image(at("pipe.png"), tmp_path)


def test_data_urls():
    url = "data:image/png;base64," + base64.b64encode(file_of(picture(8, 9))).decode()
    assert open_image(Media(kind="image", url=url)).size == (8, 9)
    with pytest.raises(BadSample, match="base64 of this data URL is damaged"):
        open_image(Media(kind="image", url=url + "*"))
    with pytest.raises(BadSample, match="not a base64 data URL"):
        open_image(Media(kind="image", url="data:image/png,abc"))


def test_a_nul_in_an_address_is_a_missing_file(tmp_path):
    with pytest.raises(BadSample, match="cannot be opened"):
        open_image(Media(kind="image", url=(tmp_path / "a").as_uri() + "%00"), tmp_path, (tmp_path,))


@pytest.mark.parametrize("url", ["http://localhost/a.png", "https://example.com/a.png", "ftp://x/y", "HTTP://x/y"])
def test_addresses_are_never_fetched(url):
    with pytest.raises(
        BadSample, match="is an address, and data is never fetched while it is read; fetch it first"
    ) as error:
        open_image(Media(kind="image", url=url))
    assert error.value.reason == "media_remote"


def test_an_opener_augments_pictures_and_knows_their_size():
    media = embedded(file_of(picture()))
    plain, changed = Opener(), Opener(augmentation=Augmentation(shift=(2, 0), resize=1.5))
    assert changed.open(media).tobytes() == changed.open(media).tobytes() != plain.open(media).tobytes()
    assert changed.size(media) == changed.open(media).size == (96, 96)


def test_a_video_is_no_picture():
    with pytest.raises(BadSample, match=r"^clip\.mp4: is a video, not a picture\.$"):
        open_image(Media(kind="video", path="clip.mp4"))


def test_a_stated_size_is_taken_without_opening_and_checked_on_opening():
    opener = Opener()
    assert opener.size(Media(kind="image", bytes=b"", width=3, height=4)) == (3, 4)
    right = Media(kind="image", bytes=file_of(picture(8, 6)), origin="a.png", width=8, height=6)
    assert opener.open(right).size == Opener(augmentation=Augmentation(shift=(2, 0))).open(right).size == (8, 6)
    with pytest.raises(BadSample, match=r"a\.png: is 8 x 6 pixels upright, not 6 x 8 as stated; correct its width"):
        opener.open(right.model_copy(update={"width": 6, "height": 8}))
