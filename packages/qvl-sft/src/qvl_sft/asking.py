"""How models are opened and asked: what `evaluate` and `compare` take alike. No torch is imported here."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qvl_data.sources import Mixture, read_sources

SPLIT = "test"
MAX_NEW_TOKENS = 64


@dataclass(frozen=True)
class Asking:
    """None: not given, which is the default that stands beside it.

    base            of adapters (the one that each names)
    quantization    nf4 or int8: hold the language model in fewer bits
    spread          lay the model over all GPUs and the host's memory
    samples         of each list, at most: a fixed random choice (all)
    max_new_tokens  of an answer, at most (64)
    split           of dataset folders (test)
    media_root, allow_root  where media are read
    """

    base: str | None = None
    quantization: str | None = None
    spread: bool = False
    samples: int | None = None
    max_new_tokens: int | None = None
    split: str | None = None
    media_root: Path | None = None
    allow_root: Sequence[Path] = ()

    def lists(self, data: Sequence[str]) -> dict[str, Mixture]:
        """The samples of `data`, under the name of their split; none without data. Raises BadInput."""
        split = self.split or SPLIT
        return {split: Mixture(read_sources(*data), split, self.media_root, self.allow_root)} if data else {}

    @property
    def longest(self) -> int:
        return MAX_NEW_TOKENS if self.max_new_tokens is None else self.max_new_tokens

    @property
    def of_models(self) -> list[str]:
        """The options that were given and only say how a model answers."""
        options = {
            "--base": self.base,
            "--quant": self.quantization,
            "--device-map": self.spread or None,
            "--samples": self.samples,
            "--max-new-tokens": self.max_new_tokens,
        }
        return [option for option, value in options.items() if value is not None]

    @property
    def of_data(self) -> list[str]:
        """The options that were given and only say where samples are found."""
        options = {"--split": self.split, "--media-root": self.media_root, "--allow-root": self.allow_root or None}
        return [option for option, value in options.items() if value is not None]
