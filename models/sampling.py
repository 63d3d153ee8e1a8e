"""Pictures from prompts: rows with prompts, guidance scales, step counts and sizes of their own, together in as few network calls as may be.

Rows of one size share every call; those with fewer steps have timesteps of their own and leave early. A row without guidance has no
unconditional half. A row's result is the one it has alone. Letters: B rows, A rows still active, C channels, h x w latent cells, N tokens.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from models.bases import FlowBase, Text, UNetBase


@dataclass(frozen=True, kw_only=True)
class Request:
    """One picture to make. Size in pixels, the base's own where None."""

    prompt: str
    seed: int
    negative_prompt: str = ""
    steps: int = 50
    guidance_scale: float = 7.5  # 1 or less: none
    height: int | None = None
    width: int | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; a picture needs one or more.")


@dataclass(frozen=True)
class Step:
    """What is about to be denoised. The network's batch is the rows of `unconditional`, then those of `rows`."""

    index: int  # from 0, the same for all rows
    rows: list[int]  # active rows by their number in the group
    unconditional: list[int]  # those among them that have guidance
    timesteps: Tensor
    latents: Tensor  # (A,...) of the active rows


BeforeStep: TypeAlias = Callable[[Step], Tensor]
"""Called before each step; returns the latents to go on with."""
Predict: TypeAlias = Callable[[Step, Tensor], Tensor]
"""From a step and the network's input (A,...), the prediction that the schedulers take."""


def noise(shape: Sequence[int], seed: int) -> Tensor:
    """Standard normal fp32 noise on the CPU from a generator of its own: the same on every device."""
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))


def later_noise(shape: Sequence[int], seed: int) -> torch.Generator:
    """The generator of `noise` after it was drawn: where schedulers that draw noise go on."""
    generator = torch.Generator().manual_seed(seed)
    torch.randn(tuple(shape), generator=generator)
    return generator


@torch.inference_mode()
def sample(base: UNetBase | FlowBase, requests: Sequence[Request]) -> list[Tensor]:
    """A picture a request, (3,H,W) in [-1, 1], fp32 on the CPU. Raises ValueError for a size that the base cannot make."""
    text, indices = encode_prompts(base, requests)
    pictures: dict[int, Tensor] = {}
    for rows in rows_by_size(base, requests):
        group = [requests[row] for row in rows]
        conditional, unconditional = (text.take([indices[prompt] for prompt in prompts]) for prompts in prompts_of(group))
        latents_BChw = denoise(base, group, conditional, unconditional)
        pictures |= zip(rows, base.decode(latents_BChw).float().cpu(), strict=True)
    return [pictures[row] for row in range(len(requests))]


def prompts_of(requests: Sequence[Request]) -> tuple[list[str], list[str]]:
    """The requests' prompts and negative prompts."""
    return [request.prompt for request in requests], [request.negative_prompt for request in requests]


def encode_prompts(base: UNetBase | FlowBase, requests: Sequence[Request]) -> tuple[Text, dict[str, int]]:
    """Every different prompt and negative prompt once, and where each is."""
    if not requests:
        return Text(torch.empty(0)), {}
    prompts, negative = prompts_of(requests)
    different = list(dict.fromkeys([*prompts, *negative]))
    return base.encode_text(different), {prompt: at for at, prompt in enumerate(different)}


def size_of(base: UNetBase | FlowBase, request: Request) -> tuple[int, int]:
    """Height and width in pixels. Raises ValueError where they are no multiple of what the base can make."""
    height, width = request.height or base.image_size, request.width or base.image_size
    levels = len(base.unet.config["block_out_channels"]) - 1 if isinstance(base, UNetBase) else 1
    unit = base.factor * 2**levels
    if height < unit or width < unit or height % unit or width % unit:
        raise ValueError(f"a picture of {height} x {width} px cannot be made by this base; height and width must be multiples of {unit}.")
    return height, width


def rows_by_size(base: UNetBase | FlowBase, requests: Sequence[Request]) -> list[list[int]]:
    """The requests' numbers, those of one size together, in order of their first."""
    groups: dict[tuple[int, int], list[int]] = {}
    for row, request in enumerate(requests):
        groups.setdefault(size_of(base, request), []).append(row)
    return list(groups.values())


def denoise(
    base: UNetBase | FlowBase,
    requests: Sequence[Request],
    conditional: Text,
    unconditional: Text,
    *,
    before_step: BeforeStep | None = None,
) -> Tensor:
    """Latents (B,C,h,w) of requests of one size, from noise of their seeds.

    `conditional` and `unconditional` are the rows' texts; `before_step` may change latents before each step.
    """
    latents_BChw = initial_noise(base, requests)
    if isinstance(base, UNetBase):
        return denoise_by_unet(base.unet, base.scheduler, requests, conditional, unconditional, latents_BChw, before_step=before_step)
    return denoise_by_flow(base.transformer, base.scheduler, requests, conditional, unconditional, latents_BChw, before_step=before_step)


def initial_noise(base: UNetBase | FlowBase, requests: Sequence[Request]) -> Tensor:
    """(B,C,h,w) standard normal latents, row i from requests[i].seed."""
    height, width = size_of(base, requests[0])
    shape = (base.latent_channels, height // base.factor, width // base.factor)
    return torch.stack([noise(shape, request.seed) for request in requests]).to(base.device, base.dtype)


def denoise_by_unet(
    unet: UNet2DConditionModel,
    scheduler: Any,
    requests: Sequence[Request],
    conditional: Text,
    unconditional: Text,
    latents_BChw: Tensor,
    *,
    before_step: BeforeStep | None = None,
) -> Tensor:
    """`denoise` from given noise, with any U-Net and diffusers scheduler; the scheduler itself stays as it is."""
    cohorts = _cohorts(scheduler, requests, lambda own, steps: own.set_timesteps(steps, device=latents_BChw.device))
    predict = unet_prediction(unet, requests, conditional, unconditional)
    return _denoise(cohorts, latents_BChw, predict, requests, halves=True, before_step=before_step)


def denoise_by_flow(
    transformer: FluxTransformer2DModel,
    scheduler: Any,
    requests: Sequence[Request],
    conditional: Text,
    unconditional: Text,
    latents_BChw: Tensor,
    *,
    before_step: BeforeStep | None = None,
) -> Tensor:
    """`denoise` from given noise, with any FLUX transformer and flow scheduler; `before_step` sees packed latents (A,N,D)."""
    h, w = latents_BChw.shape[-2:]
    x_BND = pack(latents_BChw)
    cohorts = _cohorts(scheduler, requests, lambda own, steps: set_flow_timesteps(own, steps, x_BND.shape[1], x_BND.device))
    predict = flow_prediction(transformer, requests, conditional, unconditional, (h, w))
    halves = not transformer.config["guidance_embeds"]
    return unpack(_denoise(cohorts, x_BND, predict, requests, halves=halves, before_step=before_step), h, w)


def unet_prediction(unet: UNet2DConditionModel, requests: Sequence[Request], conditional: Text, unconditional: Text) -> Predict:
    """eps = eps_u + s (eps_c - eps_u), with each row's own s; eps_c where a row has no guidance."""

    def predict(step: Step, inputs_AChw: Tensor) -> Tensor:
        batch, states, timesteps = _halves(step, inputs_AChw, conditional, unconditional)
        prediction = unet(batch, timesteps, encoder_hidden_states=states.states, return_dict=False)[0]
        return _guided(step, prediction, requests)

    return predict


def flow_prediction(
    transformer: FluxTransformer2DModel, requests: Sequence[Request], conditional: Text, unconditional: Text, cells: tuple[int, int]
) -> Predict:
    """Velocities of packed latents (A,N,D): guidance as the transformer's own input where it was distilled, else by an unconditional half."""
    states = conditional.states
    image_ids = positions(*cells).to(states.device, states.dtype)
    text_ids = torch.zeros(states.shape[1], 3, device=states.device, dtype=states.dtype)
    scales_B = torch.tensor([request.guidance_scale for request in requests], device=states.device)
    distilled = bool(transformer.config["guidance_embeds"])

    def predict(step: Step, inputs_AND: Tensor) -> Tensor:
        batch, text, timesteps = _halves(step, inputs_AND, conditional, unconditional)
        prediction = transformer(
            hidden_states=batch,
            timestep=timesteps.to(states.dtype) / 1000,
            guidance=scales_B[step.rows] if distilled else None,
            pooled_projections=text.pooled,
            encoder_hidden_states=text.states,
            txt_ids=text_ids,
            img_ids=image_ids,
            return_dict=False,
        )[0]
        return _guided(step, prediction, requests)

    return predict


def set_flow_timesteps(scheduler: Any, steps: int, tokens: int, device: torch.device) -> None:
    """Times from 1 to 1/steps, shifted by the number of image tokens where the scheduler shifts dynamically, as FluxPipeline sets them."""
    sigmas = None if scheduler.config.get("use_flow_sigmas") else np.linspace(1.0, 1 / steps, steps)
    mu = flow_shift(scheduler.config, tokens)
    scheduler.set_timesteps(steps, device=device, sigmas=sigmas, mu=mu)
    scheduler.set_begin_index(0)


def flow_shift(config: Mapping[str, Any], tokens: int) -> float:
    """mu by the number of image tokens, on the line that a flow scheduler's configuration gives; FLUX's where it is silent.

    Ours, for diffusers keeps it in a pipeline's module, whose import takes seconds and warns of what no one here uses.
    """
    fewest, most = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    return low + (high - low) / (most - fewest) * (tokens - fewest)


def pack(latents_BChw: Tensor) -> Tensor:
    """(B, h/2 w/2, 4C): each 2 x 2 patch of latents is one token of a FLUX transformer."""
    B, C, h, w = latents_BChw.shape
    return latents_BChw.reshape(B, C, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(B, h * w // 4, 4 * C)


def unpack(x_BND: Tensor, h: int, w: int) -> Tensor:
    """The inverse of `pack`: (B,C,h,w)."""
    B, _N, D = x_BND.shape
    return x_BND.reshape(B, h // 2, w // 2, D // 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(B, D // 4, h, w)


def positions(h: int, w: int) -> Tensor:
    """(h/2 w/2, 3) positions of image tokens: 0, row, column."""
    rows, columns = torch.meshgrid(torch.arange(h // 2), torch.arange(w // 2), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3).float()


@dataclass
class _Cohort:
    """Rows with one step count: they are always at the same step of one scheduler, which may remember earlier ones."""

    rows: list[int]
    scheduler: Any

    def noise_for(self, generators: Sequence[torch.Generator]) -> dict[str, Any]:
        """The rows' generators, for a scheduler that draws noise."""
        takes = "generator" in inspect.signature(self.scheduler.step).parameters
        return {"generator": [generators[row] for row in self.rows]} if takes else {}


def _cohorts(scheduler: Any, requests: Sequence[Request], set_timesteps: Callable[[Any, int], None]) -> list[_Cohort]:
    found = []
    for steps in dict.fromkeys(request.steps for request in requests):
        own = copy.deepcopy(scheduler)
        set_timesteps(own, steps)
        found.append(_Cohort([row for row, request in enumerate(requests) if request.steps == steps], own))
    return found


def _denoise(
    cohorts: list[_Cohort],
    latents: Tensor,
    predict: Predict,
    requests: Sequence[Request],
    *,
    halves: bool,
    before_step: BeforeStep | None,
) -> Tensor:
    latents = latents.clone()
    generators = [later_noise(latents.shape[1:], request.seed) for request in requests]
    for cohort in cohorts:
        latents[cohort.rows] *= float(getattr(cohort.scheduler, "init_noise_sigma", 1.0))
    for index in range(max(len(cohort.scheduler.timesteps) for cohort in cohorts)):
        active = [cohort for cohort in cohorts if index < len(cohort.scheduler.timesteps)]
        rows = [row for cohort in active for row in cohort.rows]
        step = Step(
            index=index,
            rows=rows,
            unconditional=[row for row in rows if halves and requests[row].guidance_scale > 1],
            timesteps=torch.cat([cohort.scheduler.timesteps[index].expand(len(cohort.rows)) for cohort in active]),
            latents=latents[rows],
        )
        x = step.latents if before_step is None else before_step(step)
        prediction = predict(step, _scaled(active, index, x))
        lens = [len(cohort.rows) for cohort in active]
        for cohort, x_own, predicted in zip(active, x.split(lens), prediction.split(lens), strict=True):
            timestep = cohort.scheduler.timesteps[index]
            draws = cohort.noise_for(generators)
            latents[cohort.rows] = cohort.scheduler.step(predicted, timestep, x_own, return_dict=False, **draws)[0].to(latents.dtype)
    return latents


def _scaled(active: list[_Cohort], index: int, x: Tensor) -> Tensor:
    """Latents (A,...) as each row's scheduler wants the network to see them."""
    parts = []
    for cohort, own in zip(active, x.split([len(cohort.rows) for cohort in active]), strict=True):
        scale = getattr(cohort.scheduler, "scale_model_input", None)
        parts.append(own if scale is None else scale(own, cohort.scheduler.timesteps[index]))
    return torch.cat(parts)


def _halves(step: Step, inputs: Tensor, conditional: Text, unconditional: Text) -> tuple[Tensor, Text, Tensor]:
    """The network's batch with its texts and timesteps: unconditional rows first."""
    place = {row: at for at, row in enumerate(step.rows)}
    at = [place[row] for row in step.unconditional] + list(range(len(step.rows)))
    first, second = unconditional.take(step.unconditional), conditional.take(step.rows)
    pooled = None if first.pooled is None or second.pooled is None else torch.cat([first.pooled, second.pooled])
    return inputs[at], Text(torch.cat([first.states, second.states]), pooled), step.timesteps[at]


def _guided(step: Step, prediction: Tensor, requests: Sequence[Request]) -> Tensor:
    """Both halves to one prediction a row."""
    without, with_prompt = prediction.split([len(step.unconditional), len(step.rows)])
    if not step.unconditional:
        return with_prompt
    place = {row: at for at, row in enumerate(step.rows)}
    at = [place[row] for row in step.unconditional]
    scales = prediction.new_tensor([requests[row].guidance_scale for row in step.unconditional])
    guided = with_prompt.clone()
    guided[at] = without + scales.reshape(-1, *[1] * (prediction.ndim - 1)) * (with_prompt[at] - without)
    return guided
