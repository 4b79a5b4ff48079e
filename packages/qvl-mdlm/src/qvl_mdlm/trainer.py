"""`transformers.Trainer` for masked diffusion, for those who keep their own training script.

    model = Qwen3VLForMaskedLM.from_pretrained("Qwen/Qwen3-VL-2B-Instruct", freeze_vision=True, freeze_merger=True)
    trainer = Qwen3VLTrainer(
        model=get_peft_model(model, lora_config),
        args=TrainingArguments("outputs", per_device_train_batch_size=4, learning_rate=2e-4, bf16=True),
        train_dataset=rows,                            # a list, a datasets.Dataset: anything that qvl-data reads
        data_collator=create_qwen3_vl_collator(processor),
    )
    trainer.train()

Masks are drawn on the host before a step's first forward, from (args.seed, step, place of the sample in the step's
global batch), with times spread over that batch: a resumed run masks what the uninterrupted one would have, and more
processes or accumulated micro-batches change nothing. Their losses are sums over what could be masked in the whole
step. Evaluation draws the same masks every time.

Shapes: B samples of a micro-batch, N masked tokens.
"""

import copy
import logging
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from qvl_core.errors import BadInput
from qvl_core.qwen3vl.batch import Batch
from qvl_core.qwen3vl.encoded import IGNORE
from qvl_core.qwen3vl.loss import next_token_loss, token_losses
from qvl_core.training.samples import Place
from qvl_core.training.seeds import mix
from qvl_mdlm.batch import Corruption, Noised, collate
from qvl_mdlm.collator import create_qwen3_vl_collator, split
from qvl_mdlm.config import MaskedConfig, MaskedMoeConfig, masked_config
from qvl_mdlm.layout import shape_of
from qvl_mdlm.noise import Noise
from qvl_mdlm.recipe import Diffusion
from qvl_mdlm.settings import write_settings

SPREAD = 32  # samples of an evaluation, in order, whose times are spread over the interval together

log = logging.getLogger(__name__)


class Qwen3VLTrainer(Trainer):
    """Trains a `Qwen3VLForMaskedLM`, as it is or with peft around it.

    args              plain TrainingArguments; unused columns are kept whatever they say
    data_collator     of `create_qwen3_vl_collator`; default: that of `processing_class`
    processing_class  saved in checkpoints; default: the collator's processor
    diffusion         schedule, masks, times, weight and norm, as in recipes. Who sees whom is the model's, and what may
                      be masked the collator's

    Raises BadInput for what cannot be meant.
    """

    loss_is_scaled_for_ga = True  # the library's flag: losses are already divided by the count of the whole step

    def __init__(
        self,
        model: Any = None,
        args: TrainingArguments | None = None,
        data_collator: Any = None,
        *arguments: Any,
        diffusion: Diffusion | None = None,
        processing_class: Any = None,
        **options: Any,
    ) -> None:
        args = copy.copy(args or TrainingArguments("outputs"))
        args.remove_unused_columns = False  # they are what the collator reads
        if args.n_gpu > 1:
            log.warning("training on one of %d GPUs; start the script with torchrun to use all", args.n_gpu)
            args._n_gpu = 1  # the library would cut pictures up among them
        if data_collator is None and processing_class is not None:
            data_collator = create_qwen3_vl_collator(processing_class)
        processor = processing_class or getattr(data_collator, "processor", None)
        if data_collator is None or processor is None:
            raise BadInput("Qwen3VLTrainer: no processor; give data_collator=create_qwen3_vl_collator(processor).")
        _check_taken(args, options)
        super().__init__(model, args, data_collator, *arguments, processing_class=processor, **options)
        self.diffusion = diffusion or Diffusion()
        config = self.model.config
        _check_settings(config, data_collator, self.diffusion)
        config.pad_to = getattr(data_collator, "pad_to", self.diffusion.pad_to)  # evaluation fills canvases up alike
        self._shape = shape_of(config, getattr(processor, "tokenizer", processor), config.pad_to)
        self._evaluated = 0  # batches of the evaluation under way
        self._measured: list[Tensor] = []  # (2, B) losses and shares of each of them

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Tensor]:
        """The step's micro-batches with their masks, and what their losses are divided by, on all processes together.

        `input_ids` are for the library's figures alone.
        """
        found = []
        share = 0
        size, world = self._train_batch_size, self.args.world_size
        whole = self.args.gradient_accumulation_steps * world * size  # samples of a step
        for micro, inputs in enumerate(islice(epoch_iterator, num_batches)):
            slot = (micro * world + self.args.process_index) * size
            batch, shares = self._noised(inputs, self.args.seed, Place(self.state.global_step, slot, whole))
            share += int(shares.sum())
            found.append({"input_ids": batch.input_ids, "noised": batch})
        count = torch.tensor(share, device=device)
        return found, self.accelerator.reduce(count, "sum")

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of a noised micro-batch, summed and divided by `num_items_in_batch`.

        What a collator gave is noised as the first of its step, and its loss divided by its own share.
        """
        if "noised" in inputs:
            batch = inputs["noised"]
        else:
            batch, shares = self._noised(inputs, self.args.seed, Place(0, 0, len(inputs["input_ids"])))
            num_items_in_batch = int(shares.sum())
        batch = batch.to(self.args.device, non_blocking=True)
        total: Tensor = model(call=partial(next_token_loss, batch=batch))
        # Gradients are averaged over processes, and the count is that of all of them.
        loss = total * self.accelerator.num_processes / num_items_in_batch
        return (loss, {"loss": loss}) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, None, None]:
        """The loss of a batch at the masks of its place in the evaluation."""
        first = (self._evaluated * self.args.world_size + self.args.process_index) * self.args.eval_batch_size
        self._evaluated += 1
        batch, shares = self._noised(inputs, mix(self.args.seed, "evaluation"), Place(0, first, SPREAD))
        batch = batch.to(self.args.device)
        assert batch.weights is not None
        weighted = model(call=partial(token_losses, batch=batch)) * batch.weights  # (N,)
        losses = weighted.new_zeros(len(batch.ids)).index_add_(0, batch.row_of_label, weighted)
        shares = shares.to(losses)  # (B,)
        losses = losses.view(len(shares), -1).sum(1)  # (B,): both halves of a complementary pair
        figures = self.accelerator.gather_for_metrics(torch.stack([losses, shares], 1))  # without what fills the last
        self._measured.append(figures)
        return losses.sum() / shares.sum(), None, None

    def evaluation_loop(self, *arguments: Any, **options: Any) -> Any:
        """As the library has it; the loss is a mean over all samples as `norm` says, whatever the batches."""
        self._evaluated, self._measured = 0, []
        output = super().evaluation_loop(*arguments, **options)
        prefix = options.get("metric_key_prefix", "eval")
        if self._measured:
            total, share = torch.cat(self._measured).double().sum(0).tolist()
            output.metrics[f"{prefix}_loss"] = total / share
        return output

    def _get_dataloader(self, *arguments: Any, **options: Any) -> Any:
        """Batches stay on the host, where their masks are drawn: nothing waits for the device."""
        placed, self.accelerator.device_placement = self.accelerator.device_placement, False
        try:
            return super()._get_dataloader(*arguments, **options)
        finally:
            self.accelerator.device_placement = placed

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save and isinstance(self.accelerator.unwrap_model(self.model), PeftModel):
            write_settings(self.model.config, output_dir or self.args.output_dir)

    def _noised(self, inputs: dict[str, Any], seed: int, first: Place) -> tuple[Batch, Tensor]:
        """A collator's batch with masks, and the share of each sample (B,) in the loss's denominator.

        first  place of the batch's first sample; those that do not fit into its step begin further ones
        """
        samples = split(inputs, self.model.config)
        if not bool((inputs["labels"] != IGNORE).any()):
            raise BadInput(
                "data_collator: nothing in this batch may be masked, its labels are all -100; give rows with answers, "
                "or learn prompts as well: create_qwen3_vl_collator(processor, mask_prompt_loss=False)."
            )
        config, diffusion = self.model.config, self.diffusion
        halves = (False, True) if diffusion.complementary else (False,)
        corrupt = Corruption(self._shape, Noise.of(diffusion), config.mask_token_id, diffusion.norm)
        noised: list[Noised] = []
        for row, sample in enumerate(samples):
            further, slot = divmod(first.slot + row, first.of)
            noised += [corrupt(sample, seed, Place(first.step + further, slot, first.of), half) for half in halves]
        patterned = config.pattern != "full"
        pad = self._shape.pad_id
        batch = collate(noised, packing=False, patterned=patterned, merge=self._shape.merge, pad_id=pad)
        return batch, torch.tensor([sample.share for sample in noised]).view(-1, len(halves)).sum(1)


def _check_taken(args: TrainingArguments, options: dict[str, Any]) -> None:
    """Raise BadInput for what the library's Trainer takes and this one would not heed."""
    if args.label_smoothing_factor:
        raise BadInput("label_smoothing_factor: the bound on the likelihood has none; remove it.")
    if options.get("compute_loss_func") is not None:
        raise BadInput("compute_loss_func: the loss is that of `diffusion`; remove it, or override compute_loss.")
    if options.get("compute_metrics") is not None:
        raise BadInput(
            "compute_metrics: denoising gives no logits of whole answers; remove it, and judge what "
            "qvl_mdlm.sample.sample writes."
        )


def _check_settings(config: Any, collator: Any, diffusion: Diffusion) -> None:
    """Raise BadInput if model, collator and `diffusion` contradict one another."""
    if not isinstance(config, MaskedConfig | MaskedMoeConfig):
        raise BadInput(
            f"model: a {config.model_type} attends causally; load it with Qwen3VLForMaskedLM.from_pretrained."
        )
    said = diffusion.model_fields_set
    own = {key: getattr(diffusion, key) for key in ("attention", "block_size", "mask_token_id") if key in said}
    masked_config(config, None, own.get("attention"), own.get("block_size"), own.get("mask_token_id"))
    if not getattr(collator, "mask_prompt_loss", True) and config.pattern != "full":
        raise BadInput(
            f"mask_prompt_loss=False: this model attends by {config.pattern}, where prompts are never masked; leave it "
            "out."
        )
    for key, value in (
        ("pad_to", getattr(collator, "pad_to", diffusion.pad_to)),
        ("prompt_loss", not getattr(collator, "mask_prompt_loss", not diffusion.prompt_loss)),
    ):
        if key in said and value != getattr(diffusion, key):
            raise BadInput(
                f"diffusion.{key} {getattr(diffusion, key)}: the collator says {value}; say it there alone "
                "(create_qwen3_vl_collator)."
            )
