"""The command line as a user types it."""

import contextlib
import io
import json

import pytest
import test_encoders  # noqa: F401 (registers one's own encoders)
from samples import SIZES, chat, encoded

from qvl_data.chat import length
from qvl_data.processor import open_processor
from qvl_vision import load


def qvl_vision(*args: str) -> tuple[int, str, str]:
    from qvl_vision.cli import app

    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = app.run(list(args))
    return code, out.getvalue(), err.getvalue()


def test_from_tiny_to_verified(base, encoders, tmp_path):
    made = tmp_path / "made"
    options = ["--merger", "pixel_shuffle", "--max-tokens", "16", "--precision", "fp32", "--calibrate"]
    code, out, err = qvl_vision("swap", str(base), "--encoder", str(encoders["dinov2"]), "--out", str(made), *options)
    assert code == 0, err
    assert "qvl-vision verify" in out
    code, out, err = qvl_vision("verify", str(made))
    assert code == 0, err
    assert out.count("ok ") == 8
    scale = float(out.partition("its tokens are ")[2].split()[0])
    assert 0.5 < scale < 2  # calibrated
    code, out, _ = qvl_vision("inspect", str(made), "--json")
    assert code == 0
    assert json.loads(out)["merger"] == "pixel_shuffle (32 -> 128), still random"
    assert qvl_vision("inspect", str(made))[0] == 0
    code, _, err = qvl_vision("swap", str(base), "--encoder", "native", "--out", str(made))
    assert code == 2
    assert "is already there" in err


def test_joined_and_own(base, encoders, tmp_path):
    both = ["--encoder", str(encoders["dinov2"]), "--encoder", str(encoders["siglip"])]
    code, _, err = qvl_vision("swap", str(base), *both, "--out", str(tmp_path / "joined"), "--input-norm")
    assert code == 0, err
    own = ["--encoder", "stripes", "--encoder-option", "tokens=5"]
    code, _, err = qvl_vision("swap", str(base), *own, "--out", str(tmp_path / "own"))
    assert code == 0, err
    assert load(tmp_path / "own")[0].config.vision_config.grid == [1, 5]


def test_verify_says_what_is_wrong(base, encoders, tmp_path):
    assert qvl_vision("swap", str(base), "--encoder", str(encoders["vit"]), "--out", str(tmp_path / "m"))[0] == 0
    file = tmp_path / "m" / "processor_config.json"
    settings = json.loads(file.read_text())
    settings["video_processor"]["merge_size"] = 2
    file.write_text(json.dumps(settings))
    code, out, _ = qvl_vision("verify", str(tmp_path / "m"))
    assert code == 1
    assert "WRONG merge size: differs" in out


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--encoder", "dinv2"], 'did you mean "dinov2"'),
        (["--encoder", "native", "--precision", "fp8"], "precision fp8: must be one of fp32, bf16, fp16"),
        (["--encoder", "native", "--layout", "square"], "layout square: must be one of auto, patches, image"),
        (["--encoder", "native", "--feature-select", "cls"], "feature_select cls: must be one of patch, all"),
        (["--encoder", "stripes", "--encoder-option", "tokens"], '"tokens" is no KEY=VALUE'),
    ],
)
def test_bad_arguments(base, tmp_path, args, sentence):
    code, _, err = qvl_vision("swap", str(base), *args, "--out", str(tmp_path / "out"))
    assert code == 2
    assert sentence in err
    assert not (tmp_path / "out").exists()


def test_list():
    code, out, _ = qvl_vision("list", "dino*")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1:]] == [
        "dinov2",
        "dinov2_with_registers",
        "dinov3",
        "dinov3_convnext",
    ]
    assert "pixel_shuffle" in qvl_vision("list", "--mergers")[1]
    assert qvl_vision("list", "nothing*")[0] == 2


@pytest.mark.parametrize(
    ("args", "parameters", "tokens"),
    [
        (["Qwen/Qwen3-VL-4B-Instruct", "--encoder", "rad_dino"], "4,111,017,216", "1,369 tokens"),
        (["Qwen/Qwen3-VL-8B-Instruct", "--encoder", "rad_dino"], None, "1,369 tokens"),
        (["Qwen/Qwen3-VL-2B-Instruct", "--encoder", "siglip", "--merger", "pixel_shuffle"], None, "169 tokens"),
        (["tiny", "--encoder", "clip", "--merger", "resampler", "--merger-option", "queries=32"], None, "32 tokens"),
        (["Qwen/Qwen3-VL-30B-A3B-Instruct", "--encoder", "siglip2"], None, "256 tokens"),
        (["tiny", "--encoder", "dinov2", "--feature-select", "all", "--deepstack", "3"], None, "1,370 tokens"),
    ],
)
def test_plan(args, parameters, tokens):
    code, out, err = qvl_vision("plan", *args)
    assert code == 0, err
    assert f"at most {tokens}" in " ".join(out.split())
    assert parameters is None or parameters in out


def test_a_plan_of_no_qwen3_vl(encoders):
    code, _, err = qvl_vision("plan", str(encoders["dinov2"]), "--encoder", "clip")
    assert code == 2
    assert "model_type 'dinov2' is not Qwen3-VL" in err


def test_plan_is_what_swap_makes(base, encoders):
    from qvl_core.qwen3vl.groups import GROUPS
    from qvl_vision import inspect, swap
    from qvl_vision.plan import predict

    for name, merger in (("dinov2", "linear"), ("siglip2", "pool"), ("dinov3_convnext", "mlp")):
        planned = predict(str(base), [str(encoders[name])], merger)
        found = inspect(*swap(base, str(encoders[name]), merger)).parameters
        assert {group: count for group, count in planned.after.items() if count} == found
        assert set(planned.after) == set(GROUPS)


@pytest.mark.parametrize("name", ["dinov2", "vit-fixed", "stripes"])
def test_lengths_are_counted_without_torch(base, encoders, tmp_path, name):
    """qvl-data's own processor reads the settings of swapped models, those of one size too."""
    from qvl_vision import save, swap

    options = {"layout": "image"} if name == "vit-fixed" else {}
    encoder = "stripes" if name == "stripes" else str(encoders[name.removesuffix("-fixed")])
    model, processor = swap(base, encoder, **options)
    save(model, processor, tmp_path / "saved")
    light = open_processor(tmp_path / "saved")
    for frames in (0, 3):
        assert length(chat(SIZES, frames=frames), light) == len(encoded(processor, frames=frames))
