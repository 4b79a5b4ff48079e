"""Conversations: what is shown and remembered, how tokens are drawn, and what is typed on the terminal."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from command import qvl_sft
from PIL import Image

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.generate import Sampling, inputs_of
from qvl_core.qwen3vl.tiny import CHAT_TEMPLATE, tiny, tiny_model, tiny_processor
from qvl_data.chat import encode, prompt
from qvl_data.dataset import Dataset
from qvl_data.sample import Sample
from qvl_sft import Chat, load_trained
from qvl_sft.chat import Screen

THINKING = CHAT_TEMPLATE.replace(
    "{{- '<|im_start|>assistant\\n' if add", "{{- '<|im_start|>assistant\\n<think>\\n' if add"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("chat") / "tiny")


@pytest.fixture(scope="module")
def parts() -> tuple[Any, Any]:
    processor = tiny_processor()
    return tiny_model(processor.tokenizer), processor


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("pictures") / "red.png"
    Image.new("RGB", (64, 64), "red").save(file)
    return file


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds that become white."""
    file = tmp_path_factory.mktemp("videos") / "clip.mp4"
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for number in range(16):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 16 * number, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file


def scripted(model: Any, tokenizer: Any, answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the model write `answer`, whatever it is asked; `<stop>` in it is a Ctrl-C."""

    def generate(input_ids: torch.Tensor, streamer: Any = None, **_: Any) -> torch.Tensor:
        tokens = tokenizer(answer.split("<stop>")[0], return_tensors="pt")["input_ids"]
        if streamer is not None:
            streamer.put(input_ids)
            for token in tokens[0]:
                streamer.put(token[None])
        if "<stop>" in answer:
            raise KeyboardInterrupt
        if streamer is not None:
            streamer.end()
        return torch.cat([input_ids, tokens], 1)

    monkeypatch.setattr(model, "generate", generate)


def test_a_conversation_is_the_sample_of_its_turns(parts: tuple[Any, Any], picture: Path, video: Path) -> None:
    """What the model reads at the second question equals what a sample of all turns is encoded to."""
    model, processor = parts
    chat = Chat(model, processor, system="Be brief.")
    pieces: list[str] = []
    first = chat.ask("What is this?", [picture, Image.new("RGB", (64, 96))], pieces.append, max_new_tokens=4)
    assert "".join(pieces) == first
    read: list[torch.Tensor] = []
    hook = model.register_forward_pre_hook(lambda *args: read.append(args[2]["input_ids"]), with_kwargs=True)
    second = chat.ask("And this?", [video], max_new_tokens=1)
    hook.remove()
    assert [one.kind for one in chat.media] == ["image", "image", "video"]
    texts = ["Be brief.", "What is this?", first, "And this?", second]
    said = chat._sample("", chat.media, chat.messages)
    assert [message.text for message in said.messages] == texts
    asked = prompt(said, processor)[0]
    assert read[0][0].tolist() == asked.ids.tolist()
    assert asked.image_grid is not None
    assert asked.video_grid is not None
    assert asked.image_grid[:, 1:].tolist() == [[4, 4], [6, 4]]
    assert asked.video_grid.tolist() == [[2, 4, 4]]  # 4 frames of 2 seconds
    chat.reset()
    assert (chat.media, chat.messages, chat.system) == ([], [], "Be brief.")


def test_the_distribution_that_is_drawn_from(parts: tuple[Any, Any]) -> None:
    """Frequencies of the first token against the softmax, cut as the settings say: by hand, from the logits."""
    model, processor = parts
    question = Sample.model_validate(
        {"task": "text", "messages": [{"role": role, "parts": [{"type": "text", "text": "Hi"}]} for role in
                                      ("user", "assistant")]}
    )  # fmt: skip
    inputs = inputs_of(model, processor.tokenizer, [prompt(question, processor)[0]])
    with torch.no_grad():
        logits = model(**inputs).logits[0, -1].double()
    scores, order = (logits / 0.5).softmax(0).sort(descending=True)

    def drawn(**settings: Any) -> torch.Tensor:
        torch.manual_seed(0)
        options = Sampling(temperature=0.5, **settings).options(model.generation_config)
        options |= {"num_return_sequences": 1000, "pad_token_id": processor.tokenizer.pad_token_id}
        tokens = model.generate(**inputs, **options, max_new_tokens=1)
        return tokens[:, -1].bincount(minlength=len(logits))[order].double() / 1000

    nucleus = int((scores.cumsum(0) < 0.3).sum()) + 1
    kept = {
        "all": ({}, len(scores)),  # the library alone would keep 50
        "top_p": ({"top_p": 0.3}, nucleus),
        "top_k": ({"top_k": 3}, 3),
        "min_p": ({"min_p": 0.5}, int((scores >= 0.5 * scores[0]).sum())),
    }
    for name, (settings, count) in kept.items():
        expected = torch.where(torch.arange(len(scores)) < count, scores, 0.0)
        expected /= expected.sum()
        found = drawn(**settings)
        assert not found[count:].any(), name
        assert (found - expected).abs().max() < 0.05, name
    assert drawn()[50:].sum() > 0.1


def test_the_checkpoints_own_settings_hold_until_others_are_given(parts: tuple[Any, Any]) -> None:
    own = parts[0].generation_config.__class__(do_sample=True, temperature=0.7, top_p=0.8, top_k=20)
    assert Sampling().options(own) == {"do_sample": False}
    assert Sampling(1.0, top_k=0).options(own) == {
        "do_sample": True, "temperature": 1.0, "top_p": 0.8, "top_k": 0, "min_p": None,
    }  # fmt: skip


def test_thinking_is_dimmed_and_kept(
    parts: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, _ = parts
    processor = tiny_processor()
    processor.chat_template = THINKING
    scripted(model, processor.tokenizer, "Two and two.\n</think>\n\nFour.", monkeypatch)
    chat = Chat(model, processor)
    assert chat.thinks
    assert not Chat(*parts).thinks
    monkeypatch.setenv("FORCE_COLOR", "1")
    chat.ask("2 + 2?", write=Screen(chat.thinks))
    shown = capsys.readouterr().out
    assert shown.index("\x1b[2m") < shown.index("Two") < shown.index("\x1b[0m") < shown.index("Four.")
    assert "\x1b[2mFour" not in shown
    chat.save(tmp_path / "said.jsonl")
    (saved,) = Dataset(tmp_path / "said.jsonl")
    assert saved.messages[-1].text == "<think>\nTwo and two.\n</think>\n\nFour."
    chat.ask("Sure?")
    assert len(chat.messages) == 4


def test_a_saved_conversation_is_training_data(
    parts: tuple[Any, Any], picture: Path, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = parts
    scripted(model, processor.tokenizer, "Red.", monkeypatch)
    chat = Chat(model, processor)
    with pytest.raises(BadInput, match="there is nothing to save yet"):
        chat.save(tmp_path / "said.jsonl")
    chat.ask("Which colour?", [picture, video])
    chat.save(tmp_path / "said.jsonl")
    chat.ask("Sure?")
    chat.save(tmp_path / "said.jsonl")  # its own file is written anew
    other = Chat(model, processor)
    other.ask("Hello")
    with pytest.raises(BadInput, match="is already there"):
        other.save(tmp_path / "said.jsonl")
    (saved,) = Dataset(tmp_path / "said.jsonl")
    assert [message.text for message in saved.messages] == ["Which colour?", "Red.", "Sure?", "Red."]
    encoded = encode(saved, processor)
    learned = encoded.ids[encoded.labels >= 0]
    assert processor.tokenizer.decode(learned) == "Red.<|im_end|>Red.<|im_end|>"
    assert encoded.images is not None
    assert encoded.videos is not None
    assert str(tmp_path) not in (tmp_path / "said.jsonl").read_text(encoding="utf-8")  # no path of this machine
    assert (tmp_path / "red.png").read_bytes() == picture.read_bytes()


@pytest.fixture
def typing(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Callable[..., str]:
    """Hold a conversation by typing lines; what was printed."""

    def type_lines(*lines: str, options: tuple[str, ...] = ()) -> str:
        waiting = iter(lines)

        def typed(_: str) -> str:
            try:
                return next(waiting)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr("builtins.input", typed)
        done = qvl_sft("chat", str(folder), "--max-new-tokens", "2", *options)
        assert done.code == 0, done.err
        return done.out + done.err

    return type_lines


def test_the_terminal(typing: Callable[..., str], picture: Path, video: Path, tmp_path: Path) -> None:
    out = typing(
        f"/image {picture}", f"/video {video}", "What?", "/system Be brief.", "And?",
        f"/save {tmp_path / 'said.jsonl'}", "/nothing", "/save", "/image", "/reset", "Hello", "/quit", "never read",
        options=("--image", str(picture), "--image-tokens", "4", "--temperature", "1", "--min-p", "0.1"),
    )  # fmt: skip
    assert "(2 for the next question)" in out
    assert "(3 for the next question)" in out
    assert "/save: name a file." in out
    assert "/image: name a file." in out
    assert "There is no /nothing; there are /image FILE, /video FILE" in out
    said = json.loads((tmp_path / "said.jsonl").read_text(encoding="utf-8"))
    assert [message["role"] for message in said["messages"]] == ["system", *("user", "assistant") * 2]
    assert [part["type"] for part in said["messages"][1]["parts"]] == ["image", "image", "video", "text"]


def test_what_cannot_be_read_is_one_sentence_and_the_conversation_goes_on(
    typing: Callable[..., str], video: Path, tmp_path: Path
) -> None:
    (tmp_path / "half.mp4").write_bytes(video.read_bytes()[:200])
    (tmp_path / "empty.mp4").touch()
    out = typing(
        "/image no.png", f"/video {tmp_path / 'half.mp4'}", "What?", f"/video {tmp_path / 'empty.mp4'}", "What?",
        "/save said.xyz", "Hello", "/save", f"/save {tmp_path / 'said.jsonl'}",
    )  # fmt: skip
    assert "no.png: there is no such picture." in out
    assert f"{tmp_path / 'half.mp4'}: " in out
    assert f"{tmp_path / 'empty.mp4'}: " in out
    assert "said.xyz: " in out
    said = json.loads((tmp_path / "said.jsonl").read_text(encoding="utf-8"))
    assert [message["role"] for message in said["messages"]] == ["user", "assistant"]
    assert not said.get("media")


def test_budgets_are_those_of_a_recipe(parts: tuple[Any, Any], video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qvl_sft import chat as room

    monkeypatch.setattr(room, "load_trained", lambda *_, **__: (parts[0], tiny_processor()))
    grids, frame_tokens = [], []

    def remembered(sample: Sample, processor: Any) -> Any:
        question, reference = prompt(sample, processor)
        grids.append(tuple(question.video_grid[0].tolist()))  # pairs of frames, and patches: two are a token's side
        frame_tokens.append(processor.video_processor.max_video_tokens)
        return question, reference

    monkeypatch.setattr(room, "encode_prompt", remembered)

    def grid(*options: str) -> tuple[int, int, int]:
        done = qvl_sft("chat", "tiny", "What?", "--video", str(video), "--max-new-tokens", "1", *options)
        assert done.code == 0, done.err
        return grids.pop()

    assert grid() == (2, 4, 4)
    assert grid("--video-tokens", "2") == (2, 2, 2)
    assert grid("--frame-tokens", "9") == (2, 4, 4)
    assert frame_tokens.pop() == 9
    assert grid("--fps", "8") == (8, 4, 4)
    assert grid("--fps", "8", "--max-frames", "6") == (3, 4, 4)
    assert grid("--min-frames", "8") == (4, 4, 4)
    asked = ("chat", "tiny", "What?", "--video", str(video))
    for options, sentence in (
        (("--min-frames", "8", "--max-frames", "4"), "media: min_frames (8) is over max_frames (4)"),
        (("--max-pixels", "4096", "--image-tokens", "4"), "--max-pixels and --image-tokens say the same; give one."),
    ):
        done = qvl_sft(*asked, *options)
        assert (done.code, sentence in done.err, "Traceback" in done.err) == (2, True, False), done.err


def test_a_broken_off_answer(parts: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from qvl_sft import chat as room

    model, processor = parts
    scripted(model, processor.tokenizer, "Well, <stop>", monkeypatch)
    chat, waiting, lines = Chat(model, processor), [room.showable(Image.new("RGB", (64, 64)))], iter(["What?", "/quit"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    monkeypatch.setattr("sys.stdout", out := io.StringIO())
    room._converse(chat, chat.ask, waiting)
    assert "Well, \n(broken off; the question does not count)" in out.getvalue()
    assert not chat.messages
    assert len(waiting) == 1  # for the question that is asked again


def test_a_seed_repeats_what_is_drawn(folder: Path) -> None:
    def said(seed: int) -> str:
        done = qvl_sft("chat", str(folder), "Hi", "--temperature", "1", "--max-new-tokens", "8", "--seed", str(seed))
        assert done.code == 0, done.err
        return done.out

    assert said(1) == said(1) != said(2)


def test_spread_by_accelerate_says_the_same(folder: Path, parts: tuple[Any, Any], picture: Path) -> None:
    """Here there is one device to spread to; on several, accelerate moves what a layer reads."""
    spread, processor = load_trained(str(folder), spread=True)
    assert spread.hf_device_map
    here = load_trained(str(folder))
    options = {"max_new_tokens": 6}
    assert Chat(spread, processor).ask("What?", [picture], **options) == Chat(*here).ask("What?", [picture], **options)
    with pytest.raises(BadInput, match="exclude each other"):
        load_trained(str(folder), spread=True, quantization="nf4")
