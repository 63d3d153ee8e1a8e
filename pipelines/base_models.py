"""What a text-to-image base says of itself in its configuration files: its topology, picture size and licence. No weights are read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from models.catalog import ModelNotFound
from pipelines.pipeline import Model

STABLE_DIFFUSION, FLUX = "stable-diffusion", "flux"
_NON_COMMERCIAL = re.compile(r"^license(_name)?:.*non-?commercial", re.IGNORECASE | re.MULTILINE)


def base_topology(folder: Path) -> str:
    """stable-diffusion or flux, of a folder in diffusers layout. Raises ModelNotFound for any other folder."""
    if (folder / "unet" / "config.json").is_file():
        return STABLE_DIFFUSION
    if (folder / "transformer" / "config.json").is_file():
        return FLUX
    raise ModelNotFound(
        f"{folder} is no text-to-image model in diffusers layout: it has neither unet/config.json nor transformer/config.json"
    )


def base_settings(folder: Path) -> dict[str, Any]:
    """Facts that jobs need before anything is loaded: `image_size` (pixels a side) and `size_unit`, of which sizes are multiples.

    Also `family`: sd15, sdxl, flux-dev (guidance was distilled into it) or flux-schnell. Raises ModelNotFound.
    """
    vae = _config(folder / "vae")
    factor = 2 ** (len(vae.get("block_out_channels", (0,))) - 1)
    if base_topology(folder) == STABLE_DIFFUSION:
        unet = _config(folder / "unet")
        levels = len(unet.get("block_out_channels", (0,)))
        family = "sdxl" if unet.get("addition_embed_type") == "text_time" else "sd15"
        return {"family": family, "image_size": int(unet["sample_size"]) * factor, "size_unit": factor * 2 ** (levels - 1)}
    family = "flux-dev" if _config(folder / "transformer").get("guidance_embeds") else "flux-schnell"
    return {"family": family, "image_size": int(vae["sample_size"]), "size_unit": 2 * factor}


def check_size(image_size: int | None, model: Model) -> None:
    """Raises ValueError for a side (pixels) that a model on such a base can't make."""
    assert image_size is not None
    if image_size % (unit := model.settings["size_unit"]):
        raise ValueError(f"params.image_size: {model.name} makes sizes that are multiples of {unit}")


def is_non_commercial(folder: Path) -> bool:
    """Whether a base may not be used commercially: FLUX.1-dev and what is made from it, or by the licence in its README."""
    readme = folder / "README.md"
    said = readme.is_file() and _NON_COMMERCIAL.search(readme.read_text(errors="replace").split("\n---", 1)[0]) is not None
    return said or (base_topology(folder) == FLUX and base_settings(folder)["family"] == "flux-dev")


def _config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        raise ModelNotFound(f"there is no {file}; a model in diffusers layout has it") from None
    except ValueError as error:
        raise ModelNotFound(f"{file} can't be read: {error}") from error
