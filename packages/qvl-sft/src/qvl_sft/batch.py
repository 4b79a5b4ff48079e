"""From chats to the batches of the loop: the endless order of samples, and how samples become tensors."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from qvl_core.qwen3vl.batch import Batch, collate
from qvl_core.qwen3vl.encoded import Encoded
from qvl_core.qwen3vl.features import CachedCollate, FeatureCache
from qvl_core.training.batches import SampleBatches
from qvl_data.sources import Mixture
from qvl_data.stream import ChatSamples, witness
from qvl_sft.recipe import SFTRecipe

Collate = Callable[[Sequence[Encoded]], Batch]


def collation(processor: Any, packing: bool = True) -> Collate:
    """Samples to one batch, packed or padded. A function that can be pickled to workers."""
    tokenizer, merge = processor.tokenizer, processor.image_processor.merge_size
    return partial(collate, packing=packing, merge=merge, pad_id=tokenizer.pad_token_id)


def chat_samples(recipe: SFTRecipe, mixture: Mixture, processor: Any) -> ChatSamples:
    """The endless, seeded order of a mixture's chats."""
    batch = recipe.batch
    return ChatSamples(
        mixture, processor, recipe.train.seed, batch.max_length, batch.too_long, train_on=recipe.data.train_on
    )


def chat_batches(recipe: SFTRecipe, samples: ChatSamples, cache: FeatureCache | None = None) -> SampleBatches:
    """The batches of every step; with a cache, they carry features in place of pixels."""
    processor = samples.processor
    packed = collation(processor, recipe.batch.packing)
    together = packed if cache is None else CachedCollate(packed, cache)
    return SampleBatches(samples, recipe.batch, recipe.train.seed, together, witness(processor))
