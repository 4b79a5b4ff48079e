"""`qvl-metaquery convert`: a checkpoint in upstream's layout becomes a folder that draws here.

Queries are cut out of the vocabulary, names are changed, and nothing else: each tensor has its place, or the checkpoint
is refused. Upstream's weight decay moves the embedding of the "frozen" Qwen3-VL; where it did, the moved Qwen3-VL is
written as well, since the queries were learned behind it.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors import safe_open
from torch import Tensor

from qvl_core.errors import BadInput, first_line
from qvl_core.files import new_folder
from qvl_core.qwen3vl.load import commit_of, load_model, quiet, stored_precision
from qvl_core.recipe.blocks import Model
from qvl_metaquery.opening import assemble, open_sana, open_transformer
from qvl_metaquery.recipe import Sana
from qvl_metaquery.settings import SYSTEM, Settings
from qvl_metaquery.upstream import TABLE, Upstream, query_rows, sorted_out
from qvl_metaquery.weights import put, save

QWEN = "qwen3vl"  # folder of a Qwen3-VL that is not as it was released


def convert(folder: Path, out: Path, mllm: Model, sana: Sana, size: int, system: str) -> None:
    """Read the checkpoint in `folder`, trained over the Qwen3-VL `mllm` and the Sana `sana`, and write `out`.

    size    side of the pictures in pixels
    system  text of the system turn that it was trained with
    Raises BadInput.
    """
    if out.exists():
        raise BadInput(f"{out}: is there already; name a new folder with --out.")
    stored = Stored(folder)
    parts = sorted_out(stored)
    rows = query_rows(_tokenizer(folder))
    console = Console()
    source = open_sana(sana.name, sana.revision)
    base, processor = load_model(mllm, precision=stored_precision(mllm.name, mllm.revision), device="cpu")
    settings = Settings(
        mllm=_lasting(mllm.name),
        mllm_revision=commit_of(mllm.name, mllm.revision) or mllm.revision,
        sana=_lasting(sana.name),
        sana_revision=commit_of(sana.name, sana.revision, "transformer/config.json") or sana.revision,
        queries=len(rows) - 2,
        system=system,
        layers=parts.layers,
        size=size,
    )
    transformer = open_transformer(source / "transformer", torch.float32)
    own = {name: _flat(name, stored[there]) for name, there in parts.connector.items()}
    table = stored[parts.mllm[TABLE]]
    if max(rows) >= len(table):
        raise BadInput(f"{folder}: its tokenizer has rows that the embedding of {len(table):,} has not; copy its own.")
    own["queries"] = table[rows]
    put(assemble(base, transformer, settings), own, str(folder))
    if parts.transformer:
        _put_all(transformer, {name: stored[there] for name, there in parts.transformer.items()}, folder)
    moved = _take_over(base, parts, stored, rows, folder)
    with new_folder(out) as aside:
        if moved:
            settings = settings.model_copy(update={"mllm": str(aside.resolve() / QWEN), "mllm_revision": None})
            with quiet(bars=False):
                base.save_pretrained(aside / QWEN)
            processor.save_pretrained(aside / QWEN)
        save(aside, settings, own, transformer if parts.transformer else None, processor)
    console.print(*_report(out, parts, len(rows) - 2, moved, system == SYSTEM), sep="\n", markup=False)


def _lasting(name: str) -> str:
    """A folder by its whole path, a hub id as it is."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name


class Stored(Mapping[str, Tensor]):
    """The tensors of all files in a folder, each read when it is asked for: safetensors, or torch's without code."""

    def __init__(self, folder: Path) -> None:
        self._files: dict[str, Path] = {}
        self._pickled: dict[str, Tensor] = {}
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                self._files |= dict.fromkeys(file.keys(), path)
        for path in sorted(folder.glob("pytorch_model*.bin")) if not self._files else ():
            self._pickled |= torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if not self._files and not self._pickled:
            raise BadInput(f"{folder}: has no *.safetensors and no pytorch_model*.bin; name a checkpoint's folder.")

    def __getitem__(self, name: str) -> Tensor:
        if name in self._pickled:
            return self._pickled[name].float()
        with safe_open(self._files[name], framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor.float()

    def __iter__(self) -> Iterator[str]:
        yield from self._files or self._pickled

    def __len__(self) -> int:
        return len(self._files or self._pickled)


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        with quiet(bars=False):
            return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise BadInput(
            f"{folder}: its tokenizer, which says which rows are queries, cannot be read ({first_line(error)}); save "
            "the one of the run beside its weights."
        ) from None


def _flat(name: str, tensor: Tensor) -> Tensor:
    """Weights of unit-length queries and keys are (heads, 1, 64) there, and one row here."""
    return tensor.flatten() if name.endswith("_scale") else tensor


def _put_all(module: torch.nn.Module, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Put every weight into its place. Raises BadInput for one that has none, and for a place that gets none."""
    places = module.state_dict()
    for name in sorted(places.keys() ^ weights.keys()):
        side = "has no place in Sana's transformer" if name in weights else "is lacking"
        raise BadInput(f"{folder}: transformer.{name} {side}; give the Sana that it was trained over with --sana.")
    for name, value in weights.items():
        _check_shape(f"{folder}: transformer.{name}", value, places[name], "--sana")
    module.load_state_dict(dict(weights))


@torch.no_grad()
def _take_over(base: Any, parts: Upstream, stored: Stored, rows: list[int], folder: Path) -> int:
    """Give the base what its tensors are in the checkpoint; the number of those that were not the same in 16 bits.

    lm_head is left as it is: it is an identity there, or the embedding.
    """
    moved, places = 0, base.state_dict()
    for name, there in parts.mllm.items():
        if name.startswith("lm_head"):
            continue
        if name not in places:
            raise BadInput(f"{folder}: {there} has no place in the Qwen3-VL; give its own with --mllm.")
        place, value = places[name], stored[there]
        if name == TABLE:  # without the rows that were added
            value = value[: min(len(place), *rows)]
            place = place[: len(value)]
        _check_shape(f"{folder}: {there}", value, place, "--mllm")
        if not torch.equal(place.bfloat16(), value.bfloat16()):
            place.copy_(value)
            moved += 1
    return moved


def _check_shape(where: str, value: Tensor, place: Tensor, option: str) -> None:
    if value.shape != place.shape:
        raise BadInput(
            f"{where} is {tuple(value.shape)} and should be {tuple(place.shape)}; give the model that it was trained "
            f"over with {option}."
        )


def _report(out: Path, parts: Upstream, number: int, moved: int, usual: bool) -> Iterator[str]:
    sana = f"Sana's transformer ({len(parts.transformer)} tensors)" if parts.transformer else "no transformer"
    yield f"{out}: {number} queries, connector of {parts.layers} layers ({len(parts.connector)} tensors), {sana}."
    if moved:
        yield (
            f"{moved} tensors of its Qwen3-VL are not those of the model it was trained over (weight decay moves an "
            f"embedding that gets no gradient): they are written to {out / QWEN}, and used."
        )
    if usual:
        yield "note: prompts get this package's system text; if it was trained behind another, give that with --system."
    begun = f"model.name={out / QWEN} model.init_from={out}" if moved else f"model.init_from={out}"
    yield f'Draw with `qvl-metaquery generate {out} --prompt "a red fox"`; train on with `{begun}`.'
