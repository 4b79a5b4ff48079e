"""A tiny Qwen3-VL: the real model class, processor and chat layout at about 1.7M parameters, built from nothing.

Everything that a released checkpoint folder holds is written (safetensors, configs, byte-level BPE tokenizer trained on
the spot, chat template, image and video processors), so `from_pretrained` and every tool of the ecosystem take it for
one. No network, no download; weights are a function of the seed, so equal seeds give equal bytes.

    tiny(Path("runs/tiny"), texts=["What digit is this?", "7"])
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qvl_core.files import new_folder

if TYPE_CHECKING:
    from transformers import (
        Qwen2Tokenizer,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLMoeConfig,
        Qwen3VLMoeForConditionalGeneration,
        Qwen3VLProcessor,
    )

MERGES = 256  # at most; fewer if the texts offer no more pairs
ROWS = 576  # embedding rows: 256 bytes + MERGES + specials leave spare rows, as in the released models

# In the order of the released vocabulary (151643 ...); skip_special_tokens removes the first kind and keeps the second.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
MARKER_TOKENS = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
)

DEFAULT_TEXTS = (
    "What digit is this? Which number is written in the picture? Answer with one digit.",
    "0 1 2 3 4 5 6 7 8 9 zero one two three four five six seven eight nine",
    "Is the number odd or even? Answer odd or even. The number is odd. The number is even. Yes. No.",
    "Describe the image. How many pictures are there? Compare the first image with the second one.",
    "What happens in the video? The video shows a digit that moves from left to right.",
    "图片里的数字是几？这是数字七。 이 숫자는 무엇입니까? 숫자 칠입니다.",
)

# The layout of the released Instruct checkpoints (facts: no default system turn; tools are listed in the system turn;
# tool results in a row share one user turn; pictures and videos are numbered over the whole conversation).
CHAT_TEMPLATE = r"""
{%- set seen = namespace(images=0, videos=0) %}
{%- macro write(content, media) %}
    {%- if content is string %}
        {{- content }}
    {%- else %}
        {%- for part in content or [] %}
            {%- if media and (part.type == 'image' or 'image' in part or 'image_url' in part) %}
                {%- set seen.images = seen.images + 1 %}
                {{- 'Picture %d: ' % seen.images if add_vision_id else '' }}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' }}
            {%- elif media and (part.type == 'video' or 'video' in part) %}
                {%- set seen.videos = seen.videos + 1 %}
                {{- 'Video %d: ' % seen.videos if add_vision_id else '' }}
                {{- '<|vision_start|><|video_pad|><|vision_end|>' }}
            {%- elif 'text' in part %}
                {{- part.text }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
{%- endmacro %}
{%- set system = messages[0].content if messages[0].role == 'system' else none %}
{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if system is not none %}
        {{- write(system, false) + '\n\n' }}
    {%- endif %}
    {{- '# Tools\n\nYou may call one or more functions to assist with the user query.\n\n' }}
    {{- 'You are provided with function signatures within <tools></tools> XML tags:\n<tools>' }}
    {%- for tool in tools %}
        {{- '\n' + tool | tojson }}
    {%- endfor %}
    {{- '\n</tools>\n\nFor each function call, return a json object with function name and arguments ' }}
    {{- 'within <tool_call></tool_call> XML tags:\n<tool_call>\n' }}
    {{- '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n' }}
{%- elif system is not none %}
    {{- '<|im_start|>system\n' + write(system, false) + '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '<|im_start|>user\n' + write(message.content, true) + '<|im_end|>\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\n' + write(message.content, false) }}
        {%- for call in message.tool_calls or [] %}
            {{- '\n' if message.content or not loop.first else '' }}
            {%- set function = call.function or call %}
            {{- '<tool_call>\n{"name": "' + function.name + '", "arguments": ' }}
            {{- function.arguments if function.arguments is string else function.arguments | tojson }}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user' if loop.first or loop.previtem.role != 'tool' else '' }}
        {{- '\n<tool_response>\n' + write(message.content, true) + '\n</tool_response>' }}
        {{- '<|im_end|>\n' if loop.last or loop.nextitem.role != 'tool' else '' }}
    {%- endif %}
{%- endfor %}
{{- '<|im_start|>assistant\n' if add_generation_prompt else '' }}
""".lstrip()

# The layout of the released Thinking checkpoints (facts: the opening of an answer goes on with <think>; reasoning stays
# in the answers after the last question, the last of which always has one, and is taken out of those before).
_SAID = r"""
        {{- '<|im_start|>assistant\n' + write(message.content, false) }}
""".strip("\n")
_THOUGHT = r"""
        {%- set said = write(message.content, false) %}
        {%- set thought = '' %}
        {%- if '</think>' in said %}
            {%- set thought = said.split('</think>')[0].split('<think>')[-1].strip('\n') %}
            {%- set said = said.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\n' }}
        {%- if loop.last or (thought and loop.index0 > seen.asked) %}
            {{- '<think>\n' + thought + '\n</think>\n\n' + said.lstrip('\n') }}
        {%- else %}
            {{- said }}
        {%- endif %}
""".strip("\n")
_ASKED = r"""
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {%- set seen.asked = loop.index0 %}
    {%- endif %}
{%- endfor %}
""".lstrip()
THINKING_TEMPLATE = (
    CHAT_TEMPLATE.replace("namespace(images=0, videos=0)", "namespace(images=0, videos=0, asked=-1)")
    .replace("{%- for message in messages %}\n", _ASKED + "{%- for message in messages %}\n")
    .replace(_SAID, _THOUGHT)
    .replace(
        "'<|im_start|>assistant\\n' if add_generation_prompt",
        "'<|im_start|>assistant\\n<think>\\n' if add_generation_prompt",
    )
)


def tiny(
    folder: Path,
    texts: Sequence[str] = DEFAULT_TEXTS,
    seed: int = 0,
    *,
    tied: bool = True,
    thinking: bool = False,
    experts: int = 0,
) -> Path:
    """Write a tiny Qwen3-VL checkpoint to the new folder `folder`, whole or not at all, and return it.

    texts:    what the tokenizer's merges are learned from (give the data's own texts: words become single tokens)
    seed:     decides the weights; the tokenizer depends on the texts alone
    tied:     embedding and lm_head share one matrix, as in the 2B and 4B models (the 8B's are apart)
    thinking: the chat template is that of the Thinking checkpoints
    experts:  of each layer, two of which work on a token, as in the 30B-A3B model; 0: dense layers
    """
    from transformers.utils import logging

    processor = tiny_processor(texts, thinking=thinking)
    model = tiny_model(processor.tokenizer, seed, tied=tied, experts=experts)
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # it takes no time
    with new_folder(folder) as aside:
        model.save_pretrained(aside)
        processor.save_pretrained(aside)
    if bars:
        logging.enable_progress_bar()
    return folder


def tiny_model(
    tokenizer: "Qwen2Tokenizer", seed: int = 0, *, tied: bool = True, experts: int = 0
) -> "Qwen3VLForConditionalGeneration | Qwen3VLMoeForConditionalGeneration":
    """The model alone, in fp32 on the CPU; the caller's random state is left as it was."""
    import torch
    from transformers import (
        GenerationConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLMoeForConditionalGeneration,
    )

    kind = Qwen3VLMoeForConditionalGeneration if experts else Qwen3VLForConditionalGeneration
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(tiny_config(tokenizer, tied=tied, experts=experts)).eval()
    end, pad = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    model.generation_config = GenerationConfig(do_sample=False, eos_token_id=[end, pad], pad_token_id=pad)
    return model


def tiny_config(
    tokenizer: "Qwen2Tokenizer", *, tied: bool = True, experts: int = 0
) -> "Qwen3VLConfig | Qwen3VLMoeConfig":
    """LLM 3 layers x 128 with 4 query and 2 key-value heads, tower 3 x 96, DeepStack after tower layers 1 and 2."""
    from transformers import Qwen3VLConfig, Qwen3VLMoeConfig

    image, video, start, end = tokenizer.convert_tokens_to_ids(
        ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
    )
    sparse = {"num_experts": experts, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "decoder_sparse_step": 1}
    return (Qwen3VLMoeConfig if experts else Qwen3VLConfig)(
        text_config={
            "vocab_size": ROWS,
            "hidden_size": 128,
            "intermediate_size": 320,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "max_position_embeddings": 32768,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "mrope_section": [6, 5, 5],  # sums to head_dim / 2
                "mrope_interleaved": True,
            },
            **(sparse if experts else {}),
        },
        vision_config={
            "depth": 3,
            "hidden_size": 96,
            "num_heads": 4,
            "intermediate_size": 384,
            "out_hidden_size": 128,
            "num_position_embeddings": 256,  # 16 x 16, interpolated to each picture's grid
            "deepstack_visual_indexes": [1, 2],
        },
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
        tie_word_embeddings=tied,
    )


def tiny_processor(texts: Sequence[str] = DEFAULT_TEXTS, *, thinking: bool = False) -> "Qwen3VLProcessor":
    """Tokenizer, chat template, image and video processors of the released models with budgets for small pictures.

    A picture keeps its shape between 64 x 64 (4 tokens) and 256 x 256 pixels (64 tokens), rounded to multiples of 32;
    a whole clip (frames x height x width) has at least 64 x 64 and at most 512 x 1024 pixels.
    """
    from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    patches = {"patch_size": 16, "temporal_patch_size": 2, "merge_size": 2}
    half = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    return Qwen3VLProcessor(
        tokenizer=tiny_tokenizer(texts),
        image_processor=Qwen2VLImageProcessor(
            size={"shortest_edge": 64 * 64, "longest_edge": 256 * 256}, **patches, **half
        ),
        video_processor=Qwen3VLVideoProcessor(
            size={"shortest_edge": 64 * 64, "longest_edge": 512 * 1024}, cap_pixels_per_frame=False, **patches, **half
        ),
        chat_template=THINKING_TEMPLATE if thinking else CHAT_TEMPLATE,
    )


def tiny_tokenizer(texts: Sequence[str] = DEFAULT_TEXTS) -> "Qwen2Tokenizer":
    """Qwen's tokenizer class with all 256 bytes, at most MERGES merges learned from `texts`, and its special tokens."""
    import json

    from tokenizers import AddedToken
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.trainers import BpeTrainer
    from transformers import Qwen2Tokenizer

    blank = Qwen2Tokenizer(vocab={}, merges=[])._tokenizer  # for its normalizer and pre-tokenizer
    trainer = BpeTrainer(vocab_size=256 + MERGES, initial_alphabet=ByteLevel.alphabet(), show_progress=False)
    roles = ["system", "user", "assistant", "tool"] * len(texts)  # as frequent as the texts they introduce
    blank.train_from_iterator([*texts, *roles], trainer)
    bpe = json.loads(blank.to_str())["model"]
    merges = [tuple(pair) for pair in bpe["merges"]]
    tokenizer = Qwen2Tokenizer(vocab=bpe["vocab"], merges=merges, unk_token=None, model_max_length=32768)
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in MARKER_TOKENS])
    tokenizer.eos_token = "<|im_end|>"  # the pad token is the class's own <|endoftext|>
    return tokenizer
