"""InstantRestore (arXiv 2412.06753, SIGGRAPH 2025): one denoising step whose decoder looks at clean photographs of the same person.

A reference pass keeps the keys and values of the decoder's self-attentions; the restoring pass attends to them in place of its own. All
functions are differentiable: training and inference are the same code. Networks are stock diffusers; nothing is subclassed.
Letters: B rows, U distinct references, T references over all rows, N tokens of a layer, M keys, H heads, C = H D channels.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn

from models.attention import attend, resolve_backend
from models.keys_values import LayerKeysValues, References, adain, packed
from models.nets.codecs import Codec, normal_like
from models.reference_cache import ReferenceCache

REFERENCE_TIMESTEP = 1
FREEU = {"b1": 1.4, "b2": 1.6, "s1": 0.9, "s2": 0.2}
COMPAT: dict[str, dict[str, Any]] = {"zeroed": {"reference_padding": "zeroed"}}
SHARED = re.compile(r"up_blocks\.\d+\.attentions\.\d+\.transformer_blocks\.\d+\.attn1")

Probe: TypeAlias = Callable[[int, Tensor, Tensor, list[int]], None]
"""Called once a shared layer with its number, q (B,N,H,D), all rows' keys in one line (1,M,H,D), and how many of those each row has."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides a result besides networks and inputs. Defaults are the authors', `reference_padding` excepted."""

    image_size: int = 512  # pixels a side
    timestep: int = 249  # of the scheduler's 1000
    max_references: int = 4  # a row's first ones are used
    adain: bool = True  # give each reference's values the image's own mean and deviation
    own_kv: bool = False  # the image's own keys and values in front of its references'
    reference_padding: Literal["masked", "zeroed"] = "masked"  # zeroed: missing references as zero keys and values, as the authors do
    freeu: bool = True
    noise: float = 1.0  # scale of the noise that is mixed into both passes' latents; 0: the input plus a learned residual

    def __post_init__(self) -> None:
        if self.reference_padding not in ("masked", "zeroed"):
            raise ValueError(f"reference_padding is {self.reference_padding!r}; choose masked or zeroed.")
        if self.max_references < 0 or not 0 <= self.timestep < 1000:
            raise ValueError(f"max_references {self.max_references} must be 0 or more, timestep {self.timestep} from 0 to 999.")

    def with_options(self, options: Mapping[str, Any]) -> Settings:
        """These settings with some fields replaced by name. Raises ValueError for a name that is none."""
        unknown = sorted(options.keys() - {f.name for f in fields(self)})
        if unknown:
            raise ValueError(f"instant_restore has no setting {unknown[0]!r}; it has {', '.join(f.name for f in fields(self))}.")
        return replace(self, **options)

    def with_compat(self, names: Sequence[str]) -> Settings:
        """These settings with authors' behaviours that we changed put back (spec section 5): `zeroed`."""
        changes: dict[str, Any] = {}
        for name in names:
            if name not in COMPAT:
                raise ValueError(f"instant_restore has no compat {name!r}; it knows {', '.join(COMPAT)}.")
            changes |= COMPAT[name]
        return replace(self, **changes)


@dataclass
class Networks:
    """The loaded networks; `reference_unet` and `reference_codec` may be the restoring ones."""

    unet: UNet2DConditionModel
    reference_unet: UNet2DConditionModel
    codec: Codec
    reference_codec: Codec
    scheduler: DDPMScheduler
    caption: Tensor  # (1,L,C), the one fixed caption, encoded

    def to(self, device: str | torch.device, dtype: torch.dtype) -> None:
        """Move everything that holds numbers, in place."""
        for module in (self.unet, self.reference_unet, self.codec, self.reference_codec):
            if isinstance(module, nn.Module):
                nn.Module.to(module, device, dtype)  # the networks' own `to` takes no dtype by position
        self.caption = self.caption.to(device, dtype)


def shared_layers(unet: nn.Module) -> dict[str, Attention]:
    """The self-attentions of the decoder by name, in the order of computation: nine in Stable Diffusion's topology."""
    found = {name: module for name, module in unet.named_modules() if SHARED.fullmatch(name) and isinstance(module, Attention)}
    if not found:
        raise ValueError("This U-Net has no self-attention in its up_blocks to share; build it with CrossAttnUpBlock2D.")
    return found


class SharedAttention:
    """Attention processor of the restoring pass: queries from the image, keys and values from its references."""

    def __init__(self, layer: int, references: References, settings: Settings, probe: Probe | None, backend: str) -> None:
        self.layer, self.settings, self.probe, self.backend = layer, settings, probe, backend
        self.keys_values = references.layers[layer] if references.layers else None
        self.rows = [list(row) for row in references.rows]
        if settings.reference_padding == "zeroed":
            zero = 0 if self.keys_values is None else self.keys_values.k.shape[0]
            self.rows = [row + [zero] * (settings.max_references - len(row)) for row in self.rows]
        self.index_T = [reference for row in self.rows for reference in row]
        self.row_of_T = [b for b, row in enumerate(self.rows) for _ in row]

    def __call__(self, attn: Attention, hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        to_q, to_k, to_v = projections(attn)
        needs_own = self.settings.own_kv or not all(self.rows)
        q_BNC = to_q(hidden_states)
        k_own_BNC = to_k(hidden_states) if needs_own else None
        v_own_BNC = to_v(hidden_states) if needs_own or self.settings.adain else None

        taken = self._references(like=q_BNC)
        v_TNC = taken.v
        if self.settings.adain and self.index_T:
            assert v_own_BNC is not None
            v_TNC = adain(taken, v_own_BNC[self.row_of_T])
        k_1MC, kv_lens = packed(k_own_BNC, taken.k, self.rows, self.settings.own_kv)
        v_1MC, _lens = packed(v_own_BNC, v_TNC, self.rows, self.settings.own_kv)

        q_BNHD, k_1MHD, v_1MHD = (x.unflatten(-1, (attn.heads, -1)) for x in (q_BNC, k_1MC, v_1MC))
        if self.probe is not None:
            self.probe(self.layer, q_BNHD, k_1MHD, kv_lens)
        q_lens = [q_BNHD.shape[1]] * q_BNHD.shape[0]
        out_1MHD = attend(q_BNHD.flatten(0, 1)[None], k_1MHD, v_1MHD, q_lens=q_lens, kv_lens=kv_lens, backend=self.backend)
        return project_out(attn, out_1MHD.reshape(q_BNC.shape))

    def _references(self, like: Tensor) -> LayerKeysValues:
        """The references of all rows, one after the other (T,N,C)."""
        keys_values = self.keys_values
        if keys_values is None:
            none_0NC = like.new_zeros(0, *like.shape[1:])
            keys_values = LayerKeysValues(none_0NC, none_0NC, none_0NC[:, :1], none_0NC[:, :1])
        if self.settings.reference_padding == "zeroed":
            keys_values = keys_values.with_zeros()
        return keys_values.take(self.index_T)


class _AllCaptured(Exception):
    pass


class CapturingAttention:
    """Attention processor of the reference pass: plain self-attention that keeps its raw K and V, and ends the pass in the last layer."""

    def __init__(self, captured: list[LayerKeysValues], last: bool, backend: str) -> None:
        self.captured, self.last, self.backend = captured, last, backend

    def __call__(self, attn: Attention, hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        to_q, to_k, to_v = projections(attn)
        k_UNC, v_UNC = to_k(hidden_states), to_v(hidden_states)
        self.captured.append(LayerKeysValues.of(k_UNC, v_UNC))
        if self.last:
            raise _AllCaptured
        q, k, v = (x.unflatten(-1, (attn.heads, -1)) for x in (to_q(hidden_states), k_UNC, v_UNC))
        return project_out(attn, attend(q, k, v, backend=self.backend).flatten(2))


def projections(attn: Attention) -> tuple[nn.Module, nn.Module, nn.Module]:
    """The layer's maps to Q, K and V."""
    assert attn.to_k is not None
    assert attn.to_v is not None
    return attn.to_q, attn.to_k, attn.to_v


def project_out(attn: Attention, x_BNC: Tensor) -> Tensor:
    """The layer's own output projection and dropout."""
    assert attn.to_out is not None
    for module in attn.to_out:
        x_BNC = module(x_BNC)
    return x_BNC


@contextmanager
def attached(unet: UNet2DConditionModel, processors: Mapping[str, Any], *, freeu: bool) -> Iterator[None]:
    """Within: `processors` in the attentions they name, FreeU as the authors set it. After, also after an exception: as before."""
    layers = {name: unet.get_submodule(name) for name in processors}
    originals = {name: layer.processor for name, layer in layers.items()}
    blocks = [block.__dict__ for block in unet.up_blocks]
    freeu_before = [{key: block[key] for key in FREEU if key in block} for block in blocks]
    try:
        for name, layer in layers.items():
            layer.processor = processors[name]
        if freeu:
            unet.enable_freeu(**FREEU)
        yield
    finally:
        for name, layer in layers.items():
            layer.processor = originals[name]
        for block, before in zip(blocks, freeu_before, strict=True):
            for key in FREEU:
                block.pop(key, None)
            block.update(before)


def mix_noise(networks: Networks, z_BCHW: Tensor, timestep: int, scale: float, generators: Sequence[torch.Generator]) -> Tensor:
    """x_t = sqrt(a) z + sqrt(1 - a) * scale * n, a = cumulative alpha of t, n normal, row i from generators[i] (not used at scale 0)."""
    a = networks.scheduler.alphas_cumprod[timestep].item()
    mixed = a**0.5 * z_BCHW
    return mixed if scale == 0 else mixed + (1 - a) ** 0.5 * scale * normal_like(z_BCHW, generators)


def predict_noise(unet: UNet2DConditionModel, x_t_BCHW: Tensor, timestep: int, caption_1LC: Tensor) -> Tensor:
    """eps = UNet(x_t, t, caption), one caption for all rows."""
    caption_BLC = caption_1LC.to(x_t_BCHW.dtype).expand(x_t_BCHW.shape[0], -1, -1)
    return unet(x_t_BCHW, timestep, encoder_hidden_states=caption_BLC, return_dict=False)[0]


def capture_keys_values(networks: Networks, x_1_UCHW: Tensor, settings: Settings, *, backend: str = "auto") -> list[LayerKeysValues]:
    """The reference pass from noised latents at t = 1: each shared layer's raw K and V; it stops after the last one."""
    names = list(shared_layers(networks.reference_unet))
    captured: list[LayerKeysValues] = []
    processors = {name: CapturingAttention(captured, name == names[-1], backend) for name in names}
    with attached(networks.reference_unet, processors, freeu=settings.freeu), suppress(_AllCaptured):
        predict_noise(networks.reference_unet, x_1_UCHW, REFERENCE_TIMESTEP, networks.caption)
    return captured


def reference_keys_values(
    networks: Networks, references_U3HW: Tensor, generators: Sequence[torch.Generator], settings: Settings, *, backend: str = "auto"
) -> list[LayerKeysValues]:
    """Keys and values of clean photographs in [-1, 1], one entry a shared layer; reference i draws from generators[i]."""
    z_UCHW = networks.reference_codec.encode(references_U3HW, generators)
    x_1_UCHW = mix_noise(networks, z_UCHW, REFERENCE_TIMESTEP, settings.noise, generators)
    return capture_keys_values(networks, x_1_UCHW, settings, backend=backend)


def noisy_latents(networks: Networks, images_B3HW: Tensor, generators: Sequence[torch.Generator], settings: Settings) -> Tensor:
    """x_t of damaged images in [-1, 1], (B,C,h,w); row i draws from generators[i]."""
    z_BCHW = networks.codec.encode(images_B3HW, generators)
    return mix_noise(networks, z_BCHW, settings.timestep, settings.noise, generators)


def shared_noise(
    networks: Networks, x_t_BCHW: Tensor, references: References, settings: Settings, *, probe: Probe | None = None, backend: str = "auto"
) -> Tensor:
    """eps of the restoring pass: its decoder self-attentions look at each row's references."""
    if len(references.rows) != x_t_BCHW.shape[0]:
        raise ValueError(
            f"{x_t_BCHW.shape[0]} images, but references for {len(references.rows)} rows; give every row a list, an empty one for none."
        )
    processors = {
        name: SharedAttention(layer, references, settings, probe, backend) for layer, name in enumerate(shared_layers(networks.unet))
    }
    with attached(networks.unet, processors, freeu=settings.freeu):
        return predict_noise(networks.unet, x_t_BCHW, settings.timestep, networks.caption)


def clean_latents(networks: Networks, x_t_BCHW: Tensor, eps_BCHW: Tensor, settings: Settings) -> Tensor:
    """x_0 = (x_t - sqrt(1 - a) eps) / sqrt(a)."""
    a = networks.scheduler.alphas_cumprod[settings.timestep].item()
    return (x_t_BCHW - (1 - a) ** 0.5 * eps_BCHW) / a**0.5


def restore_latents(
    networks: Networks, x_t_BCHW: Tensor, references: References, settings: Settings, *, probe: Probe | None = None, backend: str = "auto"
) -> Tensor:
    """The restoring pass: x_0 of every row. `networks.codec.decode` of it, clamped to [-1, 1], is the result."""
    eps_BCHW = shared_noise(networks, x_t_BCHW, references, settings, probe=probe, backend=backend)
    return clean_latents(networks, x_t_BCHW, eps_BCHW, settings)


@dataclass(frozen=True)
class Request:
    """One damaged face with its person's clean photographs, all square of the model's size, in [-1, 1]."""

    image: Tensor  # (3,H,W)
    references: Sequence[Tensor]  # each (3,H,W)
    reference_keys: Sequence[str]  # one a reference: a digest of its content; equal keys are computed once
    seed: int


@dataclass(frozen=True)
class Result:
    """What became of a request."""

    restored: Tensor  # (3,H,W) in [-1, 1], fp32 on the CPU
    n_references: int  # how many of its references were used


class InstantRestore:
    """Restores faces in one step, computing each reference once however many requests show it, also across calls.

    A row's randomness comes from its seed, a reference's from its key, so neither depends on what shares the batch. `cache` counts hits
    and misses; at most `cache_bytes` stay in it between calls. Arithmetic is in the networks' dtype, on their device.
    """

    def __init__(
        self,
        networks: Networks,
        settings: Settings,
        *,
        cache_bytes: int = 2**30,
        references_a_pass: int = 16,
        backend: str = "auto",
    ) -> None:
        self.networks, self.settings, self.references_a_pass = networks, settings, references_a_pass
        parameter = next(networks.unet.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        attention = next(iter(shared_layers(networks.unet).values()))
        width = attention.inner_dim // attention.heads
        self.attention_backend = resolve_backend(self.device, self.dtype, channels=(width, width), backend=backend)  # for the job's log
        self.backend = backend
        self.cache: ReferenceCache[list[LayerKeysValues]] = ReferenceCache(
            cache_bytes, size=lambda layers: sum(layer.nbytes for layer in layers)
        )

    @classmethod
    def load(
        cls,
        sources: Mapping[str, str | Path],
        *,
        settings: Mapping[str, Any] | None = None,
        cache_bytes: int = 2**30,
        accept_unlicensed_weights: bool = False,
        device: str | None = None,
        dtype: torch.dtype | None = None,
        backend: str = "auto",
    ) -> InstantRestore:
        """From local paths: `folder` of a lab model, or `base` in diffusers layout with the authors' `checkpoint` and maybe another `vae`.

        `settings` that are not None replace the model's own. Without `device` CUDA if there is one, without `dtype` bf16 there, else fp32.
        Raises ValueError (CheckpointMismatch, UnreadableCheckpoint, ModelNotFound, UnlicensedWeights) saying what to do.
        """
        from models.methods.instant_restore_checkpoint import load_sources  # it builds on this module

        asked = {name: value for name, value in (settings or {}).items() if value is not None}
        networks, decided = load_sources({name: Path(path) for name, path in sources.items()}, asked, accept_unlicensed_weights)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        networks.to(device, dtype or (torch.bfloat16 if device.startswith("cuda") else torch.float32))
        return cls(networks, decided, cache_bytes=cache_bytes, backend=backend)

    @torch.inference_mode()
    def __call__(self, requests: Sequence[Request]) -> list[Result]:
        """One result a request, in order. Raises ValueError for a request of a wrong shape; networks and cache survive any exception."""
        if not requests:
            return []
        for request in requests:
            self._check(request)
        rows = [list(request.reference_keys[: self.settings.max_references]) for request in requests]
        references = self._references(requests, rows)
        generators = [torch.Generator().manual_seed(request.seed) for request in requests]
        x_t_BCHW = noisy_latents(self.networks, self._stack([request.image for request in requests]), generators, self.settings)
        z_BCHW = restore_latents(self.networks, x_t_BCHW, references, self.settings, backend=self.backend)
        restored_B3HW = self.networks.codec.decode(z_BCHW).clamp(-1, 1).float().cpu()
        return [Result(restored, len(row)) for restored, row in zip(restored_B3HW, rows, strict=True)]

    def _references(self, requests: Sequence[Request], rows: list[list[str]]) -> References:
        """Keys and values of all references that `rows` name by key: from the cache, the others in as few passes as may be."""
        pixels = {key: image for request in requests for key, image in zip(request.reference_keys, request.references, strict=True)}
        keys = list(dict.fromkeys(key for row in rows for key in row))
        cached = {key: self.cache.get(key) for key in keys}
        found = {key: layers for key, layers in cached.items() if layers is not None}
        missing = [key for key in keys if key not in found]
        for start in range(0, len(missing), self.references_a_pass):
            chunk = missing[start : start + self.references_a_pass]
            generators = [torch.Generator().manual_seed(_seed_of(key)) for key in chunk]
            images_U3HW = self._stack([pixels[key] for key in chunk])
            computed = reference_keys_values(self.networks, images_U3HW, generators, self.settings, backend=self.backend)
            for i, key in enumerate(chunk):
                found[key] = [layer.one(i) for layer in computed]
                self.cache.put(key, found[key])
        by_layer = zip(*(found[key] for key in keys), strict=True)
        number = {key: i for i, key in enumerate(keys)}
        return References([LayerKeysValues.concatenated(parts) for parts in by_layer], [[number[key] for key in row] for row in rows])

    def _stack(self, images: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(images)).to(self.device, self.dtype)

    def _check(self, request: Request) -> None:
        size = (3, self.settings.image_size, self.settings.image_size)
        for name, image in (("image", request.image), *((f"references[{i}]", r) for i, r in enumerate(request.references))):
            if tuple(image.shape) != size:
                raise ValueError(f"{name} has shape {tuple(image.shape)}; this model takes {size}.")
        if len(request.references) != len(request.reference_keys):
            raise ValueError(f"{len(request.references)} references need as many reference_keys, not {len(request.reference_keys)}.")


def _seed_of(key: str) -> int:
    """A reference's seed: its noise belongs to the photograph, so that it can be cached."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little", signed=True)
