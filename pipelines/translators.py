"""The models of jobs about translators: a weight denoiser and the base translator that it belongs to, found without loading either."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from models.catalog import ModelNotFound, lab_path, read_card
from pipelines.model_source import fetch, revision_of
from pipelines.pipeline import Accept, Model

METHOD = "neural_weights"


def resolve_denoiser(model: str | Mapping[str, str], accept: Accept) -> Model:
    """A lab denoiser by name or folder, whose card names its base; or {method: neural_weights, base: translator, checkpoint: denoiser}.

    `sources` are `base` and `checkpoint`, settings `image_size`. Raises ModelNotFound where one of them is missing, is something else, or
    where the denoiser was made for another base.
    """
    if isinstance(model, str):
        checkpoint = folder_of(model)
        base = _base_beside(checkpoint)
        name = read_card(checkpoint).name
    else:
        named = str(model["method"]).replace("-", "_")
        if named != METHOD:
            raise ModelNotFound(f"model.method: weights of mode initialize are made by {METHOD}, not {model['method']}")
        if unused := sorted(model.keys() - {"method", "base", "checkpoint"}):
            raise ModelNotFound(f"model.{unused[0]}: {METHOD} takes base and checkpoint; leave it out")
        if model.get("checkpoint") is None:
            raise ModelNotFound("model.checkpoint is missing; it names the folder of a weight denoiser")
        checkpoint, base = fetch(model["checkpoint"]), fetch(model["base"])
        name = f"{METHOD} ({model['checkpoint']})"
    card = read_card(base)
    layout = checkpoint / "layout.json"
    if not layout.is_file():
        what = read_card(checkpoint).method
        raise ModelNotFound(
            f"model: {checkpoint} is a model for {what}, no weight denoiser (it has no layout.json); name lab/weight-denoiser"
        )
    made_for, is_hash = json.loads(layout.read_text()).get("base_hash", ""), card.facts.get("base_hash", "")
    if made_for != is_hash:
        raise ModelNotFound(
            f"model: the weight denoiser {checkpoint.name} was made for the base {made_for[:12]}, {base.name} is {is_hash[:12]}. "
            "Name the translator that belongs to it, or train a denoiser for this one: calotype train weight-denoiser"
        )
    sources = {"base": base, "checkpoint": checkpoint}
    return Model(
        name=name,
        method=METHOD,
        tier=read_card(checkpoint).tier if isinstance(model, str) else "full",
        sources={key: str(path) for key, path in sources.items()},
        revision=revision_of(sources),
        settings={"image_size": int(card.facts["image_size"])},
    )


def folder_of(name: str) -> Path:
    """The folder of a lab model, or of one that a path names. Raises ModelNotFound."""
    return Path(name).resolve() if (Path(name) / "card.json").is_file() else lab_path(name)


def _base_beside(denoiser: Path) -> Path:
    """The translator that a denoiser's card names: the folder of that name beside it, else the lab's."""
    named = str(read_card(denoiser).facts.get("base", "lab/translator"))
    beside = denoiser.parent / named.removeprefix("lab/")
    return beside if (beside / "card.json").is_file() else lab_path(named)
