"""What kinds share whose rows are people in a space of adapters: the model, a person's start, edits, and the word that names a person."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from models.catalog import ModelNotFound, model_revision, read_card
from pipelines.base_models import STABLE_DIFFUSION, base_settings, base_topology
from pipelines.model_source import LicenceNotAccepted, base_beside, folder_of, named_parts, of_parts
from pipelines.pipeline import Accept, Model
from pipelines.rows import BadRow
from workers.storage import Reader

if TYPE_CHECKING:  # torch is loaded by replicas, never by the driver
    from models.methods.weights2weights_directions import Edit
    from models.methods.weights2weights_files import Start
    from models.methods.weights2weights_layout import Layout

METHOD = "weights2weights"
EDITS = pa.list_(pa.struct([("attribute", pa.string()), ("strength", pa.float32())]))  # strength in standard deviations
START = pa.schema([("start_weights_uri", pa.string()), ("start_coefficients", pa.list_(pa.float32()))])
"""A person as a file of weights or coefficients, or as coefficients in the row; fewer than the space has are its first ones."""
PAPER: Mapping[str, Any] = {
    "num_inference_steps": 50,
    "guidance_scale": 3.0,
    "negative_prompt": "low quality, blurry, unfinished, cartoon",
    "debias": "joint",
}
"""What the authors set where neither a job nor the model says anything."""
FULL: Mapping[str, Any] = {"identity_token": "sks person"}
SPACE_IN_JOB_FILES = """
model: lab/identity-space      # its base is lab/unet; a full-size one:
# model: {method: weights2weights, base: /models/realistic-vision-v51, checkpoint: /models/weights2weights/files}
# accept_noncommercial: true   # the authors' space may be used for nothing else
"""
_AUTHORS_FILE = "V.pt"


def resolve_space(model: str | Mapping[str, str], accept: Accept) -> Model:
    """A lab space by name or folder, whose card names its base; or {method: weights2weights, base: folder, checkpoint: space}.

    `sources` are `base` and `checkpoint`; settings hold the base's sizes, its hash, and the card's. Raises ModelNotFound where one of them is
    missing, is something else, or where the space was made for another base; LicenceNotAccepted for the authors' files.
    """
    if isinstance(model, str):
        checkpoint = folder_of(model)
        card = read_card(checkpoint)
        if card.method != METHOD:
            raise ModelNotFound(f"model: {model} is a model for {card.method}; people need a space of adapters, such as lab/identity-space")
        parts = {"base": base_beside(checkpoint, "lab/unet", "unet"), "checkpoint": checkpoint}
        name, tier, own = card.name, card.tier, card.facts.get("settings", {})
    else:
        parts = named_parts(model, METHOD, "people in a space of adapters are made by", "a space of adapters, ours or the authors'")
        name, tier, own = f"{METHOD} ({model['checkpoint']})", "full", FULL
    base = parts["base"]
    if base_topology(base) != STABLE_DIFFUSION:
        raise ModelNotFound(f"model.base: {base} is of the topology {base_topology(base)}; {METHOD} runs on {STABLE_DIFFUSION}")
    digest = model_revision(base / "unet")
    _check_space(parts["checkpoint"], digest, accept)
    return of_parts(name, METHOD, tier, parts, {**base_settings(base), "base_hash": digest, **own})


def _check_space(folder: Path, digest: str, accept: Accept) -> None:
    file = folder / "layout.json"
    if not file.is_file():
        if not (folder / _AUTHORS_FILE).is_file():
            raise ModelNotFound(f"model.checkpoint: {folder} is no space of adapters; it has neither layout.json nor {_AUTHORS_FILE}")
        if not accept.noncommercial:
            raise LicenceNotAccepted(
                f"the authors' space in {folder} may be used for academic, non-commercial purposes only; "
                "set accept_noncommercial: true if yours are"
            )
        return
    made_for = json.loads(file.read_text()).get("base_hash")
    if made_for is not None and made_for != digest:
        raise ModelNotFound(
            f"model: the space {folder.name} was made for the base {made_for[:12]}, this one is {digest[:12]}. "
            "Name the base that belongs to it, or fit a space on adapters of this one: calotype train identity-space"
        )


@cache
def _layout(folder: Path, base_hash: str) -> Layout:
    from models.methods.weights2weights_files import read_layout

    return read_layout(folder, base_hash)


def layout_of(model: Model) -> Layout:
    """The order of the weights of a resolved space; read once a process."""
    return _layout(Path(model.sources["checkpoint"]), model.settings["base_hash"])


def person_file(row: Mapping[str, Any], reader: Reader) -> bytes | None:
    """The bytes behind `start_weights_uri`, None where the row has coefficients. Raises BadRow for both or neither, and what reading raises."""
    uri, coefficients = row.get("start_weights_uri"), row.get("start_coefficients")
    if (uri is None) == (coefficients is None):
        raise BadRow("give either start_weights_uri or start_coefficients; one of them is needed")
    if uri is not None:
        return reader.read(uri)
    if not all(value is not None and math.isfinite(value) for value in coefficients or ()):
        raise BadRow("start_coefficients are not all finite numbers")
    return None


def start_of(row: Mapping[str, Any], data: bytes | None, model: Model) -> Start:
    """A person as the method wants them, of what `person_file` gave; in the replica. Raises LayoutMismatch, ForeignBase, UnreadableCheckpoint."""
    import torch

    from models.methods.weights2weights_files import Start, read_start

    if data is None:
        return Start(coefficients_k=torch.tensor(row["start_coefficients"], dtype=torch.float32))
    return read_start(data, layout_of(model))


def check_edits(row: Mapping[str, Any]) -> None:
    """Raises BadRow for an edit without attribute or finite strength, or a `start_timestep` outside 0-1000."""
    for edit in row.get("edits") or ():
        if not edit or not edit["attribute"] or edit["strength"] is None or not math.isfinite(edit["strength"]):
            raise BadRow(f"edits has {edit}; each needs an attribute and a finite strength, in standard deviations")
    timestep = row.get("start_timestep")
    if timestep is not None and not 0 <= timestep <= 1000:
        raise BadRow(f"start_timestep is {timestep}; it goes from 0 (never edited) to 1000 (edited throughout)")


def edits_of(row: Mapping[str, Any]) -> list[Edit]:
    """A row's edits as the method wants them."""
    from models.methods.weights2weights_directions import Edit

    return [Edit(edit["attribute"], edit["strength"]) for edit in row.get("edits") or ()]


def moved(row: Mapping[str, Any]) -> str | None:
    """A row's edits in words, such as `beard +2, glasses +1 from t = 700`; None where it has none."""
    told = ", ".join(f"{edit['attribute']} {edit['strength']:+g}" for edit in row.get("edits") or ())
    timestep = row.get("start_timestep")
    return (told if timestep is None else f"{told} from t = {timestep}") if told else None


def check_prompt(prompt: str | None, token: str) -> None:
    """Raises BadRow where a prompt does not name the person by the words that the adapters were trained with."""
    if not re.search(rf"(?<!\w){re.escape(token)}(?!\w)", prompt or "", re.IGNORECASE):
        raise BadRow(f"prompt is {prompt!r}; it must contain {token!r}, the words that adapters of this model were trained with")
