"""Qwen3-VL with a swapped tower: subclasses that change nothing, known to the Auto classes on import.

import qvl_vision.model                                      # `import qvl_vision` does it on first use
model = AutoModelForImageTextToText.from_pretrained(folder)  # a swapped checkpoint; no remote code
"""

from typing import Any

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoVideoProcessor,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeForConditionalGeneration,
)

from qvl_vision.config import QVLConfig, QVLMoeConfig, QVLVisionConfig
from qvl_vision.processing import QVLImageProcessor, QVLVideoProcessor
from qvl_vision.tower import QVLVisionModel


class _WithoutDeepStack:
    """Several answers at once (beams, num_return_sequences) where DeepStack is off.

    transformers 5.23 looks at the first DeepStack layer of a tower's output, and fails if there is none
    (GenerationMixin._expand_multimodal_outputs in transformers/generation/utils.py).
    """

    def _expand_multimodal_outputs(self, input_ids: Any, mm_encoder_output: Any, **options: Any) -> Any:
        empty = [out for out in mm_encoder_output.values() if out is not None and out.deepstack_features == []]
        for out in empty:
            out.deepstack_features = None
        expanded = super()._expand_multimodal_outputs(input_ids, mm_encoder_output, **options)  # type: ignore[misc]
        for out in empty:
            out.deepstack_features = []
        return expanded


class QVLForConditionalGeneration(_WithoutDeepStack, Qwen3VLForConditionalGeneration):
    """The dense models."""

    config_class = QVLConfig


class QVLMoeForConditionalGeneration(_WithoutDeepStack, Qwen3VLMoeForConditionalGeneration):
    """The models with experts."""

    config_class = QVLMoeConfig


AutoConfig.register(QVLVisionConfig.model_type, QVLVisionConfig)
AutoConfig.register(QVLConfig.model_type, QVLConfig)
AutoConfig.register(QVLMoeConfig.model_type, QVLMoeConfig)
AutoModel.register(QVLVisionConfig, QVLVisionModel)
AutoModelForImageTextToText.register(QVLConfig, QVLForConditionalGeneration)
AutoModelForImageTextToText.register(QVLMoeConfig, QVLMoeForConditionalGeneration)
AutoImageProcessor.register(QVLVisionConfig, image_processor_classes={"torchvision": QVLImageProcessor})
AutoVideoProcessor.register(QVLVisionConfig, QVLVideoProcessor)
