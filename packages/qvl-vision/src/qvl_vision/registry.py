"""Encoders and mergers by name. Names come from this package, from `register_*`, and from installed packages.

    @register_encoder("stripes", size=64, mean=(0.5,) * 3, std=(0.5,) * 3)
    class Stripes(nn.Module): ...                       # pictures (B, 3, 64, 64) to tokens (B, N, D)

An installed package makes its names known through an entry point of the group `qvl_vision` that names a module, which
registers when it is imported. A file does through `--plugin FILE.py`. A recipe or checkpoint only ever names what is
registered: opening one runs no code of its own. Importing this loads no torch.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, TypeVar

from qvl_core.errors import BadInput

if TYPE_CHECKING:
    from torch import nn

GROUP = "qvl_vision"
Triple = tuple[float, float, float]


@dataclass(frozen=True)
class EncoderInfo:
    """What is known of an encoder before it is opened; the checkpoint's own files have the last word.

    family   its model_type in transformers; `module` for one's own, `native` for Qwen's tower
    source   hub id that is taken if none is named
    size     side of the square pictures it was trained on, in pixels
    patch    side of a patch in pixels (of a convolutional net: its total stride); None: any number of tokens
    prefix   tokens before the patch tokens (CLS, registers)
    feature_layer  the layer that is usually taken, as an index of `hidden_states`; None: the output
    build, pretrained  of a module of one's own (see register_encoder)
    shape    arguments of its transformers configuration, for plans without its files
    """

    name: str
    about: str
    family: str = "module"
    source: str | None = None
    size: int | None = None
    patch: int | None = None
    prefix: int = 0
    mean: Triple | None = None
    std: Triple | None = None
    licence: str = "not stated"
    feature_layer: int | None = None
    build: "Callable[..., nn.Module] | None" = None
    pretrained: "Callable[[nn.Module], object] | None" = None
    shape: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class MergerInfo:
    """What is known of a merger. `build(vision_width, text_width, merge, **options)` makes the module.

    merge    side of the square of patches that becomes one token, if none is asked for
    whole    it has to see all tokens of one picture (n, N, D); else it is called with all pictures' tokens at once
    queries  name of the option that says how many tokens it gives for a picture, whatever N is; None: N / merge**2
    """

    name: str
    about: str
    build: "Callable[..., nn.Module]"
    merge: int = 1
    whole: bool = False
    queries: str | None = None


I = TypeVar("I", EncoderInfo, MergerInfo)  # noqa: E741
F = TypeVar("F", bound=Callable[..., Any])

_encoders: dict[str, EncoderInfo] = {}
_mergers: dict[str, MergerInfo] = {}


def register_encoder(
    name: str,
    *,
    size: int,
    mean: Triple,
    std: Triple,
    patch: int | None = None,
    about: str = "",
    licence: str = "not stated",
    pretrained: "Callable[[nn.Module], object] | None" = None,
) -> Callable[[F], F]:
    """Make a module class (or a function that returns a module) known as the encoder `name`.

    The module takes normalised pictures (B, 3, H, W) and returns tokens (B, N, D) with any N. It is made again, with
    the same options, whenever a checkpoint is loaded, and its weights are then the checkpoint's.

    size, mean, std  what its pictures are resized to (square) and normalised with
    patch       side of a patch, if it takes pictures of any size and N is (H / patch) * (W / patch), row by row
    pretrained  called with the new module by `swap` alone: puts pretrained weights into it, in place

    Raises BadInput for a name that is taken.
    """

    def add(build: F) -> F:
        words = (about or build.__doc__ or "").strip().split("\n")[0]
        info = EncoderInfo(
            name, words, "module", None, size, patch, 0, mean, std, licence, build=build, pretrained=pretrained
        )
        _add(_encoders, info, "encoder")
        return build

    return add


def register_merger(
    name: str, *, merge: int = 1, whole: bool = False, queries: str | None = None, about: str = ""
) -> Callable[[F], F]:
    """Make a module class known as the merger `name`: `build(vision_width, text_width, merge, **options)`.

    Its forward takes (..., N, D) and returns (..., N / merge**2, text width); the `merge**2` patches of a square lie
    next to each other. See MergerInfo for `whole` and `queries`. Raises BadInput for a name that is taken.
    """

    def add(build: F) -> F:
        words = (about or build.__doc__ or "").strip().split("\n")[0]
        _add(_mergers, MergerInfo(name, words, build, merge, whole, queries), "merger")
        return build

    return add


def add_encoder(info: EncoderInfo) -> None:
    """Make an encoder of the catalogue known."""
    _add(_encoders, info, "encoder")


def encoder_info(name: str) -> EncoderInfo:
    """The encoder called `name`. Raises BadInput with what was probably meant."""
    return _find(_known_encoders(), name, "encoder")


def merger_info(name: str) -> MergerInfo:
    """The merger called `name`. Raises BadInput with what was probably meant."""
    return _find(_known_mergers(), name, "merger")


def list_encoders(pattern: str = "*") -> list[EncoderInfo]:
    """The encoders whose names match a glob pattern (`dino*`), by name."""
    return _matching(_known_encoders(), pattern)


def list_mergers(pattern: str = "*") -> list[MergerInfo]:
    """The mergers whose names match a glob pattern, by name."""
    return _matching(_known_mergers(), pattern)


def family_of(model_type: str) -> EncoderInfo | None:
    """The first encoder of the catalogue that is of this model_type."""
    return next((info for info in _known_encoders().values() if info.family == model_type), None)


def _known_encoders() -> Mapping[str, EncoderInfo]:
    import_module("qvl_vision.catalogue")
    _from_packages()
    return _encoders


def _known_mergers() -> Mapping[str, MergerInfo]:
    import_module("qvl_vision.mergers")
    _from_packages()
    return _mergers


@cache
def _from_packages() -> None:
    """Import the modules that installed packages name; one that fails is told, once, and left out."""
    import logging

    for point in entry_points(group=GROUP):
        try:
            point.load()
        except Exception as error:
            logging.getLogger(__name__).warning(
                "the entry point %s (%s) cannot be loaded and is left out: %s", point.name, point.value, error
            )


def _add(known: dict[str, I], info: I, what: str) -> None:
    if info.name in known and not _same(known[info.name].build, info.build):
        raise BadInput(f'the {what} "{info.name}" is registered already; choose another name.')
    known[info.name] = info


def _same(one: Any, other: Any) -> bool:
    """Whether two builders are one, defined twice (a notebook's cell that is run again)."""
    return one is not None and other is not None and _place(one) == _place(other)


def _place(build: Any) -> tuple[str, str]:
    return build.__module__, build.__qualname__


def _find(known: Mapping[str, I], name: str, what: str) -> I:
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name.lower(), known, n=1)
    meant = f'did you mean "{near[0]}"?' if near else f"known are {', '.join(sorted(known))}."
    raise BadInput(f'no {what} is called "{name}"; {meant}')


def _matching(known: Mapping[str, I], pattern: str) -> list[I]:
    return [known[name] for name in sorted(known) if fnmatchcase(name, pattern)]
