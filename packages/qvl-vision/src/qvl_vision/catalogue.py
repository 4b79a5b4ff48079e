"""The encoders that are known by name, with their facts; `qvl-vision list` prints them.

What a checkpoint's own files say goes before what stands here. Other sizes are named by their hub id.
"""

from typing import Any

from qvl_vision.registry import EncoderInfo, Triple, add_encoder

IMAGENET: tuple[Triple, Triple] = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP: tuple[Triple, Triple] = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF: tuple[Triple, Triple] = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
XRAY: tuple[Triple, Triple] = (0.5307, 0.5307, 0.5307), (0.2583, 0.2583, 0.2583)


def _add(
    name: str,
    about: str,
    family: str,
    source: str,
    size: int,
    patch: int,
    prefix: int,
    normal: tuple[Triple, Triple],
    licence: str,
    feature_layer: int | None = None,
    **shape: Any,
) -> None:
    info = EncoderInfo(
        name,
        about,
        family,
        source,
        size,
        patch,
        prefix,
        *normal,
        licence,
        feature_layer,
        shape={**shape, "image_size": size},
    )
    add_encoder(info)


add_encoder(EncoderInfo("native", "Qwen3-VL's own tower", "native", licence="the base model's"))
add_encoder(EncoderInfo("timm", "any model of timm: timm:NAME, or a hub id timm/NAME", "timm_wrapper"))

# The first of a family stands for it: what its own files do not say is taken from there.
# fmt: off
_add("dinov2", "self-supervised ViT-B",
     "dinov2", "facebook/dinov2-base", 518, 14, 1, IMAGENET, "Apache-2.0", patch_size=14)
_add("rad_dino", "chest X-rays; DINOv2 ViT-B",
     "dinov2", "microsoft/rad-dino", 518, 14, 1, XRAY, "MIT, for research", patch_size=14)
_add("dinov2_with_registers", "DINOv2 ViT-B with four register tokens",
     "dinov2_with_registers", "facebook/dinov2-with-registers-base", 518, 14, 5, IMAGENET, "Apache-2.0",
     patch_size=14, num_register_tokens=4)
_add("dinov3", "self-supervised ViT-B with rotary positions",
     "dinov3_vit", "facebook/dinov3-vitb16-pretrain-lvd1689m", 224, 16, 5, IMAGENET,
     "DINOv3 License (ask for access)", hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
     num_attention_heads=12, patch_size=16, num_register_tokens=4)
_add("dinov3_convnext", "ConvNeXt-B distilled from DINOv3",
     "dinov3_convnext", "facebook/dinov3-convnext-base-pretrain-lvd1689m", 224, 32, 1, IMAGENET,
     "DINOv3 License (ask for access)", depths=[3, 3, 27, 3], hidden_sizes=[128, 256, 512, 1024])
_add("clip", "CLIP ViT-L; its second-last layer is taken, as in LLaVA",
     "clip_vision_model", "openai/clip-vit-large-patch14-336", 336, 14, 1, CLIP,
     "code MIT, weights not stated", -2, hidden_size=1024, intermediate_size=4096, num_hidden_layers=24,
     num_attention_heads=16, patch_size=14)
_add("siglip", "SigLIP so400m",
     "siglip_vision_model", "google/siglip-so400m-patch14-384", 384, 14, 0, HALF, "Apache-2.0",
     hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16, patch_size=14)
_add("siglip2", "SigLIP 2 NaFlex so400m: pictures of any shape",
     "siglip2_vision_model", "google/siglip2-so400m-patch16-naflex", 256, 16, 0, HALF, "Apache-2.0",
     hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16, patch_size=16,
     num_patches=256)
_add("vit", "ViT-B, ImageNet-21k",
     "vit", "google/vit-base-patch16-224-in21k", 224, 16, 1, HALF, "Apache-2.0", patch_size=16)
_add("convnext", "ConvNeXt-B, ImageNet-22k",
     "convnext", "facebook/convnext-base-224-22k", 224, 32, 0, IMAGENET, "Apache-2.0",
     depths=[3, 3, 27, 3], hidden_sizes=[128, 256, 512, 1024])
# fmt: on
