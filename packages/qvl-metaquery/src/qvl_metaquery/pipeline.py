"""Pictures from prompts, by a trained model.

    pipeline = MetaQueryPipeline.from_pretrained(find_newest_checkpoint("runs/mine")).to("cuda", torch.bfloat16)
    pictures = pipeline(caption="A mountain lake at sunset", guidance_scale=4.5, num_inference_steps=30).images

A prompt is read and asked once, not once a step or a picture, and remembered from call to call. Every picture has a
seed of its own: it is the same alone and in a batch.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.batch import collate
from qvl_core.qwen3vl.budgets import apply_media
from qvl_core.qwen3vl.encoded import Encoded
from qvl_core.qwen3vl.load import Precision
from qvl_core.recipe.blocks import Model
from qvl_core.training.seeds import first_noise
from qvl_data.drawing.calls import Drawn, check_counts, check_finite, paired, pictures, seeds_of
from qvl_metaquery.checkpoint import Whole, find_whole
from qvl_metaquery.coder import Coder, open_coder
from qvl_metaquery.denoise import denoise, scheduler
from qvl_metaquery.guidance import Branch, branches
from qvl_metaquery.model import MetaQuery
from qvl_metaquery.opening import assemble, open_qwen, open_sana, open_transformer, sample_shift
from qvl_metaquery.prompts import Prompt, PromptLayout, encode
from qvl_metaquery.remembered import Remembered, key_of
from qvl_metaquery.sampling import Name
from qvl_metaquery.settings import Settings
from qvl_metaquery.weights import put, put_in

PRECISIONS: dict[torch.dtype, Precision] = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


class MetaQueryPipeline:
    """A model that draws, with all it needs."""

    def __init__(self, model: MetaQuery, processor: Any, coder: Coder, settings: Settings, shift: float) -> None:
        self.model, self.processor, self.coder, self.settings = model.eval(), processor, coder.eval(), settings
        self.shift = shift
        self.layout = PromptLayout(settings.system, settings.caption_tokens, settings.image_tokens)
        self.remembered = Remembered()

    @classmethod
    def from_pretrained(
        cls,
        folder: "str | Path",
        *,
        torch_dtype: torch.dtype = torch.float32,
        ignore_mismatched_sizes: bool = False,
        _gradient_checkpointing: bool = False,
    ) -> "MetaQueryPipeline":
        """The model in a run folder, its final/ or one of its checkpoints, on the CPU. Raises BadInput.

        `ignore_mismatched_sizes` and `_gradient_checkpointing` are taken because upstream has them: weights of another
        size are an error that names them, never drawn at random, and drawing needs no gradients.
        """
        whole = find_whole(Path(folder))
        return cls.of(whole, torch_dtype)

    @classmethod
    def of(cls, whole: Whole, dtype: torch.dtype = torch.float32) -> "MetaQueryPipeline":
        """The pipeline of what was found in a folder."""
        settings = whole.settings
        if dtype not in PRECISIONS:
            raise BadInput(f"torch_dtype: {dtype} is not for drawing; give float32, bfloat16 or float16.")
        settings.check_parts(whole.folder)
        named = Model(name=settings.mllm, revision=settings.mllm_revision)
        mllm, processor = open_qwen(named, PRECISIONS[dtype], "cpu")
        apply_media(processor, settings.media)
        sana = open_sana(settings.sana, settings.sana_revision)
        transformer = open_transformer(whole.transformer or sana / "transformer", dtype)
        put_in(transformer, whole.trained, str(whole.folder))
        model = assemble(mllm, transformer, settings)
        put(model, whole.own, str(whole.folder))
        coder = open_coder(sana / "vae", dtype)
        drawing = cls(model.requires_grad_(False), processor, coder, settings, sample_shift(settings, sana))
        return drawing.to("cpu", dtype)

    def to(self, device: "str | torch.device", dtype: torch.dtype | None = None) -> "MetaQueryPipeline":
        """Move everything, in place, as torch's modules do; but the frequencies of positions stay in fp32."""
        for module in (self.model, self.coder):
            module.to(device)
            for parameter in module.parameters():
                parameter.data = parameter.data.to(dtype or parameter.dtype)
        self.remembered.clear()
        return self

    @property
    def device(self) -> torch.device:
        return self.model.queries.device

    def __call__(
        self,
        caption: "str | Sequence[str]" = "",
        image: "Sequence[Image.Image] | Sequence[Sequence[Image.Image]] | Image.Image | None" = None,
        negative_prompt: str = "",
        guidance_scale: float = 4.5,
        image_guidance_scale: float = 1.5,
        num_inference_steps: int = 30,
        num_images: int = 1,
        seed: "int | Sequence[int]" = 0,
        scheduler: Name = "euler",
        size: int | None = None,
        on_step: Callable[[int, Tensor], None] | None = None,
    ) -> Drawn:
        """Draw `num_images` pictures of each caption.

        caption  one or several
        image    pictures that the caption speaks of; of several captions, a list for each
        seed     of the first picture of each caption, the following ones count up; or one for each picture
        size     side of the pictures in pixels; default: what was trained
        on_step  is called with the number of the step and all latents (B, C, H, W) after it
        """
        prompts = [Prompt(*one) for one in paired(caption, image, "captions")]
        check_counts(captions=len(prompts), num_images=num_images, num_inference_steps=num_inference_steps)
        seeds = seeds_of(seed, len(prompts) * num_images, num_images)
        shape = self.coder.latent_shape(self.settings.size if size is None else size)
        kinds = branches(guidance_scale, image_guidance_scale, any(prompt.pictures for prompt in prompts))
        told = self.conditions([_branch(prompt, kind, negative_prompt) for kind in kinds for prompt in prompts])
        told = told.unflatten(0, (len(kinds), len(prompts))).repeat_interleave(num_images, 1)  # (K, B, N, C)
        steps = denoise(
            self.model.velocity,
            told,
            first_noise(shape, seeds).to(self.device),
            make_scheduler(scheduler, self.shift),
            num_inference_steps,
            guidance_scale,
            image_guidance_scale,
        )
        latents = torch.empty(0)
        for number, latents in enumerate(steps, 1):
            if on_step is not None:
                on_step(number, latents)
        pixels = self.coder.decode(latents)
        check_finite(bool(pixels.isfinite().all()), self.model.mllm.dtype)
        return Drawn(pictures(pixels.float().cpu().numpy()))

    @torch.no_grad()
    def conditions(self, prompts: Sequence[Prompt]) -> Tensor:
        """(U, N, C) what Sana is told of each prompt; equal ones are read once, and those that are remembered never."""
        encoded = [encode(prompt, self.processor, self.layout) for prompt in prompts]
        keys = [key_of(one) for one in encoded]
        told = {key: one for key in keys if (one := self.remembered.get(key)) is not None}
        missing = {key: one for key, one in zip(keys, encoded, strict=True) if key not in told}
        if missing:
            told |= zip(missing, self._read(list(missing.values())), strict=True)
            for key in missing:
                self.remembered.put(key, told[key])
        return torch.stack([told[key] for key in keys])

    def _read(self, prompts: Sequence[Encoded]) -> Tensor:
        merge = self.model.mllm.config.vision_config.spatial_merge_size
        inputs = collate(prompts, False, merge, self.processor.tokenizer.pad_token_id).to(self.device).inputs()
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(self.model.mllm.dtype)
        return self.model.condition(self.model.read(inputs))


make_scheduler = scheduler  # beside the parameter of that name


def _branch(prompt: Prompt, kind: Branch, negative: str) -> Prompt:
    if kind == "full":
        return prompt
    return Prompt(negative, prompt.without(pictures=kind == "unconditional").pictures)
