"""Pictures from instructions and pictures, by a checkpoint or a trained model.

    pipeline = EditPipeline.from_pretrained("runs/mine", torch_dtype=torch.bfloat16).to("cuda")
    picture = pipeline("make it red", image=Image.open("a.png"), seed=1).images[0]

Unlike diffusers' pipelines, it takes any number of instructions with any number of pictures each, also none; its
embeddings have the positions of pictures (`embed`), and its sizes are those of training (`geometry`). Every picture has
a seed of its own: it is the same alone and in a batch.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor

from qvl_core.errors import BadInput
from qvl_data.drawing.calls import Drawn, check_counts, check_finite, paired, pictures, seeds_of
from qvl_data.media import WHITE
from qvl_data.pixels import rgb
from qvl_edit.cut import Size
from qvl_edit.draw import Conditions, draw
from qvl_edit.embed import Embedded, Embedder, EncoderInput
from qvl_edit.geometry import Geometry, numbers, resized
from qvl_edit.latents import Vae
from qvl_edit.model import Call
from qvl_edit.opening import geometry_of
from qvl_edit.parts import open_call, open_shift, open_vae
from qvl_edit.profile import read_profile
from qvl_edit.sampling import Sampling
from qvl_edit.streaming import stream
from qvl_edit.times import Shift
from qvl_edit.trained import Trained, find_trained, open_trained
from qvl_edit.turns import fit, there

EMBEDDED = 8  # sets of pictures that are embedded together
Prompt = tuple[str, tuple[Image.Image, ...]]


class EditPipeline:
    """A model that edits, with all it needs.

    sampling  what a call does not say; default: as the checkpoint's pipeline draws
    """

    def __init__(
        self,
        transformer: Any,
        call: Call,
        vae: Vae,
        embedder: Embedder,
        geometry: Geometry,
        shift: Shift,
        sampling: Sampling | None = None,
    ) -> None:
        self.transformer, self.call, self.vae, self.embedder = transformer.eval(), call, vae, embedder
        self.geometry, self.shift = geometry, shift
        self.sampling = sampling or Sampling(embedder.profile.guidance)
        self.device = next(transformer.parameters()).device
        self._streamed = False

    @classmethod
    def from_pretrained(
        cls, folder: "str | Path", *, torch_dtype: torch.dtype = torch.float32, lora: Sequence["str | Path"] = ()
    ) -> Self:
        """The model in a run folder, its final/, one of its checkpoints, or a folder in the layout of diffusers, on the
        CPU.

        lora  more adapters that are put upon it, such as those for few steps

        Raises BadInput for what holds none, or does not belong together.
        """
        return cls.of(find_trained(folder), torch_dtype, [Path(file).expanduser() for file in lora])

    @classmethod
    def of(cls, found: Trained, dtype: torch.dtype = torch.float32, lora: Sequence[Path] = ()) -> Self:
        """The pipeline of what was found in a folder."""
        profile = read_profile(found.checkpoint)
        return cls(
            open_trained(found, dtype, lora),
            open_call(found.checkpoint, profile),
            open_vae(found.checkpoint, dtype, batch=1),
            Embedder.open(found.checkpoint, profile, dtype),
            geometry_of(found.settings.pictures, profile, found.checkpoint),
            open_shift(found.checkpoint),
            found.sampling,
        )

    def to(self, device: "str | torch.device") -> Self:
        """Draw on a device from now on. Where it has no room for all, the text encoder and the transformer stay where
        they are, and take turns on it; where it has none for the transformer, its blocks come one after the other."""
        device = torch.device(device)
        if device.type == "cuda" and device.index is None:  # as tensors name it
            device = torch.device("cuda", torch.cuda.current_device())
        if self._streamed and device != self.device:
            raise BadInput(
                f"device: the transformer's blocks come to {self.device} one by one; open it anew for {device}."
            )
        self.device = device
        modules: list[torch.nn.Module] = [self.vae, self.transformer, self.embedder.model]
        if self._streamed or not fit(modules, self.device):
            modules = [self.vae]
            if self._streamed or not fit([self.vae, self.transformer], self.device):
                modules.append(self.transformer)
                if not self._streamed:
                    stream(self.transformer, len(self.transformer.transformer_blocks), self.device)
                    self._streamed = True
        for module in modules:
            module.to(self.device)
        return self

    def __call__(
        self,
        prompt: "str | Sequence[str]",
        image: "Sequence[Image.Image] | Sequence[Sequence[Image.Image]] | Image.Image | None" = None,
        *,
        negative_prompt: str | None = None,
        guidance_scale: float | None = None,
        num_inference_steps: int | None = None,
        shift: float | None = None,
        num_images: int = 1,
        seed: "int | Sequence[int]" = 0,
        height: int | None = None,
        width: int | None = None,
        sampling: Sampling | None = None,
        batch_size: int | None = None,
        on_step: Callable[[int, Tensor], None] | None = None,
    ) -> Drawn:
        """Draw `num_images` pictures of each prompt.

        prompt         one or several
        image          pictures that all prompts speak of, in order; or a list for each, which may be empty
        shift          of noise levels, for models of few steps: 3 for Qwen-Image-Lightning, with a guidance of 1
        seed           of the first picture of each prompt, the following ones count up; or one for each picture
        height, width  in pixels; default: of the last picture's shape, as large as in training
        sampling       what none of these says; default: as the model was saved
        batch_size     pictures of one forward, at most; default: one of 1024 x 1024 pixels with a source, or as many
                       smaller ones as are as large together
        on_step        is called with the number of a step and the latents (B, C, h, w) of those that are drawn together

        Raises BadInput for what this checkpoint cannot be asked.
        """
        sampling = (sampling or self.sampling).but(
            negative=negative_prompt, guidance=guidance_scale, steps=num_inference_steps, shift=shift
        )
        prompts = [(text, tuple(map(_rgb, shown))) for text, shown in paired(prompt, image)]
        check_counts(
            prompts=len(prompts),
            num_images=num_images,
            num_inference_steps=1 if sampling.steps is None else sampling.steps,
            batch_size=1 if batch_size is None else batch_size,
        )
        if sampling.shift is not None and sampling.shift <= 0:
            raise BadInput(f"shift: {sampling.shift:g} moves no noise level; give a number above 0, such as 3.")
        self._check_pictures(prompts)
        seeds = seeds_of(seed, len(prompts) * num_images, num_images)
        buckets = [self.geometry.asked([_size(one) for one in shown], height, width) for _, shown in prompts]
        with there(self.embedder.model, self.device):
            told = self._told(prompts, sampling)
        each: list[Conditions] = []
        for number, ((text, shown), bucket) in enumerate(zip(prompts, buckets, strict=True)):
            sources = tuple(numbers(resized(one, size)) for one, size in zip(shown, bucket.sources, strict=True))
            untold = told[sampling.negative, _key(shown)] if sampling.guided else None
            own = seeds[number * num_images :][:num_images]
            each += [Conditions(told[text, _key(shown)], untold, bucket, sources, seed) for seed in own]
        with nullcontext() if self._streamed else there(self.transformer, self.device):
            drawn = draw(self.transformer, self.call, self.vae, each, self.shift, sampling, on_step, batch_size)
        check_finite(all(bool(pixels.isfinite().all()) for pixels in drawn), self.transformer.dtype)
        return Drawn([picture for pixels in drawn for picture in pictures(pixels[None].cpu().numpy())])

    def _check_pictures(self, prompts: Sequence[Prompt]) -> None:
        profile = self.embedder.profile
        for text, shown in prompts:
            if len(shown) > profile.pictures:
                raise BadInput(
                    f"image: {len(shown)} pictures for {text[:60]!r}, and {profile.name} takes at most "
                    f"{profile.pictures}; leave some out."
                )

    def _told(self, prompts: Sequence[Prompt], sampling: Sampling) -> dict[tuple[str, tuple[int, ...]], Tensor]:
        """(L, D) of each text with its pictures, and of the negative one where there is guidance; each once."""
        negative = [sampling.negative] if sampling.guided else []
        seen = {_key(shown): shown for _, shown in prompts}
        texts: dict[tuple[int, ...], dict[str, None]] = {key: {} for key in seen}
        for text, shown in prompts:
            texts[_key(shown)] |= dict.fromkeys([text, *negative])
        asked = [EncoderInput(tuple(texts[key]), tuple(map(self._seen, shown))) for key, shown in seen.items()]
        return {
            (text, key): one.whole(number)
            for key, wanted, one in zip(seen, asked, self._embedded(asked), strict=True)
            for number, text in enumerate(wanted.texts)
        }

    def _embedded(self, asked: Sequence[EncoderInput]) -> Iterator[Embedded]:
        for start in range(0, len(asked), EMBEDDED):
            yield from self.embedder(asked[start : start + EMBEDDED])

    def _seen(self, picture: Image.Image) -> Image.Image:
        return resized(picture, self.geometry.vl(_size(picture)))


def _rgb(picture: Image.Image) -> Image.Image:
    """As files are read: on white where it is transparent."""
    return picture if picture.mode == "RGB" else rgb(picture, "image", WHITE)


def _size(picture: Image.Image) -> Size:
    return picture.height, picture.width


def _key(shown: Sequence[Image.Image]) -> tuple[int, ...]:
    """Tells sets of pictures apart within a call."""
    return tuple(map(id, shown))
