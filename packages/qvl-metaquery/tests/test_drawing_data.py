"""Each shipped recipe draws from rows as they stand in the set that it names, with that set's own columns."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qvl_core.recipe.blocks import Data
from qvl_core.recipe.load import load
from qvl_core.recipe.shipped import shipped
from qvl_data.example.digits import digit_png
from qvl_data.sources import mixtures
from qvl_metaquery.build import drawing_samples
from qvl_metaquery.recipe import RECIPE

datasets = pytest.importorskip("datasets", reason="needs qvl-data[hub]")
IMAGE, TEXT, WHOLE = datasets.Image(), datasets.Value("string"), datasets.Value("int64")
LARGE = [recipe.name for recipe in shipped("qvl_metaquery") if recipe.name.startswith("qwen3vl")]


def cell(index: int) -> dict[str, Any]:
    return {"bytes": digit_png(index), "path": f"{index}.jpg"}


def cc12m(index: int) -> dict[str, Any]:
    about = {"caption": "a digit", "url": "http://host/a.jpg", "key": f"{index:09d}", "width": 28, "height": 28}
    files = {"jpg": cell(index), "json": about, "txt": f"digit {index}"}
    return {"__key__": f"{index:09d}", "__url__": "hf://cc12m-train-0000.tar", **files}


def omniedit(index: int) -> dict[str, Any]:
    pictures = {"src_img": cell(index), "edited_img": cell(index + 1)}
    said = {"edited_prompt_list": ["Change it.", f"digit {index}"], "sc_reasoning": "Good.", "pq_reasoning": "Sharp."}
    scores = {"width": 28, "height": 28, "sc_score_1": 9, "sc_score_2": 9, "pq_score": 8, "o_score": 8.5}
    return {"omni_edit_id": f"task_{index}", "task": "attribute_modification", **pictures, **said, **scores}


def instruct(index: int) -> dict[str, Any]:
    sources = {"source_images": [cell(index), cell(index + 1)], "source_captions": ["One.", "Another."]}
    return {**sources, "prompt": f"digit {index}", "target_image": cell(index + 2), "target_caption": "A third."}


SETS: dict[str, tuple[Callable[[int], dict[str, Any]], dict[str, Any], int]] = {
    "pixparse/cc12m-wds": (
        cc12m,
        {"__key__": TEXT, "__url__": TEXT, "jpg": IMAGE, "txt": TEXT}
        | {"json": {"caption": TEXT, "url": TEXT, "key": TEXT, "width": WHOLE, "height": WHOLE}},
        0,
    ),
    "TIGER-Lab/OmniEdit-Filtered-1.2M": (
        omniedit,
        {"omni_edit_id": TEXT, "task": TEXT, "src_img": IMAGE, "edited_img": IMAGE}
        | {"edited_prompt_list": datasets.Sequence(TEXT), "width": WHOLE, "height": WHOLE}
        | {"sc_score_1": WHOLE, "sc_score_2": WHOLE, "sc_reasoning": TEXT, "pq_score": WHOLE, "pq_reasoning": TEXT}
        | {"o_score": datasets.Value("float64")},
        1,
    ),
    "xcpan/MetaQuery_Instruct_2.4M_512res": (
        instruct,
        {"source_images": datasets.Sequence(IMAGE), "source_captions": datasets.Sequence(TEXT)}
        | {"prompt": TEXT, "target_image": IMAGE, "target_caption": TEXT},
        2,
    ),
}
"""By name: a row, the types of its columns, and the pictures that a prompt shows."""


@pytest.mark.parametrize("name", LARGE)
def test_a_recipe_draws_from_its_set(name: str, processor: Any, tmp_path: Path) -> None:
    recipe = load(RECIPE, name, ["flow.size=32", "flow.dropout=0"], "qvl_metaquery")
    row, columns, shown = SETS[recipe.data.train[0].source]
    rows = [row(index) for index in range(4)]
    datasets.Dataset.from_list(rows, features=datasets.Features(columns)).save_to_disk(tmp_path / "saved")
    mixture = mixtures(Data.model_validate({"train": str(tmp_path / "saved")}))["train"]
    samples = drawing_samples(recipe, mixture, processor, (4, 1, 1))
    for position in (0, 1):
        drawing = samples.encode(position)
        assert "digit" in processor.tokenizer.decode(drawing.ids)
        assert drawing.picture.shape == (3, 32, 32)
        assert (0 if drawing.image_grid is None else len(drawing.image_grid)) == shown
