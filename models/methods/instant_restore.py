"""InstantRestore (arXiv 2412.06753, SIGGRAPH 2025): one denoising step whose decoder looks at clean photographs of the same person.

A reference pass keeps the keys and values of the decoder's self-attentions; the restoring pass attends to them in place of its own. All
functions are differentiable: training and inference are the same code. Networks are stock diffusers; nothing is subclassed.
Letters: B rows, U distinct references, T references over all rows, N tokens of a layer, M keys, H heads, C = H D channels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn

from models.attention import attend
from models.nets.codecs import Codec, normal_like

REFERENCE_TIMESTEP = 1
FREEU = {"b1": 1.4, "b2": 1.6, "s1": 0.9, "s2": 0.2}
ADAIN_EPS = 1e-5
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


@dataclass(frozen=True)
class LayerKeysValues:
    """Raw keys and values of U references in one shared layer, and the values' mean and unbiased deviation over tokens."""

    k: Tensor  # (U,N,C)
    v: Tensor  # (U,N,C)
    v_mean: Tensor  # (U,1,C)
    v_std: Tensor  # (U,1,C)

    @classmethod
    def of(cls, k_UNC: Tensor, v_UNC: Tensor) -> LayerKeysValues:
        return cls(k_UNC, v_UNC, v_UNC.mean(1, keepdim=True), v_UNC.std(1, keepdim=True))

    def take(self, index_T: list[int]) -> LayerKeysValues:
        """References `index_T` of these, in that order; a reference may come more than once."""
        if index_T == list(range(self.k.shape[0])):
            return self
        index = torch.tensor(index_T, device=self.k.device, dtype=torch.long)
        return LayerKeysValues(self.k[index], self.v[index], self.v_mean[index], self.v_std[index])

    def with_zeros(self) -> LayerKeysValues:
        """These and one more reference whose keys and values are zero."""
        fields = (self.k, self.v, self.v_mean, self.v_std)
        return LayerKeysValues(*(torch.cat([x, torch.zeros_like(x[:1])]) for x in fields))


@dataclass(frozen=True)
class References:
    """What a batch looks at: `layers`, one a shared layer, over U distinct references; `rows[b]`: which of them row b has, maybe none."""

    layers: Sequence[LayerKeysValues]
    rows: Sequence[Sequence[int]]

    def padded(self, count: int) -> References:
        """Rows with fewer than `count` references filled up with zero keys and values; rows without any stay so."""
        if not self.layers:
            return self
        zero = self.layers[0].k.shape[0]
        rows = [[*row, *[zero] * (count - len(row))] if row else [] for row in self.rows]
        return References([layer.with_zeros() for layer in self.layers], rows)


def shared_layers(unet: nn.Module) -> dict[str, Attention]:
    """The self-attentions of the decoder by name, in the order of computation: nine in Stable Diffusion's topology."""
    found = {name: module for name, module in unet.named_modules() if SHARED.fullmatch(name) and isinstance(module, Attention)}
    if not found:
        raise ValueError("This U-Net has no self-attention in its up_blocks to share; build it with CrossAttnUpBlock2D.")
    return found


def keys_per_row(own_BNC: Tensor | None, references_TNC: Tensor, rows: Sequence[Sequence[int]], own_kv: bool) -> tuple[Tensor, list[int]]:
    """Keys (or values) of all rows in one line, (1,M,C), and how many each row has: its own first where `own_kv` or without reference."""
    N, C = references_TNC.shape[1:] if own_BNC is None else own_BNC.shape[1:]
    has_own = [own_kv or not row for row in rows]
    lens = [N * (own + len(row)) for own, row in zip(has_own, rows, strict=True)]
    if not any(has_own):
        return references_TNC.reshape(1, -1, C), lens
    assert own_BNC is not None
    pieces, start = [], 0
    for b, row in enumerate(rows):
        if has_own[b]:
            pieces.append(own_BNC[b])
        if row:
            pieces.append(references_TNC[start : start + len(row)].reshape(-1, C))
            start += len(row)
    return torch.cat(pieces)[None], lens


def adain(references: LayerKeysValues, own_v_TNC: Tensor) -> Tensor:
    """(V - mean V) / (std V + eps) * (std V_own + eps) + mean V_own, per reference and channel over tokens, std unbiased. Returns TNC."""
    own_mean, own_std = own_v_TNC.mean(1, keepdim=True), own_v_TNC.std(1, keepdim=True)
    normal_TNC = (references.v - references.v_mean) / (references.v_std + ADAIN_EPS)
    return normal_TNC * (own_std + ADAIN_EPS) + own_mean


class SharedAttention:
    """Attention processor of the restoring pass: queries from the image, keys and values from its references."""

    def __init__(self, layer: int, references: References, settings: Settings, probe: Probe | None, backend: str) -> None:
        self.layer, self.settings, self.probe, self.backend = layer, settings, probe, backend
        self.rows = references.rows
        self.index_T = [reference for row in references.rows for reference in row]
        self.row_of_T = [b for b, row in enumerate(references.rows) for _ in row]
        self.keys_values = references.layers[layer] if self.index_T else None

    def __call__(self, attn: Attention, hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        B, N = hidden_states.shape[:2]
        needs_own = self.settings.own_kv or not all(self.rows)
        to_q, to_k, to_v = projections(attn)
        q_BNC = to_q(hidden_states)
        k_own_BNC = to_k(hidden_states) if needs_own else None
        v_own_BNC = to_v(hidden_states) if needs_own or self.settings.adain else None
        if self.keys_values is None:
            assert k_own_BNC is not None
            assert v_own_BNC is not None
            k_1MC, v_1MC, kv_lens = k_own_BNC.reshape(1, B * N, -1), v_own_BNC.reshape(1, B * N, -1), [N] * B
        else:
            taken = self.keys_values.take(self.index_T)
            v_TNC = taken.v
            if self.settings.adain:
                assert v_own_BNC is not None
                v_TNC = adain(taken, v_own_BNC[self.row_of_T])
            k_1MC, kv_lens = keys_per_row(k_own_BNC, taken.k, self.rows, self.settings.own_kv)
            v_1MC, _lens = keys_per_row(v_own_BNC, v_TNC, self.rows, self.settings.own_kv)
        q_BNHD, k_1MHD, v_1MHD = (x.unflatten(-1, (attn.heads, -1)) for x in (q_BNC, k_1MC, v_1MC))
        if self.probe is not None:
            self.probe(self.layer, q_BNHD, k_1MHD, kv_lens)
        q_1MHD = q_BNHD.reshape(1, B * N, *q_BNHD.shape[2:])
        out_1MHD = attend(q_1MHD, k_1MHD, v_1MHD, q_lens=[N] * B, kv_lens=kv_lens, backend=self.backend)
        return project_out(attn, out_1MHD.reshape(B, N, -1))


class _AllCaptured(Exception):  # noqa: N818 - a signal: nothing after the last captured layer is needed
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
    if settings.reference_padding == "zeroed":
        references = references.padded(settings.max_references)
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
