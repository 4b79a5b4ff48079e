"""Chats spelled out by hand, piece by piece, as the templates write them: what is learned, by other means.

    ids, weights = spelled(sample, processor, prompts=False)

Each piece of text knows its weight; the text between two special tokens is tokenized, and a token has the weight of the
character that it begins with.
"""

from typing import Any

import numpy as np

from qvl_data.sample import Message, Sample

START, END = "<|im_start|>", "<|im_end|>"
Piece = tuple[str, Any, float]  # what it is, its text or number, its weight


def pieces(sample: Sample, thinking: bool, prompts: bool) -> list[Piece]:
    """What the template writes: special tokens, texts, pictures and videos."""
    messages, found = sample.messages, []
    asked = max((place for place, message in enumerate(messages) if message.role == "user"), default=-1)
    last = max(place for place, message in enumerate(messages) if message.role == "assistant" and message.trained)
    for place, message in enumerate(messages):
        if message.role == "tool":
            found += _tool(messages, place)
            continue
        found += [("special", START, 0.0), ("text", f"{message.role}\n", 0.0)]
        if message.role == "assistant":
            weight = 0.0 if not message.trained else 1.0 if message.weight is None else message.weight
            final = place == len(messages) - 1
            found += _answer(message, weight, thinking, final, place > asked)
            found += [("special", END, weight), ("text", "\n", 0.0)]
            continue
        typed = message.text.startswith("<tool_response>")  # nobody could tell it from a tool's turn
        own = float(prompts and place < last and not typed)
        found += [(part.type, part.media if part.text is None else part.text, own) for part in message.parts]
        found += [("special", END, 0.0), ("text", "\n", 0.0)]
    return found


def _tool(messages: tuple[Message, ...], place: int) -> list[Piece]:
    """Results in a row share a turn of the user's; nothing of it is learned."""
    text = f"\n<tool_response>\n{messages[place].text}\n</tool_response>"
    found: list[Piece] = [("text", text, 0.0)]
    if place == 0 or messages[place - 1].role != "tool":
        found = [("special", START, 0.0), ("text", f"user{text}", 0.0)]
    if place + 1 == len(messages) or messages[place + 1].role != "tool":
        found += [("special", END, 0.0), ("text", "\n", 0.0)]
    return found


def _answer(message: Message, weight: float, thinking: bool, final: bool, current: bool) -> list[Piece]:
    """A Thinking template gives the opening of the last answer, and takes the reasoning out of earlier ones."""
    said = message.text
    if not thinking:
        return [("text", said, weight)]
    thought = ""
    if "</think>" in said:
        thought = said.split("</think>")[0].rpartition("<think>")[2].strip("\n")
        said = said.rpartition("</think>")[2].lstrip("\n")
    if not (final or (thought and current)):
        return [("text", said, weight)]
    if thought:
        return [("text", "<think>\n", 0.0), ("text", f"{thought}\n</think>\n\n{said}", weight)]
    return [("text", "<think>\n\n</think>\n\n", 0.0), ("text", said, weight)]


def spelled(sample: Sample, processor: Any, prompts: bool = False) -> tuple[list[int], list[float]]:
    """Ids and the weight of each."""
    tokenizer = processor.tokenizer
    ids: list[int] = []
    weights: list[float] = []
    waiting: list[tuple[str, float]] = []

    def write_text() -> None:
        text = "".join(part for part, _ in waiting)
        of_characters = [weight for part, weight in waiting for _ in part]
        waiting.clear()
        done = tokenizer(text, return_offsets_mapping=True, split_special_tokens=True, add_special_tokens=False)
        ids.extend(done.input_ids)
        weights.extend(of_characters[start] for start, _ in done.offset_mapping)

    def write(token: str, weight: float = 0.0, times: int = 1) -> None:
        write_text()
        ids.extend([tokenizer.convert_tokens_to_ids(token)] * times)
        weights.extend([weight] * times)

    for what, value, weight in pieces(sample, "<think>" in processor.chat_template, prompts):
        if what == "text":
            waiting.append((value, weight))
        elif what == "special":
            write(value, weight)
        elif what == "image":
            grid = processor.image_processor([sample.opener.open(sample.media[value])])["image_grid_thw"][0]
            write("<|vision_start|>")
            write("<|image_pad|>", times=int(grid.prod()) // 4)
            write("<|vision_end|>")
        else:
            video = sample.media[value].video
            assert video is not None
            frames = np.stack([np.asarray(sample.opener.open(sample.media[index])) for index in video.frames])
            grid = processor.video_processor([frames], do_sample_frames=False)["video_grid_thw"][0]
            write("<|vision_start|>")
            for pair in range(0, len(frames), 2):  # two frames make one; the last stands twice if they are odd
                time = (pair + min(pair + 1, len(frames) - 1)) / 2 / video.fps
                waiting.append((f"<{time:.1f} seconds>", 0.0))
                write("<|vision_start|>")
                write("<|video_pad|>", times=int(grid[1] * grid[2]) // 4)
                write("<|vision_end|>")
            write("<|vision_end|>")
    write_text()
    return ids, weights
