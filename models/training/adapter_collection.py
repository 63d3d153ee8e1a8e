"""The adapters of many people as one matrix, and what is known of those people as labels: what a space is fitted on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.lora_files import read_lora
from models.methods.weights2weights_layout import Layout


@dataclass(frozen=True)
class People:
    """names: sorted; weights (m,n) in the layout's order."""

    names: tuple[str, ...]
    weights_mn: Tensor


def read_people(folder: Path, layout: Layout) -> People:
    """The adapter files below a folder, such as the artifacts/ of a weights job of mode identity.

    Raises ValueError where there are fewer than three, where the job is not finished, where two are of one person, or where they began
    from different starts; ForeignBase, LayoutMismatch for adapters of another base or shape.
    """
    if (folder / "job.json").is_file() and not (folder / "_SUCCESS").is_file():
        raise ValueError(f"{folder} is a job that is not finished; run it to its end (calotype run), then fit on it")
    found: dict[str, Tensor] = {}
    starts: set[str] = set()
    for file in sorted((folder / "artifacts" if (folder / "artifacts").is_dir() else folder).rglob("*.safetensors")):
        tensors, metadata = read_lora(file)
        person = metadata.get("person") or file.stem
        if person in found:
            raise ValueError(f"{file} is the second file of {person!r}; --data takes the folder of one weights job of mode identity")
        layout.check_base(metadata.get("base_hash"), str(file))
        found[person] = layout.flatten(tensors)
        starts.add(metadata.get("start_seed", ""))
    if len(found) < 3:
        raise ValueError(f"{folder} holds {len(found)} adapters; --data takes the folder of a weights job of mode identity")
    if len(starts) > 1:
        raise ValueError(f"the adapters in {folder} began from {len(starts)} different starts; a space needs one (params.start_seed)")
    names = tuple(sorted(found))
    return People(names, torch.stack([found[name] for name in names]))


def labels_of(names: Sequence[str], table: Mapping[str, Mapping[str, str]], wanted: Mapping[str, str]) -> dict[str, Tensor]:
    """(m,) labels by attribute: 1 and -1, NaN for people who are not in the table or whose entry is empty.

    `wanted`: attribute -> `column=value` (1 where the column has that value), or a column of numbers (1 above its median). Raises ValueError
    for a column that the table lacks.
    """
    found = {}
    for attribute, rule in wanted.items():
        column, equals, value = rule.partition("=")
        if not any(column in line for line in table.values()):
            known = sorted({name for line in table.values() for name in line})
            raise ValueError(f"attributes.{attribute}: the table of people has no column {column!r}; it has {', '.join(known)}")
        given = [table.get(name, {}).get(column) or None for name in names]
        if equals:
            numbers = [torch.nan if one is None else 1.0 if one == value else -1.0 for one in given]
            found[attribute] = torch.tensor(numbers)
        else:
            values = torch.tensor([torch.nan if one is None else float(one) for one in given])
            found[attribute] = torch.where(values.isnan(), values, torch.where(values > values.nanmedian(), 1.0, -1.0))
    return found
