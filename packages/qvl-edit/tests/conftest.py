"""What the tests of qvl-edit share: a tiny checkpoint of each kind, and diffusers' own pipeline of it."""

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers.utils import logging as transformers_logging

from qvl_data.example.pictures import PHOTOS, opened
from qvl_edit.profile import PROFILES, Profile
from qvl_edit.tiny import NAMES, tiny, tiny_pipeline, tiny_processor

sys.path.insert(0, str(Path(__file__).parent))  # for edit_rows.py

transformers_logging.disable_progress_bar()


@pytest.fixture(scope="session")
def profile() -> Callable[[str], Profile]:
    """A profile by its name."""
    return lambda name: PROFILES[NAMES.index(name)]


@pytest.fixture(scope="session")
def pipeline(profile: Callable[[str], Profile]) -> Callable[[str], Any]:
    """The tiny pipeline of a profile by its name."""
    return cache(lambda name: tiny_pipeline(profile(name)))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a tiny checkpoint by its profile's name and its coder."""

    @cache
    def written(name: str = "edit-plus", coder: Any = "vae") -> Path:
        folder = tmp_path_factory.mktemp("checkpoints") / f"{name}-{coder}"
        tiny(folder, kind=name, coder=coder)
        return folder

    return written


@pytest.fixture(scope="session")
def processor() -> Any:
    return tiny_processor()


@pytest.fixture(scope="session")
def photo() -> Image.Image:
    return opened(PHOTOS[0].name).convert("RGB")


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run of each kind of tuning (`edit_runs.KINDS`)."""
    from edit_runs import trained

    return trained(tmp_path_factory.mktemp("runs"))
