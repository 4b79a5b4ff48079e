"""Qwen3-VL as a masked diffusion model: subclasses with the same weights, whose language model sees both ways.

    model = Qwen3VLForMaskedLM.from_pretrained("Qwen/Qwen3-VL-2B-Instruct", freeze_vision=True, freeze_merger=True)
    model.save_pretrained(folder)     # opens again as what it is, by this class or AutoModelForMaskedLM

An autoregressive checkpoint is converted while it is read; nothing of its weights changes. That a later token really
moves earlier ones is tried out once at load (`probe`): an attention that stayed causal is not to be seen in a loss.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    AutoTokenizer,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeForConditionalGeneration,
)
from transformers.modeling_outputs import MaskedLMOutput

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.attention import use as attend_per_document
from qvl_core.qwen3vl.groups import group_of
from qvl_core.qwen3vl.load import find_folder, register_architecture
from qvl_core.qwen3vl.loss import core_of
from qvl_mdlm.config import MaskedConfig, MaskedMoeConfig, Pattern, masked_config
from qvl_mdlm.probe import check_sees_both_ways
from qvl_mdlm.recipe import Diffusion

log = logging.getLogger(__name__)


class _MaskedLM:
    """What both classes add to Qwen3-VL's."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        body: Any = self.model.language_model  # type: ignore[attr-defined]
        body.register_forward_pre_hook(_prepared, with_kwargs=True)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *arguments: Any,
        attention: Pattern | None = None,
        block_size: int | None = None,
        mask_token_id: int | None = None,
        freeze_vision: bool = False,
        freeze_merger: bool = False,
        **options: Any,
    ) -> Any:
        """A model from an autoregressive or a converted checkpoint, dense or with experts, stock tower or swapped.

        attention, block_size, mask_token_id  see `masked_config`
        freeze_vision, freeze_merger          take these parts' gradients away, and log how many parameters that were
        options                               those of transformers' from_pretrained

        Raises BadInput for what cannot be meant.
        """
        config, asked = options.pop("config", None), str(name)
        if not isinstance(config, MaskedConfig | MaskedMoeConfig):
            name = folder = find_folder(asked, options.get("revision"), "name")
            if not (folder / "config.json").is_file():
                raise BadInput(f"{asked}: no config.json there, so it is no model; open adapters by open_masked.")
            register_architecture(folder / "config.json")
            config = config or AutoConfig.from_pretrained(folder)
            converted = isinstance(config, MaskedConfig | MaskedMoeConfig)
            tokenizer = None if converted else AutoTokenizer.from_pretrained(folder)
            config = masked_config(config, tokenizer, attention, block_size, mask_token_id)
        kind: Any = Qwen3VLMoeForMaskedLM if isinstance(config, MaskedMoeConfig) else Qwen3VLForMaskedLM
        loaded = super(_MaskedLM, kind).from_pretrained(  # type: ignore[misc]
            name, *arguments, config=config, **options
        )
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # with output_loading_info
        model.name_or_path = asked  # not the cache's folder: adapters name it as their base
        if "attn_implementation" not in options:
            attend_per_document(model)
        check_sees_both_ways(model)
        frozen = [("vision",)] * freeze_vision + [("merger", "deepstack_mergers")] * freeze_merger
        for groups in frozen:
            log.info("froze %s: %s parameters", " and ".join(groups), f"{freeze(model, groups):,}")
        return loaded

    def generate(self, *_: Any, **__: Any) -> Any:
        """Raises BadInput: what the library would write from left to right is nonsense here."""
        raise BadInput("this model writes by denoising; use qvl_mdlm.sample.sample, or qvl-mdlm sample.")

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        call: Callable[[Any], Tensor] | None = None,
        **options: Any,
    ) -> MaskedLMOutput | Tensor:
        """Logits (B, T, V) of what stands at each token.

        attention_mask  (B, T), 0 for padding; in `prefix` and `block` (B, 1, T, T), see `qvl_mdlm.pattern.visible`
        labels          (B, T) what the masks hide, -100 elsewhere; not shifted. The loss is their mean, unweighted;
                        that of diffusion is `qvl_core.qwen3vl.loss.next_token_loss` of a noised batch.
        call            gives call(model) in place of all that: what has to run inside the forward that DDP and FSDP see
        """
        if call is not None:
            return call(self)
        config: Any = self.config  # type: ignore[attr-defined]
        alone = options.get("past_key_values") is None
        if config.pattern != "full" and alone and (attention_mask is None or attention_mask.ndim != 4):
            raise BadInput(
                f"this model attends by {config.pattern}: give the (B, 1, T, T) mask of qvl_mdlm.pattern.visible as "
                "attention_mask, or use qvl_mdlm's train and sample."
            )
        options.setdefault("use_cache", False)
        output = self.model(input_ids=input_ids, attention_mask=attention_mask, **options)  # type: ignore[attr-defined]
        hidden = output.last_hidden_state  # (B, T, D)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden[:, kept])  # type: ignore[attr-defined]
        loss = None if labels is None else cross_entropy(logits.float().flatten(0, 1), labels.flatten())
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=output.hidden_states, attentions=output.attentions
        )


class Qwen3VLForMaskedLM(_MaskedLM, Qwen3VLForConditionalGeneration):
    """The dense models."""

    config_class = MaskedConfig


class Qwen3VLMoeForMaskedLM(_MaskedLM, Qwen3VLMoeForConditionalGeneration):
    """The models with experts."""

    config_class = MaskedMoeConfig


def configured(config: Any, processor: Any, diffusion: Diffusion) -> Any:
    """A checkpoint's configuration as a recipe's `diffusion` block has it; what `load_model` takes."""
    masked = masked_config(
        config, processor.tokenizer, diffusion.attention, diffusion.block_size, diffusion.mask_token_id
    )
    masked.pad_to = diffusion.pad_to
    return masked


def tells_apart(model: Any) -> bool:
    """Whether the samples of a packed row do not see one another: by a mask of who sees whom, or by the kernels."""
    return model.config.pattern != "full" or "flash" in core_of(model).model.language_model.config._attn_implementation


def freeze(model: Any, groups: Sequence[str]) -> int:
    """Take gradients away from module groups, and give how many parameters that are. Raises BadInput if there are none.

    groups  names of `qvl_core.qwen3vl.groups`: vision, merger, deepstack_mergers, llm, embed, lm_head
    """
    parameters = [parameter for name, parameter in model.named_parameters() if group_of(name) in groups]
    if not parameters:
        raise BadInput(f"freeze: this model has no parameters in {', '.join(groups)}; name other groups.")
    for parameter in parameters:
        parameter.requires_grad_(False)
    return sum(parameter.numel() for parameter in parameters)


def _prepared(body: Any, arguments: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """What the library's attention needs: eager adds a mask, where SDPA takes one of truth values; neither tells the
    samples of a packed row apart when it sees both ways."""
    how, mask, bounds = body.config._attn_implementation, options.get("attention_mask"), options.get("cu_seq_lens_q")
    if mask is None and bounds is not None and len(bounds) > 2 and "flash" not in how:
        raise BadInput(
            f"attention {how}: the samples of a packed row would see one another; pad them (packing: false), or call "
            "qvl_core.qwen3vl.attention.use(model)."
        )
    if how == "eager" and mask is not None and mask.ndim == 4 and mask.dtype == torch.bool:
        dtype = body.embed_tokens.weight.dtype
        added = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
        options = {**options, "attention_mask": added.masked_fill(~mask, torch.finfo(dtype).min)}
    return arguments, options


for _config, _model in ((MaskedConfig, Qwen3VLForMaskedLM), (MaskedMoeConfig, Qwen3VLMoeForMaskedLM)):
    AutoConfig.register(_config.model_type, _config)
    AutoModelForMaskedLM.register(_config, _model)
    AutoModelForImageTextToText.register(_config, _model)
