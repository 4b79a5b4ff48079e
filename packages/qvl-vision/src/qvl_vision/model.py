"""Qwen3-VL with a swapped tower: subclasses without a method of their own, known to the Auto classes on import.

import qvl_vision.model                                      # `import qvl_vision` does it on first use
model = AutoModelForImageTextToText.from_pretrained(folder)  # a swapped checkpoint; no remote code
"""

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


class QVLForConditionalGeneration(Qwen3VLForConditionalGeneration):
    """The dense models."""

    config_class = QVLConfig


class QVLMoeForConditionalGeneration(Qwen3VLMoeForConditionalGeneration):
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
