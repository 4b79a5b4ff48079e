"""Configurations of a Qwen3-VL that is a masked diffusion model: those of the autoregressive one and a few fields more.

A model type of their own keeps a converted checkpoint from being read as an autoregressive one, which would attend
causally and write nonsense. The tower is the stock one or one of qvl-vision's.
"""

from typing import Any, Literal, get_args

from transformers import Qwen3VLConfig, Qwen3VLMoeConfig
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig, Qwen3VLVisionConfig
from transformers.models.qwen3_vl_moe.configuration_qwen3_vl_moe import Qwen3VLMoeTextConfig, Qwen3VLMoeVisionConfig

from qvl_core.errors import BadInput
from qvl_data.template import START
from qvl_vision.config import QVLVisionConfig

Pattern = Literal["full", "prefix", "block"]
PATTERNS: tuple[Pattern, ...] = get_args(Pattern)


class _Masked:
    """What both classes add.

    pattern        which tokens see which: see `qvl_mdlm.pattern`
    block_size     tokens of a block in the pattern `block`
    mask_token_id  the token that stands where nothing is written yet: a spare row of the embedding
    pad_to         to a multiple of how many tokens answers were filled up in training; None: they were not
    """

    def __post_init__(self, **kwargs: Any) -> None:
        tower: Any = self.vision_config  # type: ignore[has-type]
        if isinstance(tower, dict) and tower.get("model_type") == QVLVisionConfig.model_type:
            self.vision_config = QVLVisionConfig(**tower)
        super().__post_init__(**kwargs)  # type: ignore[misc]
        self.text_config.is_causal = False  # type: ignore[attr-defined]  # reaches the library's masks and its attention


class MaskedConfig(_Masked, Qwen3VLConfig):
    """Qwen3-VL (dense) as a masked diffusion model."""

    model_type = "qvl_masked_qwen3_vl"
    sub_configs_defaults = {"vision_config": Qwen3VLVisionConfig, "text_config": Qwen3VLTextConfig}  # noqa: RUF012

    pattern: str = "full"
    block_size: int | None = None
    mask_token_id: int | None = None
    pad_to: int | None = None


class MaskedMoeConfig(_Masked, Qwen3VLMoeConfig):
    """Qwen3-VL with experts as a masked diffusion model."""

    model_type = "qvl_masked_qwen3_vl_moe"
    sub_configs_defaults = {"vision_config": Qwen3VLMoeVisionConfig, "text_config": Qwen3VLMoeTextConfig}  # noqa: RUF012

    pattern: str = "full"
    block_size: int | None = None
    mask_token_id: int | None = None
    pad_to: int | None = None


def masked_config(
    config: Any,
    tokenizer: Any,
    pattern: Pattern | None = None,
    block_size: int | None = None,
    mask_token_id: int | None = None,
) -> MaskedConfig | MaskedMoeConfig:
    """The configuration of `config`'s checkpoint as a masked diffusion model; of one that is, its own.

    pattern, block_size, mask_token_id  for an autoregressive checkpoint: by default `full`, and the first row of the
    embedding that no token has. A converted one was trained with its own, and others are refused.

    Raises BadInput for what cannot be: another kind of model, a mask token that is another's, an embedding without a
    spare row, no block size.
    """
    if isinstance(config, MaskedConfig | MaskedMoeConfig):
        _check_same(config, pattern=pattern, block_size=block_size, mask_token_id=mask_token_id)
        return config
    if not isinstance(config, Qwen3VLConfig | Qwen3VLMoeConfig):
        raise BadInput(f"a model of the type {config.model_type} is not Qwen3-VL (qwen3_vl, qwen3_vl_moe); give one.")
    pattern = pattern or "full"
    if pattern not in PATTERNS:
        raise BadInput(f"attention {pattern!r}: must be one of {', '.join(PATTERNS)}.")
    if (pattern == "block") != (block_size is not None):
        raise BadInput("block_size belongs to `attention: block`; give both or neither.")
    if block_size is not None and block_size < 1:
        raise BadInput(f"block_size {block_size}: must be at least 1 token.")
    kind = MaskedMoeConfig if isinstance(config, Qwen3VLMoeConfig) else MaskedConfig
    values = config.to_dict()
    for left in ("model_type", "architectures", "transformers_version"):
        values.pop(left, None)
    token = find_mask_token(config, tokenizer) if mask_token_id is None else mask_token_id
    check_mask_token(token, config, tokenizer)
    return kind(**values, pattern=pattern, block_size=block_size, mask_token_id=token)


def find_mask_token(config: Any, tokenizer: Any) -> int:
    """The first row of the embedding that no token of the tokenizer has (151669 of the released models)."""
    return max(tokenizer.get_vocab().values()) + 1


def markers(config: Any, tokenizer: Any) -> dict[str, int]:
    """Ids that only templates and pictures write, by what they are."""
    start, filler = tokenizer.convert_tokens_to_ids([START, "<|vision_pad|>"])
    return {
        "the start of a turn": start,
        "the image token": config.image_token_id,
        "the video token": config.video_token_id,
        "the filler of pictures": filler,
        "the start of a picture": config.vision_start_token_id,
        "the end of a picture": config.vision_end_token_id,
    }


def check_mask_token(token: int, config: Any, tokenizer: Any) -> None:
    """Raise BadInput unless the embedding has this row and nothing else uses it."""
    rows, spare = config.text_config.vocab_size, find_mask_token(config, tokenizer)
    if not 0 <= token < rows:
        said = f"mask_token_id {token}: the embedding has {rows:,} rows"
        if spare < rows:
            raise BadInput(f"{said}; leave it out to take the first spare one, {spare}.")
        raise BadInput(f"{said} and none to spare; give the id of a token that your texts never use.")
    ends = {"the pad token": tokenizer.pad_token_id, "the end token": tokenizer.eos_token_id}
    for what, other in (ends | markers(config, tokenizer)).items():
        if token == other:
            raise BadInput(f"mask_token_id {token}: is {what}; leave it out to take the first spare row.")


def _check_same(config: Any, **asked: Any) -> None:
    """Raise BadInput if a converted checkpoint is asked to attend otherwise than it was trained to."""
    for key, value in asked.items():
        if value is not None and value != (trained := getattr(config, key)):
            name = "attention" if key == "pattern" else key
            raise BadInput(
                f"{name} {value}: the checkpoint was trained with {trained}; give that, or convert the autoregressive "
                "model anew."
            )
