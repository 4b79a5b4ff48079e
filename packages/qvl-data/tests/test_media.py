"""Pictures: upright, in RGB, whole; everything else refused with the file's name and the reason."""

import base64
import io
import os
import struct
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from qvl_data.augment import Augmentation
from qvl_data.errors import BadSample
from qvl_data.media import Opener, image_size, open_image, read_bytes
from qvl_data.sample import Media

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


def test_sixteen_bits_are_scaled():
    values = np.array([[0, 128, 257 * 100, 65535]], np.uint16)
    opened = open_image(embedded(file_of(Image.fromarray(values))))
    assert [opened.getpixel((x, 0)) for x in range(4)] == [(0,) * 3, (0,) * 3, (100,) * 3, (255,) * 3]


def test_other_colours():
    assert open_image(embedded(file_of(Image.new("CMYK", (9, 9), (0, 255, 255, 0)), "JPEG"))).getpixel((4, 4))[0] > 200
    assert open_image(embedded(file_of(Image.new("1", (4, 4), 1)))).getpixel((0, 0)) == (255, 255, 255)
    with pytest.raises(BadSample, match=r"32-bit values \(mode F\)"):
        open_image(embedded(file_of(Image.new("F", (4, 4)), "TIFF")))


def test_the_first_frame_of_an_animation():
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    content = file_of(frames[0], "GIF", save_all=True, append_images=frames[1:])
    red, _, blue = open_image(embedded(content)).getpixel((0, 0))
    assert red > 200 > 50 > blue


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


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises many pixels, and which holds none of them."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


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


@pytest.mark.parametrize("url", ["http://localhost/a.png", "https://example.com/a.png", "ftp://x/y", "HTTP://x/y"])
def test_addresses_are_never_fetched(url):
    with pytest.raises(
        BadSample, match="is an address, and data is never fetched while it is read; download it first"
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
