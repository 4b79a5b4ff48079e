"""Denoising on a GPU: full attention on the varlen kernels is SDPA's, samples of a packed row apart; answers repeat.

nox -s gpu
"""

import pytest
import torch

from qvl_core.qwen3vl.load import open_processor
from qvl_core.qwen3vl.loss import token_losses
from qvl_core.qwen3vl.seen import blind, given, look
from qvl_core.qwen3vl.tiny import tiny
from qvl_core.recipe.blocks import Model
from qvl_core.training.samples import Place
from qvl_data.chat import encode, prompt
from qvl_data.example.digits import digits_dataset
from qvl_mdlm.batch import Corruption, collation
from qvl_mdlm.layout import shape_of
from qvl_mdlm.model import Qwen3VLForMaskedLM
from qvl_mdlm.noise import Noise
from qvl_mdlm.sample import sample
from qvl_mdlm.sampling import Sampling

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny(tmp_path_factory.mktemp("mdlm") / "base")


def test_packed_kernels_are_sdpa_over_padded_rows(base):
    processor = open_processor(Model(name=str(base)))
    packed = Qwen3VLForMaskedLM.from_pretrained(base, dtype=torch.bfloat16).cuda().eval()
    padded = Qwen3VLForMaskedLM.from_pretrained(base, dtype=torch.bfloat16, attn_implementation="sdpa").cuda().eval()
    corrupt = Corruption(shape_of(packed.config, processor.tokenizer, 16), Noise(), packed.config.mask_token_id)
    digits = digits_dataset("digit", "test")[:6]
    noised = [corrupt(encode(one, processor), 0, Place(0, slot, 6)) for slot, one in enumerate(digits)]
    with torch.no_grad():
        states = []
        for model, packing in ((packed, True), (padded, False)):
            batch = collation(processor, packing, patterned=False)(noised).to("cuda")
            hidden = model.model(**batch.inputs(), use_cache=False).last_hidden_state.flatten(0, 1)
            states.append(hidden.index_select(0, batch.label_rows).float())
    torch.testing.assert_close(states[0], states[1], atol=0.05, rtol=0.05)  # bf16


@pytest.mark.parametrize("options", [{}, {"attention": "prefix"}, {"attention": "block", "block_size": 4}])
def test_answers_repeat(base, options):
    processor = open_processor(Model(name=str(base)))
    model = Qwen3VLForMaskedLM.from_pretrained(base, **options).cuda().eval()
    asked = [prompt(one, processor)[0] for one in digits_dataset("digit", "test")[:6]]
    how = Sampling(max_new_tokens=8, temperature=0.7, seed=3)
    first, again = (sample(model, processor, asked, how) for _ in range(2))
    assert [one.text for one in first] == [one.text for one in again]


def test_features_that_wait_on_the_host_give_the_losses_of_the_pixels(base):
    processor = open_processor(Model(name=str(base)))
    model = Qwen3VLForMaskedLM.from_pretrained(base).cuda().eval()
    corrupt = Corruption(shape_of(model.config, processor.tokenizer, 16), Noise(), model.config.mask_token_id)
    chats = [encode(one, processor) for one in digits_dataset("digit", "test")[:6]]
    seen = look(model, chats)
    assert {part.device.type for one in seen for features in one.images for part in features} == {"cpu"}
    noised = [corrupt(chat, 0, Place(0, slot, 6)) for slot, chat in enumerate(chats)]
    batch = collation(processor, True, patterned=False)(noised).to("cuda")
    given_features = token_losses(model, blind(batch), given(noised, seen, model.device))
    torch.testing.assert_close(given_features, token_losses(model, batch), atol=1e-3, rtol=1e-3)
