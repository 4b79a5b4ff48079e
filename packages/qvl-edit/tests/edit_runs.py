"""Short runs of each kind of tuning on the tiny model, for tests of what uses a trained one."""

from pathlib import Path

from edit_rows import task

from qvl_core.recipe.load import load
from qvl_edit import train
from qvl_edit.extract import extract
from qvl_edit.recipe import RECIPE

KINDS = {
    "full": ["tune={transformer: {mode: full}}"],
    "part": ["tune={attn.to_q: {mode: full}}"],
    "lora": ["tune={attn: {mode: lora, rank: 4, alpha: 8}, img_mlp: {mode: lora, rank: 2}}"],
    "both": ["tune={attn: {mode: lora, rank: 4, alpha: 8}, img_mlp: {mode: full}}"],
}


def trained(folder: Path) -> dict[str, Path]:
    """A run of each kind, with a checkpoint of its last step and final/."""
    task(folder / "rows", (1, 1, 2, 0))
    found = {}
    for kind, changes in KINDS.items():
        given = [f"data={{train: {folder / 'rows' / 'rows.jsonl'}}}", f"stored.embeddings={folder / 'embeddings'}"]
        given += ["train.steps=2", "batch.size=2", "optim.lr=1e-2", "sampling={guidance: 2, steps: 3, negative: bad}"]
        recipe = load(RECIPE, "tiny", [*given, *changes], "qvl_edit")
        if not found:
            extract(recipe, folder / "embeddings")
        found[kind] = folder / "runs" / kind
        train(recipe, found[kind])
    return found
