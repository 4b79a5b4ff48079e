"""Which Qwen-Image a checkpoint is, read from the checkpoint: how it is asked, and what it is shown of a picture.

    profile = read_profile(folder)          # a folder in the layout of diffusers
    template = profile.template(pictures=2)

`edit-2511` is `edit-plus` with a transformer that sees source pictures as noise-free (`zero_cond_t`): nobody has to say
so, and a checkpoint of the one kind is never trained as the other.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qvl_core.errors import BadInput
from qvl_edit.packing import Grid
from qvl_edit.template import Template

FRAME = "<|vision_start|><|image_pad|><|vision_end|>"
T2I = Template(
    "Describe the image by detailing the color, shape, size, texture, quantity, text, spatial relationships of the "
    "objects and background:",
    picture="",
    dropped=34,
)
EDIT = Template(
    "Describe the key features of the input image (color, shape, size, texture, objects, background), then explain how "
    "the user's text instruction should alter or modify the image. Generate a new image that meets the user's "
    "requirements while maintaining consistency with the original input where appropriate.",
    picture=FRAME,
    dropped=64,
)
EDIT_PLUS = Template(EDIT.system, picture="Picture {}: " + FRAME, dropped=64)
IMAGE_21 = Template(
    "Comprehend and analyze the provided prompt.",
    picture="<image{}>" + FRAME,
    between=" ",
    empty=" ",
    kept="<|im_start|>user\n",
)
MEGAPIXEL = 1024 * 1024


@dataclass(frozen=True)
class Profile:
    """How one kind of checkpoint is asked.

    pipeline     class of diffusers that runs it
    pictures     most source pictures of a row
    shown        template of a row with pictures
    alone        of a row without
    vl_area      pixels of a source picture for the text encoder, before its own rounding to whole tokens; None: it is
                 shown what the autoencoder is
    area         pixels of a picture for the autoencoder, sources and target alike: what the pipeline draws
    zero_cond_t  the transformer takes sources for noise-free
    encoder      class of transformers that reads texts
    one_stream   texts and pictures are one sequence of the transformer, which is told hidden states before the last
                 norm, and none of pictures: their latents stand there
    guidance     at which the pipeline draws if nothing is said
    """

    name: str
    pipeline: str
    pictures: int
    shown: Template = T2I
    alone: Template = T2I
    vl_area: int | None = MEGAPIXEL
    area: int = MEGAPIXEL
    zero_cond_t: bool = False
    encoder: str = "Qwen2_5_VLForConditionalGeneration"
    one_stream: bool = False
    guidance: float = 4.0

    def template(self, pictures: int) -> Template:
        """The template of a row with so many source pictures."""
        return self.shown if pictures else self.alone

    def length(self, tokenizer: Any, pictures: int, text: str) -> int:
        """Tokens that the transformer is told of a text with so many pictures, but for those of the pictures."""
        return self.template(pictures).length(text, pictures, tokenizer)

    def check(self, tokenizer: Any) -> None:
        """Raise BadInput for a tokenizer that another number of tokens would have to be dropped with."""
        for template in {self.alone, self.shown}:
            template.check(tokenizer)

    def about(self) -> dict[str, Any]:
        """What decides embeddings, beside pictures' sizes and the text encoder's weights: JSON for a manifest.

        Positions are those of the pictures' rows and columns (`mm_token_type_ids`), which transformers 5 leaves out
        unless it is given them.
        """
        texts = self.alone.text("", 0) + self.shown.text("", self.pictures)
        return {
            "template": hashlib.sha256(texts.encode()).hexdigest()[:16],
            "hidden": "last, before the norm, of texts" if self.one_stream else "last, normed",
            "token_types": True,
        }


PROFILES = (
    Profile("t2i", "QwenImagePipeline", 0),
    Profile("edit", "QwenImageEditPipeline", 1, EDIT),
    Profile("edit-plus", "QwenImageEditPlusPipeline", 3, EDIT_PLUS, vl_area=384 * 384),
    Profile("edit-2511", "QwenImageEditPlusPipeline", 3, EDIT_PLUS, vl_area=384 * 384, zero_cond_t=True),
    Profile(
        "image-2.1",
        "QwenImage21Pipeline",
        3,
        IMAGE_21,
        IMAGE_21,
        vl_area=None,
        encoder="Qwen3VLForConditionalGeneration",
        one_stream=True,
        guidance=1.0,
    ),
)
LAYERED = ("use_layer3d_rope", "use_additional_t_cond")  # keys of a transformer that draws layers


def named(name: str) -> Profile:
    """The profile of that name."""
    return next(profile for profile in PROFILES if profile.name == name)


def read_profile(folder: Path) -> Profile:
    """The profile of a checkpoint in the layout of diffusers. Raises BadInput for what is none that is known."""
    index = folder / "model_index.json"
    pipeline = read_config(index).get("_class_name")
    config = read_config(folder / "transformer" / "config.json")
    known = sorted({profile.pipeline for profile in PROFILES})
    if pipeline not in known:
        raise BadInput(f"{index}: {pipeline} is no pipeline that is trained here; use one of {', '.join(known)}.")
    zero = bool(config.get("zero_cond_t"))
    odd = [key for key in LAYERED if config.get(key)]
    found = [profile for profile in PROFILES if (profile.pipeline, profile.zero_cond_t) == (pipeline, zero)]
    if odd or not found:
        raise BadInput(
            f"{folder / 'transformer' / 'config.json'}: {(odd or ['zero_cond_t'])[0]} is set, which {pipeline} does "
            "not have; take model_index.json and transformer/ from one checkpoint."
        )
    return found[0]


def read_grid(folder: Path) -> Grid:
    """How finely a checkpoint cuts pictures, as its autoencoder and transformer say. Raises BadInput."""
    file = folder / "vae" / "config.json"
    halved = read_config(file).get("temperal_downsample")  # diffusers' spelling
    if not isinstance(halved, list):
        raise BadInput(f"{file}: does not say how often sides are halved (temperal_downsample); copy it again.")
    side = read_config(folder / "transformer" / "config.json").get("patch_size", Grid.side)
    return Grid(2 ** len(halved), side)


def read_seen(folder: Path) -> tuple[int, int] | None:
    """Fewest and most pixels that a checkpoint's image processor leaves as they are; None if it does not say."""
    own, whole = (folder / "processor" / name for name in ("preprocessor_config.json", "processor_config.json"))
    values = read_config(own) if own.is_file() else {}
    if not values and whole.is_file():
        values = read_config(whole).get("image_processor") or {}
    size = values.get("size") or {}
    fewest = size.get("shortest_edge", values.get("min_pixels"))
    most = size.get("longest_edge", values.get("max_pixels"))
    return (fewest, most) if isinstance(fewest, int) and isinstance(most, int) else None


def read_config(file: Path) -> dict[str, Any]:
    """The values of a checkpoint's config file. Raises BadInput."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        raise BadInput(
            f"{file}: is not there, so this is no checkpoint in the layout of diffusers; name a folder such as "
            "Qwen-Image-Edit-2509's, whole."
        ) from None
    except ValueError as error:
        raise BadInput(f"{file}: is no JSON ({error}); copy it again.") from None
    if not isinstance(values, dict):
        raise BadInput(f"{file}: holds no table of keys; copy it again.")
    return values
