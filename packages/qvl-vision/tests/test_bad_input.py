"""What cannot be meant is one sentence with the fix, before anything is loaded or written."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from encoders import write_encoder
from samples import library_inputs
from test_encoders import HERE
from transformers import Qwen3VLForConditionalGeneration

from qvl_core.errors import BadInput, QVLError
from qvl_core.qwen3vl.load import open_processor
from qvl_core.recipe.blocks import Media, Model
from qvl_vision import load, load_merger, save, save_merger, swap, verify
from qvl_vision.registry import encoder_info, list_encoders, list_mergers, merger_info, register_encoder


@pytest.fixture(scope="module")
def saved(base, encoders, tmp_path_factory):
    """A swapped model in a folder; copies of it are damaged."""
    folder = tmp_path_factory.mktemp("swapped") / "model"
    return save(*swap(base, str(encoders["dinov2"])), folder)


def refused(text: str, *args, **options) -> str:
    """The sentence that `swap` refuses with; it holds `text`."""
    with pytest.raises(BadInput) as error:
        swap(*args, **options)
    sentence = str(error.value)
    assert text in sentence
    assert "\n" not in sentence
    return sentence


def test_names(base):
    assert 'did you mean "dinov2"' in refused('no encoder is called "dinov2x"', base, "dinov2x")
    assert 'did you mean "linear"' in refused('no merger is called "linaer"', base, "native", "linaer")
    refused("there is no folder ./nowhere", base, "./nowhere")
    refused("timm:vit_small", base, "timm")
    refused("name one", base, [])
    refused("cannot be joined", base, ["native", "native"])


def test_a_hub_name_that_cannot_be_reached(base, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused("encoder: facebook/dinov2-tiny-that-is-not-there", base, "facebook/dinov2-tiny-that-is-not-there")


def test_outputs_of_the_wrong_rank_or_size(base):
    assert "(1, 20)" in refused("it has to return tokens (B, N, D)", base, "flat")
    assert "36 tokens" in refused("but it gave 9", base, "liar")
    refused("a picture of 3 x 5 patches does not give 15 tokens", base, "square")


def test_options(base, encoders):
    dinov2 = str(encoders["dinov2"])
    refused("cannot be made with {'colour': 3}", base, "stripes", encoder_options={"colour": 3})
    refused("cannot be made with {'tokens': -1}", base, "stripes", encoder_options={"tokens": -1})
    refused("layout pathces: must be one of auto, patches, image", base, dinov2, layout="pathces")
    refused("feature_select cls: must be one of patch, all", base, dinov2, feature_select="cls")
    refused("merge 0: must be at least 1", base, dinov2, merge=0)
    refused("deepstack [-1]: layers are counted from 0", base, dinov2, deepstack=[-1])
    for queries in (0, "many"):
        refused("it has to be a number of at least 1", base, dinov2, "resampler", merger_options={"queries": queries})
    refused("merge 2: merger resampler gives queries", base, dinov2, "resampler", merge=2)
    refused("encoder_options belong to a module", base, dinov2, encoder_options={"width": 3})
    refused('merger "linear": does not take', base, dinov2, merger_options={"queries": 3})
    refused("heads (5) does not divide", base, dinov2, "resampler", merger_options={"heads": 5})
    refused("one size only; use layout image", base, "stripes", layout="patches")
    refused("keeps tokens that are on no grid", base, dinov2, layout="patches", feature_select="all")
    refused("gives 64 tokens for any picture", base, dinov2, "resampler", layout="patches")
    refused("does not divide the grid of 3 x 3", base, dinov2, "pixel_shuffle", layout="image")
    refused("does not divide the grid of 1 x 13", base, "stripes", "pool")
    refused("one size and always the same tokens", base, "stripes", max_tokens=9)
    refused("keeps Qwen's own layout", base, "native", "resampler")


def test_layers_that_do_not_fit(base, encoders):
    refused("calls for 6 tokens, but the encoder gave 384", base, str(encoders["convnext"]), feature_layer=1)
    refused("feature_layer 9", base, str(encoders["dinov2"]), feature_layer=9)
    refused("deepstack [7]", base, str(encoders["dinov2"]), deepstack=[7])
    refused("gives no intermediate layers", base, "stripes", deepstack=[0])


def test_joined_encoders_need_equally_many_tokens(base, encoders, tmp_path):
    def smaller(config):
        config.image_size = 28

    other = write_encoder("dinov2", tmp_path / "other", change=smaller)  # of the same name
    refused("equally many tokens", base, [str(encoders["dinov2"]), str(other)], layout="image")
    refused("equally many tokens", base, ["stripes", str(encoders["dinov2"])], layout="image")


def test_what_a_checkpoint_lacks(base, encoders, tmp_path):
    bare = shutil.copytree(encoders["ijepa"], tmp_path / "bare")
    (bare / "preprocessor_config.json").unlink()
    refused("no preprocessor_config.json", base, str(bare))
    (bare / "model.safetensors").unlink()
    refused("no weights there", base, str(bare))
    (bare / "config.json").unlink()
    refused("is no model that transformers knows", base, str(bare))


def test_weights_of_another_encoder(base, encoders, tmp_path):
    mixed = shutil.copytree(encoders["vit"], tmp_path / "mixed")
    shutil.copy(encoders["dinov2"] / "model.safetensors", mixed / "model.safetensors")
    refused("shapes are not those of config.json", base, str(mixed))


def test_the_catalogue_s_normalisation_is_said_aloud(base, encoders, tmp_path, caplog):
    bare = shutil.copytree(encoders["dinov2"], tmp_path / "bare")
    (bare / "preprocessor_config.json").unlink()
    model, _ = swap(base, str(bare))
    assert model.config.vision_config.encoders[0]["mean"] == [0.485, 0.456, 0.406]
    assert "mean and deviation are taken as those of" in caplog.text


# --- pictures whose tokens are not as many as their grid says


def tower_says(model, pixels: torch.Tensor, grid: list[list[int]]) -> str:
    with pytest.raises(BadInput) as error, torch.no_grad():
        model.model.visual(pixels, grid_thw=torch.tensor(grid))
    return str(error.value)


def test_a_wrong_count_of_one_picture_is_named_even_when_the_totals_agree(base):
    model, _ = swap(base, "stripes")  # 13 tokens a picture
    sentence = tower_says(model, torch.zeros(3, 3, 24, 24), [[1, 1, 13], [1, 1, 12], [1, 1, 14]])
    assert "picture 2 of 3: its grid of 1 x 12 calls for 12 tokens, but the encoder gave 13" in sentence
    assert "usual causes" in sentence
    assert "a processor of another model" in sentence
    model, _ = swap(base, "stripes", "resampler", merger_options={"queries": 6, "heads": 4})
    sentence = tower_says(model, torch.zeros(2, 3, 24, 24), [[1, 1, 5], [1, 1, 7]])
    assert "picture 1 of 2" in sentence
    assert "but the merger gave 6" in sentence


def test_pixels_of_another_number_of_pictures(base, encoders):
    model, _ = swap(base, "stripes")
    assert "2 pictures, but grid_thw tells of 3" in tower_says(model, torch.zeros(2, 3, 24, 24), [[3, 1, 13]])
    model, _ = swap(base, str(encoders["dinov2"]))
    assert "10 patches, but grid_thw tells of 12" in tower_says(model, torch.zeros(10, 588), [[1, 3, 4]])


def test_an_encoder_that_changed_since(base, encoders):
    """The CLS token is kept, as after a change of the code: found at the first picture."""
    model, processor = swap(base, str(encoders["dinov2"]))
    model.model.visual.encoder.prefix = 0
    with pytest.raises(BadInput, match=r"picture 1 of 3: its grid of 3 x 2 calls for 6 tokens, but the encoder gave 7"):
        model(**library_inputs(processor))


# --- checkpoints


def test_the_stock_class_on_a_swapped_folder(saved):
    """It builds its own tower without a word, with random weights."""
    stock = Qwen3VLForConditionalGeneration.from_pretrained(saved)
    with pytest.raises(QVLError, match=r"weights: \d+ are not in the files and are random"):
        verify(saved, stock)


def test_a_folder_that_says_it_is_a_stock_one(saved, tmp_path):
    renamed = shutil.copytree(saved, tmp_path / "renamed")
    config = json.loads((renamed / "config.json").read_text())
    config |= {"model_type": "qwen3_vl", "architectures": ["Qwen3VLForConditionalGeneration"]}
    (renamed / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match=r"the weights lack model\.visual\."):
        verify(renamed)


def test_weights_that_are_not_those_of_the_files(saved):
    model, _ = load(saved)
    verify(saved, model)
    model.model.visual.merger.proj.weight.data += 1
    with pytest.raises(QVLError, match=r"visual\.merger\.proj\.weight is not what stands in the files"):
        verify(saved, model)


def test_a_weight_too_many(saved, tmp_path):
    from safetensors.torch import load_file, save_file

    more = shutil.copytree(saved, tmp_path / "more")
    weights = load_file(more / "model.safetensors")
    save_file(weights | {"model.visual.stray": torch.zeros(2)}, more / "model.safetensors", {"format": "pt"})
    with pytest.raises(QVLError, match=r"1 of the files belong to another model \(model\.visual\.stray\)"):
        verify(more)


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("merge_size", 2, r"merge size: differs \(tower 1, config.json 1, image processor 2, video processor 1\)"),
        ("patch_size", 16, r"patch size: differs \(config.json 14, image processor 16, video processor 14\)"),
    ],
)
def test_sizes_that_differ_between_config_and_processor(saved, tmp_path, key, value, sentence):
    changed = shutil.copytree(saved, tmp_path / "changed")
    file = changed / "processor_config.json"
    settings = json.loads(file.read_text())
    settings["image_processor"][key] = value
    file.write_text(json.dumps(settings))
    with pytest.raises(QVLError, match=sentence):
        verify(changed)


def test_an_encoder_whose_package_is_not_installed(base, tmp_path):
    folder = save(*swap(base, "stripes"), tmp_path / "own")
    command = [sys.executable, "-m", "qvl_vision", "inspect", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert 'the encoder "stripes" of this checkpoint is not registered; install the package' in done.stderr
    assert "Traceback" not in done.stderr
    done = subprocess.run([*command, "--plugin", str(HERE / "stripes.py")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "stripes (module), width 20, 13 tokens, trained at 24x24" in " ".join(done.stdout.split())


@pytest.mark.parametrize("name", ["os.path", "stripes:Stripes", "qvl_vision.tower.QVLVisionModel"])
def test_a_dotted_path_in_a_config_is_never_imported(base, tmp_path, name):
    folder = save(*swap(base, "stripes"), tmp_path / "own")
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["vision_config"]["encoders"][0]["name"] = name
    file.write_text(json.dumps(config))
    with pytest.raises(BadInput, match="is not registered"):
        load(folder)


def test_an_entry_of_another_version(saved, tmp_path):
    changed = shutil.copytree(saved, tmp_path / "changed")
    file = changed / "config.json"
    config = json.loads(file.read_text())
    config["vision_config"]["encoders"][0]["future"] = 1
    file.write_text(json.dumps(config))
    with pytest.raises(BadInput, match="is not understood"):
        load(changed)


def test_a_stock_model_is_not_a_swapped_one(base):
    with pytest.raises(BadInput, match="has Qwen's own vision tower"):
        load(base)


def test_never_over_another_folder(base, saved, encoders):
    model, processor = swap(base, str(encoders["dinov2"]))
    with pytest.raises(BadInput, match="is already there"):
        save(model, processor, saved)


def test_budgets_of_pictures_that_have_one_size(base, tmp_path):
    from qvl_core.qwen3vl.budgets import apply_media

    folder = save(*swap(base, "stripes"), tmp_path / "own")
    processor = open_processor(Model(name=str(folder)))
    apply_media(processor, Media(fps=1.0, max_frames=8))
    assert processor.video_processor.max_frames == 8
    with pytest.raises(BadInput, match=r"media\.image_tokens: every picture of this model has one size"):
        apply_media(processor, Media(image_tokens=64))


def test_a_new_merger_is_known_as_such(base, encoders, tmp_path):
    from qvl_vision.config import has_new_merger

    first, processor = swap(base, str(encoders["dinov2"]))
    assert has_new_merger(first.config)
    assert not has_new_merger(swap(base, "native", "native")[0].config)
    file = save_merger(first, tmp_path / "merger.safetensors")
    assert has_new_merger(load_merger(swap(base, str(encoders["dinov2"]))[0], file).config)
    first.config.vision_config.merger_trained = True
    file = save_merger(first, tmp_path / "trained.safetensors")
    again = load_merger(swap(base, str(encoders["dinov2"]))[0], file)
    assert not has_new_merger(again.config)
    assert not has_new_merger(load(save(again, processor, tmp_path / "saved"))[0].config)


# --- mergers in files


def test_a_merger_goes_into_a_file_and_back(base, encoders, tmp_path):
    folder = str(encoders["dinov2"])
    first, _ = swap(base, folder, deepstack=[0], seed=1)
    other, processor = swap(base, folder, deepstack=[0], seed=2)
    file = save_merger(first, tmp_path / "merger.safetensors")
    inputs = library_inputs(processor)
    with torch.no_grad():
        expected = first(**inputs).logits
        assert not torch.equal(other(**inputs).logits, expected)
        assert torch.equal(load_merger(other, file)(**inputs).logits, expected)


def test_a_merger_of_something_else(base, encoders, tmp_path):
    file = save_merger(swap(base, str(encoders["dinov2"]))[0], tmp_path / "merger.safetensors")
    for options, key in (
        ({"encoder": "siglip"}, "encoders"),
        ({"encoder": "dinov2", "merger": "mlp"}, "merger"),
        ({"encoder": "dinov2", "input_norm": True}, "input_norm"),
        ({"encoder": "dinov2", "deepstack": [1]}, "deepstack"),
        ({"encoder": "dinov2", "feature_layer": -2}, "feature_layer"),
    ):
        model, _ = swap(base, str(encoders[options.pop("encoder")]), **options)
        with pytest.raises(BadInput, match=f"its merger has {key}"):
            load_merger(model, file)
    (tmp_path / "damaged").write_bytes(b"not a file of weights")
    with pytest.raises(BadInput, match="cannot be read as a merger"):
        load_merger(model, tmp_path / "damaged")


# --- the registry


def test_names_are_listed_and_filtered():
    assert {"rad_dino", "dinov2", "clip", "siglip2", "native", "timm"} <= {info.name for info in list_encoders()}
    assert [info.name for info in list_encoders("dinov3*")] == ["dinov3", "dinov3_convnext"]
    assert {info.name for info in list_mergers("p*")} == {"pixel_shuffle", "pool"}
    assert encoder_info("rad_dino").source == "microsoft/rad-dino"
    assert merger_info("linear").merge == 1


def test_a_name_is_taken_once():
    assert list_encoders("clip")
    register = register_encoder("clip", size=8, mean=(0.5,) * 3, std=(0.5,) * 3)
    with pytest.raises(BadInput, match='the encoder "clip" is registered already'):
        register(torch.nn.Identity)


def test_an_entry_point_that_fails_is_left_out(monkeypatch, caplog):
    from importlib.metadata import EntryPoint

    from qvl_vision import registry

    registry._from_packages.cache_clear()
    broken = EntryPoint("broken", "no_such_module_of_a_package", registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [broken])
    assert list_encoders("native")
    assert "the entry point broken (no_such_module_of_a_package) cannot be loaded" in caplog.text
    registry._from_packages.cache_clear()


def test_an_installed_package_brings_its_encoder(base, tmp_path, monkeypatch):
    from importlib.metadata import EntryPoint

    from qvl_vision import registry

    code = (HERE / "stripes.py").read_text().replace('"stripes"', '"installed"').split('@register_encoder("tiles"')[0]
    (tmp_path / "bringing_an_encoder.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    registry._from_packages.cache_clear()
    point = EntryPoint("mine", "bringing_an_encoder", registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    model, _ = swap(base, "installed", encoder_options={"tokens": 3})
    assert model.config.vision_config.grid == [1, 3]
    registry._from_packages.cache_clear()


def test_a_name_of_the_catalogue_takes_its_source(base, encoders, monkeypatch):
    """rad_dino is DINOv2 with weights, normalisation and licence of its own."""
    from qvl_vision import opening

    asked = []
    monkeypatch.setattr(opening, "find_folder", lambda name, key: asked.append((name, key)) or encoders["dinov2"])
    model, _ = swap(base, "rad_dino")
    assert asked == [("microsoft/rad-dino", "encoder")]
    spec = model.config.vision_config.encoders[0]
    assert (spec["name"], spec["family"], spec["source"]) == ("rad_dino", "dinov2", "microsoft/rad-dino")
    assert spec["licence"].startswith("MIT")
    swap(base, "timm:vit_small_patch14_dinov2.lvd142m")
    assert asked[-1] == ("timm/vit_small_patch14_dinov2.lvd142m", "encoder")


def test_importing_loads_no_torch():
    code = "import sys, qvl_vision, qvl_vision.cli; assert not {'torch', 'transformers', 'pydantic'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_tiny_encoder_of_another_size(base, tmp_path):
    """Sizes are read, never asked: twice the width, another patch."""

    def change(config):
        config.hidden_size, config.num_attention_heads, config.patch_size, config.image_size = 64, 4, 7, 28

    folder = write_encoder("dinov2", tmp_path / "other", change=change)
    model, processor = swap(base, str(folder))
    vision = model.config.vision_config
    assert (vision.hidden_size, vision.patch_size, vision.out_hidden_size) == (64, 7, 128)
    assert processor.image_processor.size["longest_edge"] == 28 * 28


def test_paths_of_this_machine_are_not_saved(saved: Path):
    text = "".join(file.read_text() for file in saved.glob("*.json"))
    assert "/tmp" not in text
    assert str(saved.parent.parent) not in text
