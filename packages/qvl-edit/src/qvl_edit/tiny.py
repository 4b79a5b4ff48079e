"""A tiny checkpoint that loads like the released ones: `DiffusionPipeline.from_pretrained(folder)`.

FOLDER/text_encoder   Qwen2.5-VL, 2 layers of width 64; or Qwen3-VL
FOLDER/tokenizer      byte-level BPE, trained on the system texts: 34 and 64 tokens of them are dropped, as in the
                      released models
FOLDER/processor      the same, with the image processor
FOLDER/vae            its kind's autoencoder, random; or `coder.PatchCoder`, through which little is learned quickly
FOLDER/transformer    its kind's, 3 layers of width 96
FOLDER/scheduler      with Qwen-Image-Edit's settings
"""

from pathlib import Path
from typing import Any, Literal

from qvl_core.files import new_folder
from qvl_edit.profile import EDIT, PROFILES, T2I, Profile

SPREAD = 0.1  # of the text encoder's first weights: with the usual 0.02 all prompts say nearly the same
WIDTH = 64  # of the text encoder
TEXTS = ("make it red", "invert the colours", "flip left and right", "Picture 1: Picture 2: Picture 3: ")
NAMES = tuple(profile.name for profile in PROFILES)
Coder = Literal["vae", "patches"]


def tiny(folder: Path, seed: int = 0, kind: str = "edit-plus", coder: Coder = "vae") -> str:
    """Write a checkpoint to the new folder `folder`.

    kind   name of a profile
    coder  vae: the released class, for pictures of any multiple of 16 pixels (2.1: 32); patches: of any multiple of 4
    """
    from qvl_core.qwen3vl.load import quiet

    profile = PROFILES[NAMES.index(kind)]
    with new_folder(folder) as aside, quiet(bars=False):
        tiny_pipeline(profile, seed, coder).save_pretrained(aside)
    return f"{folder}: a tiny {profile.name}, which {profile.pipeline} of diffusers loads."


def tiny_pipeline(profile: Profile, seed: int = 0, coder: Coder = "vae") -> Any:
    """The pipeline itself, in fp32 on the CPU; the caller's random state is left as it was."""
    import diffusers
    import torch

    from qvl_edit.tiny_21 import tiny_parts_21

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = tiny_parts_21(coder) if profile.one_stream else tiny_parts(profile, coder)
    return getattr(diffusers, profile.pipeline)(**parts)


def tiny_parts(profile: Profile, coder: Coder) -> dict[str, Any]:
    """What its pipeline is made of, with weights by torch's random state."""
    from qvl_edit.coder import PatchCoder

    processor = tiny_processor()
    parts = {
        "scheduler": tiny_scheduler(),
        "text_encoder": tiny_text_encoder(processor.tokenizer),
        "tokenizer": processor.tokenizer,
        "transformer": tiny_transformer(16 if coder == "vae" else 12, profile.zero_cond_t),
        "vae": tiny_vae() if coder == "vae" else PatchCoder(),
    }
    return {**parts, "processor": processor} if profile.pictures else parts


def tiny_processor() -> Any:
    """Pictures keep their shape between 56 x 56 (4 tokens) and 392 x 392 pixels (196 tokens)."""
    from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    from qvl_core.qwen3vl.tiny import tiny_tokenizer

    size = {"size": {"shortest_edge": 56 * 56, "longest_edge": 392 * 392}}
    tokenizer = tiny_tokenizer([T2I.system, EDIT.system] * 20 + list(TEXTS))
    return Qwen2VLProcessor(Qwen2VLImageProcessor(**size), tokenizer, Qwen2VLVideoProcessor(**size))


def tiny_text_encoder(tokenizer: Any) -> Any:
    """Qwen2.5-VL: 2 layers x 64 with 4 query and 2 key-value heads, tower 2 x 32."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    image, video, start, end, pad, stop = tokenizer.convert_tokens_to_ids(
        ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|endoftext|>", "<|im_end|>"]
    )
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "bos_token_id": pad,
            "eos_token_id": stop,
            "pad_token_id": pad,
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32768,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]},
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": WIDTH,
            "fullatt_block_indexes": [1],
        },
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    return spread(Qwen2_5_VLForConditionalGeneration(config).eval())


def spread(model: Any) -> Any:
    """A text encoder with its matrices made larger, so that prompts differ."""
    import torch

    usual = model.config.text_config.initializer_range
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(SPREAD / usual)
    return model


def tiny_vae() -> Any:
    """Qwen-Image's autoencoder with 8 channels instead of 96: 8 pixels along a side become one place."""
    from diffusers import AutoencoderKLQwenImage

    return AutoencoderKLQwenImage(base_dim=8, z_dim=16, dim_mult=[1, 2, 2, 2], num_res_blocks=1).eval()


def tiny_transformer(channels: int, zero_cond_t: bool = False) -> Any:
    """Three layers of width 96, 1.07M parameters; `channels` of a latent place, four of which are a token."""
    from diffusers import QwenImageTransformer2DModel

    return QwenImageTransformer2DModel(
        in_channels=4 * channels,
        out_channels=channels,
        num_layers=3,
        num_attention_heads=4,
        attention_head_dim=24,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 10, 10),
        zero_cond_t=zero_cond_t,
    ).eval()


def tiny_scheduler() -> Any:
    """Noise levels as Qwen-Image-Edit has them: shifted by the number of tokens, from 1 down to 0.02."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        time_shift_type="exponential",
        base_shift=0.5,
        max_shift=0.9,
        base_image_seq_len=256,
        max_image_seq_len=8192,
        shift_terminal=0.02,
    )
