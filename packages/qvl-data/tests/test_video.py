"""Video files: the frames that are meant, the tokens and pixels of transformers, and a reason for every broken file."""

import copy
import io
import struct
import sys
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qvl_core.errors import BadInput
from qvl_data.augment import Augmentation
from qvl_data.chat import encode, length, prompt
from qvl_data.dataset import Dataset
from qvl_data.errors import BadSample
from qvl_data.limits import Limits
from qvl_data.media import Opener
from qvl_data.parquet import write_parquet
from qvl_data.sample import Media, Sample
from qvl_data.video import Header, cut, decode, probe

from .chats import file_of, picture
from .clips import KINDS, all_frames, number_of, write_clip, write_sound


def look(content: bytes, limits: Limits | None = None) -> Header:
    return probe(io.BytesIO(content), "clip.mp4", limits or Limits())


def take(content: bytes, header: Header, numbers: list[int], limits: Limits | None = None) -> np.ndarray:
    return decode(io.BytesIO(content), "clip.mp4", header, numbers, limits or Limits())


def take_all(content: bytes) -> np.ndarray:
    header = look(content)
    return take(content, header, list(range(header.frames)))


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_headers_and_frames(kind, tmp_path):
    content = write_clip(tmp_path / "clip", kind, count=31)
    header = look(content)
    assert (header.frames, header.fps, header.width, header.height) == (31, 10.0, 64, 48)
    numbers = [0, 1, 7, 7, 16, 30]
    taken = take(content, header, numbers)
    assert taken.shape == (6, 48, 64, 3)
    near = 3 if kind[1] == "msmpeg4" else 0.6  # old codecs keep colours badly
    for number, pixels in zip(numbers, taken, strict=True):
        assert abs(number_of(pixels, 31) - number) < near
        assert pixels[4, 4].min() > 200 > 60 > pixels[-4, -4, 0]
    if kind[0] not in ("mpegts", "flv"):  # whose own reader also wants an end
        np.testing.assert_array_equal(taken, all_frames(content)[numbers])


GROUPED = [
    (("mp4", "libx264"), {"g": "10", "bf": "2", "x264-params": "open-gop=1:keyint=10:min-keyint=10:scenecut=0"}),
    (("mp4", "libx264"), {"g": "12"}),
    (("matroska", "libx265"), {"x265-params": "keyint=10:min-keyint=10:open-gop=1:bframes=3:log-level=none"}),
    (("webm", "libvpx-vp9"), {"g": "8", "auto-alt-ref": "1", "lag-in-frames": "6"}),
    (("avi", "mpeg4"), {"g": "10", "bf": "2"}),
    (("mpegts", "libx264"), {"g": "10"}),
    (("mp4", "libx264"), {"x264-params": "intra-refresh=1:keyint=16"}),
]


@pytest.mark.parametrize(("kind", "options"), GROUPED, ids=lambda value: value[1] if isinstance(value, tuple) else "")
def test_frames_far_inside_equal_those_counted_from_the_start(kind, options, tmp_path):
    content = write_clip(tmp_path / "clip", kind, count=64, options=options, pattern=moving)
    header, frames = look(content), all_frames(content)
    assert header.frames == len(frames) == 64
    for numbers in ([0], [9, 10, 11], [39], [40], [41, 41], [63], [5, 55], [20, 21, 60, 62], list(range(64))):
        np.testing.assert_array_equal(take(content, header, numbers), frames[numbers])


def test_groups_of_pictures_that_are_not_needed_are_not_decoded(tmp_path):
    content = write_clip(tmp_path / "clip", count=200, options={"g": "10"}, pattern=moving)
    damaged = bytearray(content)
    damaged[content.index(b"mdat") + 1500 : content.index(b"mdat") + 1700] = b"\x5a" * 200  # in one of the first groups
    header = look(bytes(damaged))
    np.testing.assert_array_equal(take(bytes(damaged), header, [180, 190]), all_frames(content)[[180, 190]])
    with pytest.raises(BadSample, match="truncated or damaged video"):
        take(bytes(damaged), header, list(range(100)))


def moving(count, width, height):
    """Noise that moves, so that frames need each other."""
    noise = np.random.default_rng(0).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    noise = noise.repeat(4, 0).repeat(4, 1)
    for number in range(count):
        yield np.ascontiguousarray(np.roll(noise, (number, 2 * number), (0, 1)))


def test_odd_rates_and_uneven_times(tmp_path):
    content = write_clip(tmp_path / "clip", rate=Fraction(30000, 1001), count=12)
    assert look(content).fps == 30000 / 1001
    for kind in (("mp4", "libx264"), ("webm", "libvpx-vp9")):
        uneven = write_clip(tmp_path / "clip", kind, count=6, times=[0, 10, 500, 510, 2000, 2500])
        header = look(uneven)
        assert header.frames == 6
        assert take(uneven, header, [0, 2, 5]).shape[0] == 3


def test_a_fragmented_file_is_counted(tmp_path):
    content = write_clip(
        tmp_path / "clip", count=25, options={"g": "5"}, muxing={"movflags": "frag_keyframe+empty_moov"}
    )
    assert look(content).frames == 25 == len(take(content, look(content), list(range(25))))


def test_frames_outside_the_edit_list_are_no_frames(tmp_path):
    content = bytearray(write_clip(tmp_path / "clip", count=30, options={"bf": "0", "g": "5"}))
    at = content.index(b"elst") + 12
    scale = struct.unpack(">I", content[content.index(b"mdhd") + 16 :][:4])[0]
    content[at + 4 : at + 8] = struct.pack(">i", scale)  # begins a second later: ten frames are never shown
    header = look(bytes(content))
    assert header.frames == 20
    assert number_of(take(bytes(content), header, [0, 19])[0], 30) == pytest.approx(10, abs=0.6)


MATRICES = {  # as phones write them, and where the white corner then lies (row, column)
    0: ((1, 0, 0, 1), (4, 4)),
    90: ((0, 1, -1, 0), (4, -4)),
    180: ((-1, 0, 0, -1), (-4, -4)),
    270: ((0, -1, 1, 0), (-4, 4)),
}


@pytest.mark.parametrize("turn", MATRICES)
def test_turned_videos_are_shown_upright(turn, tmp_path):
    content = bytearray(write_clip(tmp_path / "clip"))
    (a, b, c, d), corner = MATRICES[turn]
    at = content.index(b"tkhd") + 4 + 40
    content[at : at + 20] = struct.pack(">5i", a << 16, b << 16, 0, c << 16, d << 16)
    header = look(bytes(content))
    assert (header.width, header.height) == ((48, 64) if turn in (90, 270) else (64, 48))
    pixels = take(bytes(content), header, [0, 29])[0]
    assert pixels.shape == (header.height, header.width, 3)
    corners = {where: int(pixels[where].min()) for _, where in MATRICES.values()}
    assert max(corners, key=corners.__getitem__) == corner


def test_a_part_between_two_seconds():
    header = Header(100, 10.0, 64, 48, "h264")
    assert cut(header, None, None, "x") == range(100)
    assert cut(header, 2.5, 4.0, "x") == range(25, 41)
    assert cut(header, 2.51, None, "x") == range(26, 100)
    assert cut(header, 0.7, 0.7, "x") == range(7, 8)  # 0.7 * 10 is 7.000000000000001
    assert cut(header, None, 500.0, "x") == range(100)
    for start, end in ((4.0, 3.0), (10.0, None), (0.01, 0.02)):
        with pytest.raises(BadSample, match="nothing lies between its seconds") as caught:
            cut(header, start, end, "x")
        assert caught.value.reason == "video_cut"


# in chats


def chat(*videos: Media, root=None) -> Sample:
    parts = [{"type": "video", "media": i} for i in range(len(videos))]
    sample = Sample.model_validate(
        {
            "task": "chat",
            "id": "s",
            "media": [video.model_dump() for video in videos],
            "messages": [
                {"role": "user", "parts": [*parts, {"type": "text", "text": "What happens?"}]},
                {"role": "assistant", "parts": [{"type": "text", "text": "It turns green."}]},
            ],
        }
    )
    return sample.read_from(Opener(root), "data.jsonl:3")


def clip(content: bytes, **video: float) -> Media:
    return Media.model_validate({"kind": "video", "bytes": content, "origin": "clip.mp4", "video": video or None})


def of_transformers(processor, *clips):
    """What transformers makes of (all frames, rate), sampling them itself."""
    videos = [{"type": "video", "video": frames} for frames, _ in clips]
    messages = [
        {"role": "user", "content": [*videos, {"type": "text", "text": "What happens?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "It turns green."}]},
    ]
    metadata = [{"total_num_frames": len(frames), "fps": fps} for frames, fps in clips]
    return processor.apply_chat_template(
        messages,
        tokenize=True,
        return_dict=True,
        return_tensors="np",
        processor_kwargs={"video_metadata": metadata, "do_sample_frames": True},
    )


def assert_same(ours, theirs):
    np.testing.assert_array_equal(ours.ids, theirs["input_ids"][0])
    np.testing.assert_array_equal(ours.types, theirs["mm_token_type_ids"][0])
    np.testing.assert_array_equal(ours.video_grid, np.asarray(theirs["video_grid_thw"]))
    np.testing.assert_array_equal(ours.videos, np.asarray(theirs["pixel_values_videos"]))


@pytest.fixture(scope="module")
def light(processor, tmp_path_factory):
    pytest.importorskip("tokenizers", reason="needs the extra `tokens`")
    from qvl_data.processor import open_processor

    folder = tmp_path_factory.mktemp("processor")
    processor.save_pretrained(folder)
    return open_processor(folder)


@pytest.mark.parametrize(
    ("kind", "count", "size", "rate"),
    [
        (("mp4", "libx264"), 30, (64, 48), 10),
        (("mp4", "libx264"), 47, (320, 240), Fraction(30000, 1001)),
        (("mp4", "libx264"), 3, (34, 50), 25),
        (("webm", "libvpx-vp9"), 61, (96, 160), 24),
        (("webm", "libvpx-vp9"), 20, (64, 64), Fraction(15, 2)),
    ],
)
def test_tokens_and_pixels_equal_transformers(kind, count, size, rate, processor, light, tmp_path):
    content = write_clip(tmp_path / "clip", kind, count, size, rate)
    sample = chat(clip(content))
    ours = encode(sample, processor)
    assert_same(ours, of_transformers(processor, (all_frames(content), float(rate))))
    assert length(sample, processor) == length(sample, light) == len(ours)
    asked, _ = prompt(sample, processor)
    np.testing.assert_array_equal(asked.videos, ours.videos)


def test_two_videos_by_path_and_by_bytes(processor, light, tmp_path):
    one = write_clip(tmp_path / "one.mp4", count=20)
    two = write_clip(tmp_path / "two.webm", ("webm", "libvpx-vp9"), count=31, size=(96, 64), rate=8)
    sample = chat(Media(kind="video", path="one.mp4"), clip(two), root=tmp_path)
    ours = encode(sample, processor)
    assert_same(ours, of_transformers(processor, (all_frames(one), 10.0), (all_frames(two), 8.0)))
    assert length(sample, light) == len(ours)


def test_start_end_and_a_rate_of_its_own(processor, light, tmp_path):
    content = write_clip(tmp_path / "clip", count=60)
    sample = chat(clip(content, start=2.0, end=4.0, fps=5.0))
    ours = encode(sample, processor)
    text = processor.tokenizer.decode(ours.ids)
    stamps = [float(part.split(" seconds>")[0]) for part in text.split("<") if " seconds>" in part]
    numbers = np.linspace(0, 20, 10).round().astype(int) + 20  # 21 frames, 5 of 10 per second
    times = numbers / 10
    assert stamps == pytest.approx([(a + b) / 2 for a, b in zip(times[::2], times[1::2], strict=True)], abs=0.05)
    expected = processor.video_processor(
        [all_frames(content)[numbers]],
        video_metadata=[{"total_num_frames": 21, "fps": 10.0, "frames_indices": numbers.tolist()}],
        do_sample_frames=False,
    )
    np.testing.assert_array_equal(ours.videos, np.asarray(expected["pixel_values_videos"]))
    assert length(sample, light) == len(ours)


def test_augmented_frames_and_their_length(processor, light, tmp_path):
    sample = chat(clip(write_clip(tmp_path / "clip", size=(160, 120))))
    augmentation = Augmentation(window=(0.5, 0.5, 0.6), flip=True)
    changed = sample.read_from(replace(sample.opener, augmentation=augmentation), sample.place)
    ours = encode(changed, processor)
    assert length(changed, light) == length(changed, processor) == len(ours) < len(encode(sample, processor))


def test_one_frame_is_no_video(processor, light, tmp_path):
    sample = chat(clip(write_clip(tmp_path / "clip", count=1)))
    for read in (lambda: encode(sample, processor), lambda: length(sample, light)):
        with pytest.raises(BadSample, match=r"^data\.jsonl:3: clip\.mp4: a video of 1 frame, .* picture\.$") as caught:
            read()
        assert (caught.value.reason, caught.value.sample_id) == ("media_size", "s")


def test_videos_lie_below_the_root(processor, tmp_path):
    write_clip(tmp_path / "clip.mp4")
    (tmp_path / "data").mkdir()
    sample = chat(Media(kind="video", path=(tmp_path / "clip.mp4").as_posix()), root=tmp_path / "data")
    for read in (encode, length):
        with pytest.raises(BadSample, match="lies outside the media root; allow its folder with --allow-root"):
            read(sample, processor)
    with pytest.raises(BadSample, match="is a picture, not a video"):
        Opener().video(Media(kind="image", bytes=file_of(picture())))


def test_a_container_keeps_what_lengths_need(processor, tmp_path):
    content = write_clip(tmp_path / "clip", count=20, size=(160, 120))
    embedded = clip(content).model_copy(update={"width": 160, "height": 120})
    write_parquet([chat(embedded)], tmp_path / "train.parquet")
    data = Dataset(tmp_path, split="train")
    assert length(data.outline(0), processor) == len(encode(data[0], processor))


def test_a_stated_size_is_checked(good):
    right = clip(good).model_copy(update={"width": 160, "height": 120})
    assert Opener().video(right).width == 160
    with pytest.raises(BadSample, match=r"clip\.mp4: is 160 x 120 pixels upright, not 120 x 160 as stated") as caught:
        Opener().video(right.model_copy(update={"width": 120, "height": 160}))
    assert caught.value.reason == "media_stated_size"


def test_a_processor_that_miscounts_is_noticed(processor, tmp_path):
    wrong = copy.deepcopy(processor)
    wrong.video_processor.get_num_of_video_patches = lambda frames, height, width: 4 * frames
    with pytest.raises(BadSample, match="tokens stand for media that fill") as caught:
        encode(chat(clip(write_clip(tmp_path / "clip", size=(160, 120)))), wrong)
    assert caught.value.reason == "media_size"


# broken and hostile files


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("good") / "clip", count=60, size=(160, 120))


def box(content: bytes, name: bytes, offset: int, *numbers: int) -> bytes:
    """The file with numbers of 4 bytes written into a box."""
    at = content.index(name) + 4 + offset
    return content[:at] + struct.pack(f">{len(numbers)}I", *numbers) + content[at + 4 * len(numbers) :]


def broken(good: bytes, folder) -> dict[str, tuple[bytes, str, str]]:
    """File, reason and words of what is said, by name."""
    front = write_clip(folder / "f", count=60, size=(160, 120), muxing={"movflags": "faststart"})
    files = {
        kind[0]: write_clip(folder / "x", kind, count=60, size=(160, 120))
        for kind in (("webm", "libvpx-vp9"), ("avi", "mpeg4"), ("flv", "libx264"))
    }
    middle = len(good) // 3
    return {
        "empty": (b"", "video_format", "the file is empty"),
        "text": (b"hello " * 99, "video_format", "no video in a known container"),
        "picture": (file_of(picture()), "video_format", "is a PNG picture, not a video"),
        "gif": (file_of(picture(8, 8), "GIF")[:150], "video_format", "is a GIF picture"),
        "webp": (file_of(picture(), "WEBP"), "video_format", "is a WebP picture"),
        "playlist": (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "video_format", "no video in a known"),
        "list of files": (b"ffconcat version 1.0\nfile /etc/passwd\n", "video_format", "no video in a known"),
        "sound": (write_sound(folder / "s"), "video_stream", "holds sound but no video"),
        "half": (good[: len(good) // 2], "video_truncated", "truncated or damaged video"),
        "no index": (good[: good.index(b"moov") + 8], "video_truncated", "holds nothing that can be shown"),
        "half, index first": (front[: len(front) * 6 // 10], "video_truncated", "its index goes on to byte"),
        "half a WebM": (
            files["webm"][: len(files["webm"]) // 2],
            "video_truncated",
            r"truncated video \(\d+ of \d+ bytes",
        ),
        "an AVI without its end": (files["avi"][:-200], "video_truncated", "truncated video"),
        "an FLV cut inside a frame": (
            files["flv"][: len(files["flv"]) * 95 // 100],
            "video_truncated",
            "truncated or damaged",
        ),
        "noise in a frame": (good[:middle] + b"\x5a" * 200 + good[middle + 200 :], "video_truncated", "damaged"),
        "noise behind ftyp": (b"\0\0\0\x18ftypmp42" + b"\xa5" * 5000, "video_truncated", "damaged"),
        "10^9 frames": (box(good, b"stsz", 8, 10**9), "video_truncated", "replace"),
        "10^9 frames of one byte": (box(good, b"stsz", 4, 1, 10**9), "video_truncated", "replace"),
    }


NAMES = [
    "empty",
    "text",
    "picture",
    "gif",
    "webp",
    "playlist",
    "list of files",
    "sound",
    "half",
    "no index",
    "half, index first",
]
NAMES += ["half a WebM", "an AVI without its end", "an FLV cut inside a frame", "noise in a frame", "noise behind ftyp"]
NAMES += ["10^9 frames", "10^9 frames of one byte"]


@pytest.fixture(scope="module")
def broken_files(good, tmp_path_factory):
    files = broken(good, tmp_path_factory.mktemp("broken"))
    assert list(files) == NAMES
    return files


@pytest.mark.parametrize("name", NAMES)
def test_broken_files_have_a_reason(name, broken_files):
    content, reason, words = broken_files[name]
    before = psutil.Process().memory_info().rss
    with pytest.raises(BadSample, match=words) as caught:
        take_all(content)
    assert caught.value.reason == reason
    assert caught.value.place == "clip.mp4"
    assert psutil.Process().memory_info().rss - before < 64 << 20


def test_a_header_that_lies_about_the_number_of_frames(good):
    header = look(good)
    more, fewer = replace(header, frames=70), replace(header, frames=50)
    with pytest.raises(BadSample, match=r"holds 60 frames, not 70 as it states; write it again") as caught:
        take(good, more, [0, 69])
    assert caught.value.reason == "video_count"
    with pytest.raises(BadSample, match=r"holds more than the 50 frames it states") as caught:
        take(good, fewer, [0, 49])
    assert caught.value.reason == "video_count"
    with pytest.raises(BadSample, match=r"holds a frame of 160 x 120 pixels, not 120 x 160 as its header") as caught:
        take(good, replace(header, width=120, height=160), [0])
    assert caught.value.reason == "video_frames"


def test_an_encoding_notices_the_lie(good, processor, monkeypatch):
    sample = chat(clip(good))
    true = Opener.video
    monkeypatch.setattr(Opener, "video", lambda self, media: replace(true(self, media), frames=70))
    with pytest.raises(BadSample, match=r"^data\.jsonl:3: clip\.mp4: holds 60 frames, not 70") as caught:
        encode(sample, processor)
    assert (caught.value.reason, caught.value.sample_id) == ("video_count", "s")


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Limits(video_bytes=1000), "GiB is over the limit"),
        (Limits(video_frames=59), "60 frames, 6 seconds, is over the limit of 59 frames"),
        (Limits(video_seconds=5), "is over the limit of"),
        (Limits(pixels=160 * 120 - 1), "160 x 120 pixels are over the limit of"),
        (Limits(side=159), "159 pixels a side"),
        (Limits(clip_pixels=160 * 120 * 60 - 1), "60 frames of 160 x 120 are over the limit .* media.max_frames"),
    ],
)
def test_limits(limits, words, good):
    with pytest.raises(BadSample, match=words) as caught:
        take(good, look(good, limits), list(range(60)), limits)
    assert caught.value.reason == "video_too_large"
    assert caught.value.place == "clip.mp4"


def test_too_many_packets_are_not_counted_to_the_end(tmp_path):
    content = write_clip(tmp_path / "clip", ("webm", "libvpx-vp9"))
    with pytest.raises(BadSample, match="holds more than 10 frames; cut it"):
        look(content, Limits(video_frames=10))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_anywhere_never_crashes(good, broken_files, data):
    content = bytearray(data.draw(st.sampled_from([good, broken_files["half a WebM"][0], broken_files["sound"][0]])))
    for at in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=8)):
        content[at] = data.draw(st.integers(0, 255))
    content = bytes(content[: data.draw(st.integers(0, len(content)))]) if data.draw(st.booleans()) else bytes(content)
    with suppress(BadSample):
        header = look(content)
        numbers = sorted({0, header.frames // 2, header.frames - 1})
        assert take(content, header, numbers).shape == (len(numbers), header.height, header.width, 3)


def test_without_pyav_the_extra_is_named(good, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(BadInput, match=r'pip install "qvl-data\[video\]"'):
        look(good)
