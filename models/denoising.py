"""What a diffusion base is asked in training: how far its prediction is from the noise, or velocity, that was put in.

Letters: B rows, C channels, h x w latent cells, T tokens.
"""

from __future__ import annotations

from torch import Tensor

from models.bases import UNetBase


def denoising_errors(base: UNetBase, clean_BChw: Tensor, times_B: Tensor, noise_BChw: Tensor, states_BTC: Tensor) -> Tensor:
    """Squared errors (B,C,h,w), fp32 or the latents' finer type, of what the base's scheduler says that it predicts: epsilon or v_prediction.

    `times_B`: int64 steps of the scheduler's table. Differentiable. Raises ValueError for a base that predicts anything else.
    """
    kind = base.scheduler.config["prediction_type"]
    signal_B111 = base.scheduler.alphas_cumprod.to(clean_BChw)[times_B][:, None, None, None]
    noisy_BChw = signal_B111.sqrt() * clean_BChw + (1 - signal_B111).sqrt() * noise_BChw
    if kind == "epsilon":
        wanted_BChw = noise_BChw
    elif kind == "v_prediction":
        wanted_BChw = signal_B111.sqrt() * noise_BChw - (1 - signal_B111).sqrt() * clean_BChw
    else:
        raise ValueError(f"The base predicts {kind}; adapters are trained on bases that predict epsilon or v_prediction.")
    found_BChw = base.unet(noisy_BChw.to(base.dtype), times_B, states_BTC.to(base.dtype), return_dict=False)[0]
    return (found_BChw.to(clean_BChw.dtype) - wanted_BChw).square()
