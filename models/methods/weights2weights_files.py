"""Adapters and spaces as files: one person's weights or coefficients, and the authors' published space (spec section 4).

An adapter's file is a standard PEFT LoRA that says in diffusers' own metadata which rank and scale it has, so that stock diffusers loads it alone
(`unet.load_lora_adapter(folder, weight_name=name, prefix="base_model.model")`; given the path in one piece it overlooks the scale) and stock peft
from the folder that `export_peft` writes.
Letters: n weights, k components, m models.
"""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.checkpoints import UnreadableCheckpoint
from models.lora_files import lora_bytes, read_lora
from models.methods.weights2weights_layout import Layout, LayoutMismatch, canonical_key
from models.methods.weights2weights_space import Space, read_facts

ADAPTER_METADATA = "lora_adapter_metadata"  # where diffusers looks for rank and scale
COEFFICIENTS = "coefficients"
_TORCH_FILE = b"PK"  # torch saves zip archives
_AUTHORS = ("V.pt", "mean.pt", "std.pt", "weight_dimensions.pt")
_AUTHORS_COEFFICIENTS = "proj_1000pc.pt"


@dataclass(frozen=True)
class Start:
    """What a person's file holds: weights (n,) or coefficients (k',), the other one None."""

    weights_n: Tensor | None = None
    coefficients_k: Tensor | None = None


def adapter_bytes(layout: Layout, weights_n: Tensor, metadata: Mapping[str, str], dtype: torch.dtype = torch.float32) -> bytes:
    """A PEFT LoRA file of one model's weights; `metadata`: what else there is to say of it (person, row_id, ...)."""
    return lora_bytes(layout.unflatten(weights_n), {**metadata, **adapter_metadata(layout)}, dtype)


def adapter_metadata(layout: Layout) -> dict[str, str]:
    """What an adapter's file must say of itself: method, base, rank and scale, these also as diffusers looks for them."""
    peft = {f"base_model.model.{name}": value for name, value in _peft_config(layout).items()}
    own = {"method": "weights2weights", "rank": str(layout.rank), "alpha": f"{layout.alpha:g}", ADAPTER_METADATA: json.dumps(peft)}
    return own if layout.base_hash is None else {**own, "base_hash": layout.base_hash}


def coefficient_bytes(layout: Layout, p_k: Tensor, metadata: Mapping[str, str]) -> bytes:
    """A file of one model's coefficients."""
    known = {} if layout.base_hash is None else {"base_hash": layout.base_hash}
    return lora_bytes({COEFFICIENTS: p_k}, {**metadata, "method": "weights2weights", **known})


def read_start(data: bytes, layout: Layout) -> Start:
    """One person's file: ours, any PEFT LoRA of this layout, or the authors' (`w2wmodel.pt`: (1,k); a dictionary of PEFT keys).

    Raises UnreadableCheckpoint for what is no such file, LayoutMismatch for weights of another layout or scale, ForeignBase for another base.
    """
    metadata: dict[str, str] = {}
    if data.startswith(_TORCH_FILE):
        content = _load_torch(io.BytesIO(data), "what was given")
        tensors = {COEFFICIENTS: content} if isinstance(content, Tensor) else content
        if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
            raise UnreadableCheckpoint("What was given is no file of weights or coefficients: it holds more than tensors.")
    else:
        tensors, metadata = read_lora(data)
    layout.check_base(metadata.get("base_hash"), "this file")
    if tensors.keys() == {COEFFICIENTS}:
        return Start(coefficients_k=tensors[COEFFICIENTS].float().reshape(-1))
    if "alpha" in metadata and float(metadata["alpha"]) / int(metadata["rank"]) != layout.scale:
        raise LayoutMismatch(
            f"this file was made for alpha {metadata['alpha']} at rank {metadata['rank']}; this base takes {layout.scale:g} x rank."
        )
    return Start(weights_n=layout.flatten(tensors))


def export_peft(folder: Path, layout: Layout, weights_n: Tensor) -> None:
    """Write one model's weights as a folder that `peft.PeftModel.from_pretrained(unet, folder)` loads."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_model.safetensors").write_bytes(adapter_bytes(layout, weights_n, {}))
    config = {"peft_type": "LORA", "task_type": None, "inference_mode": True, "bias": "none", **_peft_config(layout)}
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def load_space(folder: Path, own: Layout, *, n_components: int | None = None) -> Space:
    """A space from our files or from the authors' folder, for the base whose layout is `own`; its first components only where it has more.

    Raises LayoutMismatch or ForeignBase for a space of another base, UnreadableCheckpoint for a folder that is none.
    """
    if (folder / "space.safetensors").is_file():
        space = Space.load(folder)
        own.check_same(space.layout, str(folder))
    else:
        space = load_authors_space(folder, own, n_components=n_components)
    return space.truncated(n_components) if n_components is not None and n_components < space.components else space


def load_authors_space(folder: Path, layout: Layout, *, n_components: int | None = None) -> Space:
    """The published files V.pt, mean.pt, std.pt and weight_dimensions.pt, and the spread of proj_1000pc.pt where it is there.

    Nothing but tensors and their shapes is unpickled; labels (identity_df.pt) are not read. std keeps its signs. Components without a published
    spread have none: they are not sampled. `layout`: of the base; the file's own says nothing of order, which is that of the sorted keys.
    """
    absent = [name for name in _AUTHORS if not (folder / name).is_file()]
    if absent:
        raise UnreadableCheckpoint(
            f"{folder} holds no space: neither space.safetensors nor all of the authors' files ({', '.join(absent)} missing)."
        )
    layout.flatten({key: torch.empty(shape) for key, shape in _authors_shapes(folder / "weight_dimensions.pt").items()})
    V_nk, mean_n, std_n = (_tensor(folder / name, mmap=name == "V.pt") for name in ("V.pt", "mean.pt", "std.pt"))
    V_nk = V_nk[:, :n_components].float()
    k = V_nk.shape[1]
    proj_mean_k, proj_std_k = torch.zeros(k), torch.zeros(k)
    if (folder / _AUTHORS_COEFFICIENTS).is_file():
        p_mj = _tensor(folder / _AUTHORS_COEFFICIENTS, mmap=True)[:, :k].float()
        proj_mean_k[: p_mj.shape[1]], proj_std_k[: p_mj.shape[1]] = p_mj.mean(0), p_mj.std(0)
    return Space(layout, mean_n.float().reshape(-1), std_n.float().reshape(-1), V_nk, proj_mean_k, proj_std_k)


def _authors_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Shapes by our keys of the authors' weight_dimensions.pt. Raises UnreadableCheckpoint."""
    try:
        return {canonical_key(key): tuple(shape) for key, (_numel, shape) in _load_torch(file, str(file)).items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise UnreadableCheckpoint(f"{file} names no shapes by tensor ({error}).") from error


def _peft_config(layout: Layout) -> dict[str, Any]:
    return {"r": layout.rank, "lora_alpha": layout.alpha, "target_modules": list(layout.targets)}


def _tensor(file: Path, *, mmap: bool) -> Tensor:
    content = _load_torch(file, str(file), mmap=mmap)
    if not isinstance(content, Tensor):
        raise UnreadableCheckpoint(f"{file} holds a {type(content).__name__}, not a tensor.")
    return content


def _load_torch(file: Path | io.BytesIO, named: str, *, mmap: bool = False, allowed: Sequence[Any] = (torch.Size,)) -> Any:
    try:
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UnreadableCheckpoint(f"{named} can't be read as tensors alone ({reason}); nothing else is unpickled.") from error


def read_layout(folder: Path, base_hash: str | None) -> Layout:
    """The layout of a space without reading the space itself; one that names no base is taken to be of `base_hash`.

    Raises LayoutMismatch or UnreadableCheckpoint for a folder that is no space.
    """
    if (folder / "layout.json").is_file():
        layout = Layout.from_facts(read_facts(folder), str(folder / "layout.json"))
        return layout if layout.base_hash is not None else replace(layout, base_hash=base_hash)
    file = folder / "weight_dimensions.pt"
    if not file.is_file():
        raise UnreadableCheckpoint(f"{folder} is no space: it has neither layout.json nor the authors' weight_dimensions.pt.")
    return Layout.ordered(_authors_shapes(file), base_hash=base_hash)
