"""GPUs that `plan` knows: their memory and how fast they multiply 16-bit matrices.

Memory is what nvidia-smi shows; rates are dense bf16 with fp32 sums, from NVIDIA's data sheets and architecture papers
(read 2026-11). Large products reach about 0.8 of them (published for H100 and H200), which is what plans take.
"""

import difflib
from typing import NamedTuple

from qvl_core.errors import BadInput


class Card(NamedTuple):
    """One kind of GPU."""

    name: str
    gib: float
    teraflops: float  # of the data sheet

    @property
    def flops(self) -> float:
        """Operations per second in large matrix products."""
        return 0.8e12 * self.teraflops


CARDS = {
    "3090": Card("RTX 3090", 24.0, 71.2),
    "4090": Card("RTX 4090", 24.0, 165.2),
    "5090": Card("RTX 5090", 31.8, 209.5),
    "l4": Card("L4", 22.5, 121),
    "a6000": Card("RTX A6000", 48.0, 154.8),
    "l40s": Card("L40S", 45.0, 362),
    "a100-40": Card("A100 40 GB", 40.0, 312),
    "a100": Card("A100 80 GB", 80.0, 312),
    "h100": Card("H100 SXM", 79.6, 989),
    "h200": Card("H200", 140.4, 989),
    "b200": Card("B200", 179.1, 2250),
}


def card(name: str) -> Card:
    """The card of a name, in whatever case. Raises BadInput with those that are known."""
    if (found := CARDS.get(name.lower())) is not None:
        return found
    near = difflib.get_close_matches(name.lower(), CARDS, n=1)
    meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(CARDS)}."
    raise BadInput(f"--gpu {name}: is not known; {meant}")
