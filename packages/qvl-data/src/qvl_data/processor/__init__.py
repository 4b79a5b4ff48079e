"""A model's processor as far as lengths need it: tokenizer, chat template and settings, without torch or transformers.

    processor = open_processor("Qwen3-VL-4B-Instruct")     # a local folder
    qvl_data.chat.length(sample, processor)                # what transformers' own processor gives, exactly

It counts; it makes no pixels. Its settings have the names of transformers' (`image_processor.size`,
`video_processor.fps`, ...), so that `qvl_core.qwen3vl.budgets.apply_media` sets the budgets of either. Picklable.
"""

from .files import open_processor
from .parts import ImageProcessor, Processor, Tokenizer, VideoProcessor

__all__ = ["ImageProcessor", "Processor", "Tokenizer", "VideoProcessor", "open_processor"]
