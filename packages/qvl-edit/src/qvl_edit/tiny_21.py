"""The parts of a tiny Qwen-Image-2.1, each of its released class.

diffusers' pipeline runs it with the coder `vae` alone: `patches` has 2 pixels along a side of a latent place, not 16.
"""

from typing import Any

from qvl_edit.profile import IMAGE_21

LOUD = 30  # of words: what random attention takes from the pictures before them would drown them


def tiny_parts_21(coder: str) -> dict[str, Any]:
    """What `QwenImage21Pipeline` is made of, with weights by torch's random state."""
    from diffusers import FlowMatchEulerDiscreteScheduler, QwenImage21Transformer2DModel

    from qvl_edit.coder import PatchCoder

    scale, channels = (16, 64) if coder == "vae" else (2, 16)
    processor = tiny_processor_21(scale)
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15),
        "text_encoder": tiny_text_encoder_21(processor.tokenizer, scale),
        "processor": processor,
        "transformer": QwenImage21Transformer2DModel(
            in_channels=channels,
            out_channels=channels,
            num_layers=3,
            num_attention_heads=4,
            attention_head_dim=24,
            context_in_dim=128,
            axes_dims_rope=(4, 10, 10),
        ).eval(),
        "vae": tiny_vae_21()
        if coder == "vae"
        else PatchCoder(z_dim=16, latents_mean=[0.0] * 16, latents_std=[1.0] * 16, in_channels=4),
    }


def tiny_processor_21(patch: int) -> Any:
    """Pictures whose sides are multiples of two patches keep their size, up to 64 x 64 patches."""
    from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    from qvl_core.qwen3vl.tiny import CHAT_TEMPLATE, tiny_tokenizer
    from qvl_edit.tiny import TEXTS

    patches = {"patch_size": patch, "merge_size": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    size = {"shortest_edge": (2 * patch) ** 2, "longest_edge": (64 * patch) ** 2}
    return Qwen3VLProcessor(
        tokenizer=tiny_tokenizer([IMAGE_21.system] * 20 + list(TEXTS)),
        image_processor=Qwen2VLImageProcessor(size=size, **patches),
        video_processor=Qwen3VLVideoProcessor(**patches),
        chat_template=CHAT_TEMPLATE,
    )


def tiny_text_encoder_21(tokenizer: Any, patch: int) -> Any:
    """Qwen3-VL: 3 layers of width 128, tower 3 x 96 with DeepStack."""
    from transformers import Qwen3VLForConditionalGeneration

    from qvl_core.qwen3vl.tiny import tiny_config
    from qvl_edit.tiny import spread

    config = tiny_config(tokenizer)
    config.vision_config.patch_size = patch
    model = spread(Qwen3VLForConditionalGeneration(config).eval())
    model.model.language_model.embed_tokens.weight.data.mul_(LOUD)
    return model


def tiny_vae_21() -> Any:
    """Qwen-Image-2.1's autoencoder with 8 channels instead of 96 and 144: 16 pixels along a side become one place."""
    from diffusers import AutoencoderKLQwenImage21

    return AutoencoderKLQwenImage21(base_dim=8, decoder_base_dim=8, dim_mult=[1, 2, 2, 2, 2], num_res_blocks=1).eval()
