"""A small autoencoder of Sana's kind (DC-AE), trained on the spot on pictures of 32 x 32 pixels.

    coder = train_coder(pixels, steps=600, seed=0, run=RunFolder(folder))     # (B, 3, 32, 32) to (B, 4, 4, 4)
    coder.save_pretrained(folder / "vae")

What is lost is the mean absolute difference. The scale of latents is measured at the end and written down: without it
they would be several times as large as the noise that is mixed with them.

Shapes: N pictures, B of a step, S side of a picture.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import l1_loss
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import OneCycleLR

from qvl_core.run import RunFolder
from qvl_core.training.seeds import reseed
from qvl_metaquery.coder import Autoencoder, measured_scale

BATCH = 32
RATE = 2e-3
MEASURED = 512  # pictures whose latents tell the scale
LOGGED = 10  # steps between records
CHANNELS = 4
WIDTHS = (16, 32, 64, 64)
BLOCKS = (0, 1, 1, 1)  # at each width; 0: half the size comes with the first convolution, which saves most of the time


def tiny_autoencoder() -> Any:
    """Eight pixels along a side become one place; 0.6M parameters."""
    from diffusers import AutoencoderDC

    nothing: tuple[tuple[int, ...], ...] = ((),) * len(WIDTHS)  # no attention
    return AutoencoderDC(
        latent_channels=CHANNELS,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=WIDTHS,
        decoder_block_out_channels=WIDTHS,
        encoder_layers_per_block=BLOCKS,
        decoder_layers_per_block=BLOCKS,
        encoder_qkv_multiscales=nothing,
        decoder_qkv_multiscales=nothing,
    )


def train_coder(pixels: Tensor, steps: int, seed: int, run: RunFolder) -> Autoencoder:
    """An autoencoder of pictures (N, 3, S, S) in [-1, 1]; its loss is logged in `run`."""
    with torch.random.fork_rng(devices=[]):
        reseed(seed, "autoencoder")
        model = tiny_autoencoder().train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
        schedule = OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.05)
        for step in range(1, steps + 1):
            shown = pixels[torch.randint(len(pixels), (BATCH,))]  # (B, 3, S, S)
            loss = l1_loss(model.decode(model.encode(shown).latent).sample, shown)
            loss.backward()
            clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if step % LOGGED == 0 or step in (1, steps):
                run.append_metrics({"step": step, "loss": float(loss.detach())})
        some = pixels[torch.randperm(len(pixels))[:MEASURED]]
    model.eval()
    return Autoencoder(model, measured_scale(model, some.split(BATCH)))
