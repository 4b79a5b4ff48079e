"""A swapped tower on a GPU: the same features as on a CPU, and a merger that learns under autocast.

nox -s gpu
"""

import copy

import pytest
import torch

from qvl_core.qwen3vl.batch import collate
from qvl_core.qwen3vl.lora import apply_tune
from qvl_core.qwen3vl.loss import next_token_loss
from qvl_core.qwen3vl.tiny import tiny
from qvl_core.recipe.blocks import Group
from qvl_data.chat import encode
from qvl_data.example.digits import digits_dataset
from qvl_vision import swap
from qvl_vision.tiny import tiny_encoder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(scope="module")
def swapped(tmp_path_factory):
    home = tmp_path_factory.mktemp("vision")
    return swap(tiny(home / "base"), str(tiny_encoder(home / "encoder")), "pixel_shuffle")


@pytest.fixture(scope="module")
def batch(swapped):
    samples = [encode(sample, swapped[1]) for sample in digits_dataset("digit", "test")[:4]]
    return collate(samples, packing=True, merge=2, pad_id=0)


def test_features_are_those_of_the_cpu(swapped, batch):
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    model = swapped[0]
    inputs = {"pixel_values": batch.pixel_values, "grid_thw": batch.image_grid_thw}
    with torch.no_grad():
        expected = model.model.visual(**inputs).pooler_output
        on_gpu = copy.deepcopy(model.model.visual).cuda()
        found = on_gpu(**{name: value.cuda() for name, value in inputs.items()}).pooler_output
    torch.testing.assert_close(found.cpu(), expected, atol=1e-4, rtol=1e-4)


def test_the_merger_learns_under_autocast(swapped, batch):
    model = copy.deepcopy(swapped[0]).bfloat16().cuda()
    apply_tune(model, {"llm": Group(mode="lora", rank=2), "merger": Group(mode="full")}, seed=0)
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, 1e-3, fused=True)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            loss = next_token_loss(model, batch.to("cuda"))
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    assert {parameter.dtype for parameter in model.model.visual.encoder.parameters()} == {torch.bfloat16}
