"""Pictures out of patches and tokens into squares: exact, and the same order as the library's processors."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import Qwen2VLImageProcessor, Qwen3VLVideoProcessor

from qvl_vision.layout import to_pictures, to_squares

sides = st.integers(1, 4)


@given(sides, sides, st.sampled_from([1, 2, 3]), st.sampled_from([2, 14, 16]), st.integers(1, 3))
def test_pictures_come_back_from_the_processor_s_patches(h, w, merge, patch, n):
    height, width = h * merge * patch, w * merge * patch
    rng = np.random.default_rng(h * 100 + w)
    images = [Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)) for _ in range(n)]
    processor = Qwen2VLImageProcessor(
        patch_size=patch,
        merge_size=merge,
        temporal_patch_size=1,
        size={"shortest_edge": 1, "longest_edge": 10**9},
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
    )
    done = processor(images, return_tensors="pt")
    patches = done["pixel_values"].reshape(n, -1, 3 * patch * patch)
    whole = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images]) / 255
    found = to_pictures(patches, h * merge, w * merge, patch, merge)
    assert torch.allclose(found, whole, atol=1e-6)
    again = (
        found.reshape(n, 3, h * merge, patch, w * merge, patch).permute(0, 2, 4, 1, 3, 5).reshape(n, -1, 3 * patch**2)
    )
    assert torch.equal(to_squares(again, h * merge, w * merge, merge), patches)


def test_frames_of_a_video_lie_as_pictures_do():
    video = torch.randint(0, 255, (3, 3, 56, 42), dtype=torch.uint8)
    processor = Qwen3VLVideoProcessor(
        patch_size=14,
        merge_size=1,
        temporal_patch_size=1,
        size={"shortest_edge": 1, "longest_edge": 10**9},
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
        do_sample_frames=False,
        cap_pixels_per_frame=False,
    )
    done = processor([video], return_tensors="pt")
    assert done["video_grid_thw"].tolist() == [[3, 4, 3]]
    patches = done["pixel_values_videos"].reshape(3, 12, -1)
    assert torch.allclose(to_pictures(patches, 4, 3, 14, 1), video / 255, atol=1e-6)


@pytest.mark.parametrize("merge", [1, 2])
def test_squares_are_rows_of_squares(merge):
    tokens = torch.arange(4 * 6).reshape(1, 24, 1)  # 4 rows of 6
    laid = to_squares(tokens, 4, 6, merge).flatten().tolist()
    assert laid[:4] == ([0, 1, 2, 3] if merge == 1 else [0, 1, 6, 7])
    assert sorted(laid) == list(range(24))
