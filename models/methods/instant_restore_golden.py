"""Equality with the authors' code, from a file of its weights, inputs and intermediate results (spec section 6).

Everything that the tensors' shapes tell is read from them: widths, depth, heads, rank, rows, references. The layout itself fixes the rest:
eight norm groups, a LoRA alpha of half the rank, one width of heads throughout, Stable Diffusion's schedule. The noised latents of both
passes are fed as stored, because the authors' noise has no seed; all other tensors are computed and compared.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.attention import attention_probabilities
from models.keys_values import LayerKeysValues, References
from models.methods.instant_restore import (
    REFERENCE_TIMESTEP,
    Networks,
    Settings,
    attached,
    capture_keys_values,
    clean_latents,
    predict_noise,
    shared_layers,
    shared_noise,
)
from models.methods.instant_restore_checkpoint import PARTS, build_networks, split_parts
from models.nets.codecs import LatentCodec
from models.proofs import Comparison, GoldenFileError, check_names, compare, part, read_golden

TOLERANCE = 1e-5
NORM_GROUPS = 8
TIMESTEP = 249
INPUTS = ("degraded", "references", "caption", "valid_references")
STORED = ("degraded_moments", "reference_latents_t1", "reference_eps", f"noisy_latents_t{TIMESTEP}", "eps", "restored")


@torch.inference_mode()
def prove_golden(file: Path) -> list[Comparison]:
    """Compare every stored tensor of all four settings. Raises GoldenFileError or CheckpointMismatch if the file is not of this layout.

    Rows with fewer valid references than others hold the authors' zeroed padding, so all rows are compared under `zeroed`, and those with
    every reference under `masked` as well.
    """
    tensors = read_golden(file)
    groups = {(adain, own_kv): f"adain={adain:d},own_kv={own_kv:d}/" for adain in (False, True) for own_kv in (False, True)}
    layers = len({name for name in tensors if re.match(r"adain=0,own_kv=0/attention_map\.\d+$", name)})
    stored = [*STORED, *(f"attention_map.{layer}" for layer in range(layers))]
    check_names(
        file,
        [name for name in tensors if not name.startswith("weights/")],
        [*(f"inputs/{name}" for name in INPUTS), *(group + name for group in groups.values() for name in stored)],
    )
    inputs = part(tensors, "inputs/")
    maps = [tensors[f"adain=0,own_kv=0/attention_map.{layer}"] for layer in range(layers)]
    networks = golden_networks(part(tensors, "weights/"), inputs["caption"], maps, str(file))
    if len(shared_layers(networks.unet)) != layers:
        raise GoldenFileError(f"{file} has {layers} attention maps; its U-Net shares {len(shared_layers(networks.unet))} layers.")
    valid = [int(count) for count in inputs["valid_references"]]
    if inputs["references"].shape[0] != len(valid) or inputs["degraded"].shape[0] != len(valid):
        raise GoldenFileError(f"{file} has {len(valid)} valid_references for {inputs['degraded'].shape[0]} degraded images.")
    comparisons = []
    for (adain, own_kv), group in groups.items():
        settings = Settings(adain=adain, own_kv=own_kv, max_references=inputs["references"].shape[1], timestep=TIMESTEP)
        comparisons += compare_setting(networks, settings, inputs["degraded"], valid, part(tensors, group), group)
    return comparisons


def compare_setting(
    networks: Networks, settings: Settings, degraded_B3HW: Tensor, valid: list[int], stored: Mapping[str, Tensor], group: str
) -> list[Comparison]:
    """Compare one setting's stored tensors, given without the `group` before their names."""
    assert isinstance(networks.codec, LatentCodec)
    moments = networks.codec.vae.encoder(degraded_B3HW)
    x_1_UCHW = stored["reference_latents_t1"]
    with attached(networks.reference_unet, {}, freeu=settings.freeu):
        reference_eps = predict_noise(networks.reference_unet, x_1_UCHW, REFERENCE_TIMESTEP, networks.caption)
    comparisons = [
        compare(f"{group}degraded_moments", moments, stored["degraded_moments"], TOLERANCE),
        compare(f"{group}reference_eps", reference_eps, stored["reference_eps"], TOLERANCE),
    ]
    keys_values = capture_keys_values(networks, x_1_UCHW, settings)
    zeroed = settings.with_compat(["zeroed"])
    comparisons += compare_rows(networks, zeroed, keys_values, valid, range(len(valid)), stored, group)
    complete = [b for b, count in enumerate(valid) if count == settings.max_references]
    return comparisons + compare_rows(networks, settings, keys_values, valid, complete, stored, group)


def compare_rows(
    networks: Networks,
    settings: Settings,
    keys_values: list[LayerKeysValues],
    valid: list[int],
    compared: list[int] | range,
    stored: Mapping[str, Tensor],
    group: str,
) -> list[Comparison]:
    """Run all rows in one batch under one padding and compare the rows `compared`."""
    R, rows = settings.max_references, list(compared)
    if not rows:
        return []
    x_t_BCHW = stored[f"noisy_latents_t{TIMESTEP}"]
    references = References(keys_values, [range(b * R, b * R + count) for b, count in enumerate(valid)])
    maps: dict[str, list[Tensor]] = {}

    def keep_maps(layer: int, q_BNHD: Tensor, k_1MHD: Tensor, kv_lens: list[int]) -> None:
        keys = k_1MHD.split(kv_lens, dim=1)
        maps[f"attention_map.{layer}"] = [attention_probabilities(q_BNHD[b : b + 1], keys[b]) for b in rows]

    eps_BCHW = shared_noise(networks, x_t_BCHW, references, settings, probe=keep_maps)
    restored_B3HW = networks.codec.decode(clean_latents(networks, x_t_BCHW, eps_BCHW, settings)).clamp(-1, 1)
    computed = {"eps": eps_BCHW[rows], "restored": restored_B3HW[rows], **{name: torch.cat(row_maps) for name, row_maps in maps.items()}}
    label = f"{settings.reference_padding}, {'all rows' if len(rows) == len(valid) else 'rows ' + ' '.join(map(str, rows))}"
    return [compare(f"{group}{name} ({label})", computed[name], stored[name][rows], TOLERANCE) for name in sorted(computed)]


def golden_networks(weights: Mapping[str, Tensor], caption: Tensor, maps: list[Tensor], source: str) -> Networks:
    """The file's four networks, configured from the shapes of their tensors; `maps` are its attention maps (B,H,N,M), layer by layer."""
    parts = split_parts(weights, source)
    plain = {name: {key.replace(".base_layer.", "."): tensor for key, tensor in parts[name].items()} for name in PARTS}
    try:
        unet, vae = unet_config(plain["unet"], maps), vae_config(plain["vae"])
    except (KeyError, IndexError, ValueError) as error:
        raise GoldenFileError(f"{source}: the weights are no Stable Diffusion U-Net and autoencoder ({error!r}).") from error
    return build_networks(unet, vae, parts, caption, source)


def unet_config(weights: Mapping[str, Tensor], maps: list[Tensor]) -> dict[str, Any]:
    """Configuration of a UNet2DConditionModel with these weights; heads from the attention maps, for a level without by heads' width."""
    levels = _count(weights, r"down_blocks\.(\d+)\.")
    widths = [weights[f"down_blocks.{level}.resnets.0.conv1.weight"].shape[0] for level in range(levels)]
    down = [any(name.startswith(f"down_blocks.{level}.attentions.") for name in weights) for level in range(levels)]
    up = [any(name.startswith(f"up_blocks.{block}.attentions.") for name in weights) for block in range(levels)]
    heads: dict[int, int] = {}
    layers = iter(maps)
    for block in range(levels):
        for _ in range(_count(weights, rf"up_blocks\.{block}\.attentions\.(\d+)\.")):
            heads[levels - 1 - block] = next(layers).shape[1]
    deepest = max(heads)
    head_width = widths[deepest] // heads[deepest]
    attention = next(name.removesuffix("attn2.to_k.weight") for name in weights if name.endswith("attn2.to_k.weight"))
    block = attention.split("transformer_blocks.")[0]
    return {
        "sample_size": None,
        "in_channels": weights["conv_in.weight"].shape[1],
        "out_channels": weights["conv_out.weight"].shape[0],
        "block_out_channels": widths,
        "layers_per_block": _count(weights, r"down_blocks\.0\.resnets\.(\d+)\."),
        "transformer_layers_per_block": _count(weights, re.escape(block) + r"transformer_blocks\.(\d+)\."),
        "down_block_types": ["CrossAttnDownBlock2D" if cross else "DownBlock2D" for cross in down],
        "up_block_types": ["CrossAttnUpBlock2D" if cross else "UpBlock2D" for cross in up],
        "attention_head_dim": [heads.get(level, widths[level] // head_width) for level in range(levels)],
        "cross_attention_dim": weights[f"{attention}attn2.to_k.weight"].shape[1],
        "use_linear_projection": weights[f"{block}proj_in.weight"].ndim == 2,
        "norm_num_groups": NORM_GROUPS,
    }


def vae_config(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Configuration of an AutoencoderKL with these weights."""
    levels = _count(weights, r"encoder\.down_blocks\.(\d+)\.")
    return {
        "in_channels": weights["encoder.conv_in.weight"].shape[1],
        "out_channels": weights["decoder.conv_out.weight"].shape[0],
        "latent_channels": weights["post_quant_conv.weight"].shape[0],
        "block_out_channels": [weights[f"encoder.down_blocks.{level}.resnets.0.conv1.weight"].shape[0] for level in range(levels)],
        "layers_per_block": _count(weights, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "norm_num_groups": NORM_GROUPS,
    }


def _count(weights: Mapping[str, Tensor], pattern: str) -> int:
    """How many different numbers stand in `pattern`'s group over all names."""
    matches = (re.match(pattern, name) for name in weights)
    return len({match.group(1) for match in matches if match})
