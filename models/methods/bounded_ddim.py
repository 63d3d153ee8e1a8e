"""The DDIM step of Bounded Attention's authors, for `compat: authors_ddim`; otherwise diffusers' own scheduler is used."""

from __future__ import annotations

from typing import Any

from diffusers.schedulers.scheduling_ddim import DDIMScheduler, DDIMSchedulerOutput
from torch import Tensor


class AuthorsDDIM(DDIMScheduler):
    """z' = sqrt(a') z_0 + sqrt(1 - a') eps, eta 0, where a' is the final alpha already when the next timestep is 0 (diffusers: below 0)."""

    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, model_output: Tensor, timestep: int, sample: Tensor, *, return_dict: bool = True, generator: Any = None
    ) -> DDIMSchedulerOutput | tuple[Tensor, Tensor]:
        """One step; `generator` is not used, for nothing is drawn."""
        assert self.num_inference_steps is not None
        following = int(timestep) - int(self.config["num_train_timesteps"]) // self.num_inference_steps
        a = self.alphas_cumprod[int(timestep)].item()
        a_next = self.alphas_cumprod[following].item() if following > 0 else float(self.final_alpha_cumprod)
        kind = self.config["prediction_type"]
        if kind == "epsilon":
            eps = model_output
            z_0 = (sample - (1 - a) ** 0.5 * eps) / a**0.5
        elif kind == "v_prediction":
            eps, z_0 = a**0.5 * model_output + (1 - a) ** 0.5 * sample, a**0.5 * sample - (1 - a) ** 0.5 * model_output
        else:
            raise ValueError(f"authors_ddim knows epsilon and v_prediction, not {kind!r}; leave compat out.")
        z = a_next**0.5 * z_0 + (1 - a_next) ** 0.5 * eps
        return DDIMSchedulerOutput(z, z_0) if return_dict else (z, z_0)
