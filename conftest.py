"""What holds for the tests of all packages.

Property tests run without Hypothesis' deadline of 200 ms, which a busy machine misses. On Linux, processes that tests
start by `forkserver` come from one that has imported what a run needs: there is one such server for all packages.
"""

import multiprocessing
import sys
from contextlib import suppress

with suppress(ImportError):  # some tests of a GPU run where it is not installed
    from hypothesis import settings

    settings.register_profile("qvl", settings(), deadline=None)
    settings.load_profile("qvl")

if sys.platform == "linux":
    # What an environment lacks is passed over.
    multiprocessing.get_context("forkserver").set_forkserver_preload(
        [
            "pytest",
            "psutil",
            "torch._dynamo",
            "matplotlib.backends.backend_svg",
            "pyarrow.parquet",
            "transformers.models.qwen3_vl.processing_qwen3_vl",
            "transformers.models.qwen2.tokenization_qwen2",
            "peft",
            "deepspeed",
            "qvl_core.training.conduct",
            "qvl_data.formats",
            "qvl_vision.model",
            "qvl_sft.cli",
            "qvl_sft.build",
        ]
    )
