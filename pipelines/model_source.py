"""The model that a job file names: a lab model by its card, or a full-size one by its folders, resolved without loading it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.catalog import ModelNotFound, lab_path, model_revision, read_card
from pipelines.base_models import FLUX, STABLE_DIFFUSION, base_settings, base_topology, is_non_commercial
from pipelines.pipeline import Accept, Model
from workers import storage

KIND_METHODS = {
    "restore": ("instant_restore",),
    "compose/layout": ("bounded_attention",),
    "edit": ("stable_flow",),
    "weights/identity": ("weights2weights",),
}
BASES = {"bounded_attention": STABLE_DIFFUSION, "stable_flow": FLUX, "weights2weights": STABLE_DIFFUSION}
"""Methods without weights of their own -> the topology of the base that each runs on."""
UNLICENSED = ("instant_restore",)  # the authors' weights state no licence
_SOURCES = {
    "instant_restore": {"base", "checkpoint", "vae"},
    "bounded_attention": {"base"},
    "stable_flow": {"base", "vital_layers"},
    "weights2weights": {"base"},
}


class LicenceNotAccepted(ValueError):
    """The named weights have no licence, or a restrictive one, that the job file does not accept."""


def resolve_model(kind: str, model: str | Mapping[str, str], accept: Accept) -> Model:
    """Find a model's files, fetch those behind URIs, and digest them. Raises ValueError for one that this kind can't use."""
    if isinstance(model, str):
        return _lab(kind, model)
    method = model["method"].replace("-", "_")
    if method not in KIND_METHODS[kind]:
        raise ModelNotFound(f"model.method: {kind} runs {', '.join(KIND_METHODS[kind])}, not {model['method']}")
    if method not in BASES and model.get("checkpoint") is None:
        raise ModelNotFound("model.checkpoint is missing; it names the method's trained weights")
    if unused := sorted(model.keys() - {"method"} - _SOURCES[method]):
        raise ModelNotFound(f"model.{unused[0]}: {model['method']} takes {', '.join(sorted(_SOURCES[method]))}; leave it out")
    if method in UNLICENSED and not accept.unlicensed:
        raise LicenceNotAccepted(
            f"the published weights of {method} state no licence; set accept_unlicensed_weights: true if you may use them"
        )
    parts = {key: fetch(value) for key, value in model.items() if key != "method"}
    settings = _paper(method)
    if method in BASES:
        settings = {**_checked_base(method, parts["base"], accept), **settings}
    return of_parts(f"{method} ({model['base']})", method, "full", parts, settings)


def named_parts(model: Mapping[str, str], method: str, what: str, checkpoint: str | None = None) -> dict[str, Path]:
    """The local paths of `base`, and of `checkpoint` where there is one, of a model named by its parts.

    `what`: of which errors say who makes them; `checkpoint`: what it is, where there must be one. Raises ModelNotFound for another method, for
    parts that this one does not take, and for missing ones.
    """
    if model["method"].replace("-", "_") != method:
        raise ModelNotFound(f"model.method: {what} {method}, not {model['method']}")
    if unused := sorted(model.keys() - {"method", "base", "checkpoint"}):
        raise ModelNotFound(f"model.{unused[0]}: {method} takes base and checkpoint; leave it out")
    if checkpoint is not None and model.get("checkpoint") is None:
        raise ModelNotFound(f"model.checkpoint is missing; it names the folder of {checkpoint}")
    return {key: fetch(model[key]) for key in ("base", "checkpoint") if model.get(key) is not None}


def of_parts(name: str, method: str, tier: str, parts: Mapping[str, Path], settings: Mapping[str, Any]) -> Model:
    """A resolved model, with one digest of its parts; each file's content counts, see `models.catalog.model_revision`."""
    revisions = {key: _revision(path) for key, path in parts.items()}
    digest = hashlib.sha256(json.dumps(revisions, sort_keys=True).encode()).hexdigest()
    return Model(
        name=name, method=method, tier=tier, sources={key: str(path) for key, path in parts.items()}, revision=digest, settings=settings
    )


def folder_of(name: str) -> Path:
    """The folder of a lab model, or of one that a path names. Raises ModelNotFound."""
    return storage.local_path(name) if (Path(name) / "card.json").is_file() else lab_path(name)


def base_beside(folder: Path, lab: str, holds: str) -> Path:
    """The base that a lab model's card names, else `lab`: a folder in it or beside it that has a file or folder `holds`, else the lab's."""
    named = str(read_card(folder).facts.get("base", lab))
    places = [folder / named, folder.parent / named.removeprefix("lab/")]
    return next((place.resolve() for place in places if (place / holds).exists()), None) or lab_path(named)


def _checked_base(method: str, folder: Path, accept: Accept) -> dict[str, object]:
    """What the base's files say, if the method can run on it and its licence is accepted. Raises ModelNotFound, LicenceNotAccepted."""
    topology = base_topology(folder)
    if topology != BASES[method]:
        raise ModelNotFound(f"model.base: {folder} is of the topology {topology}; {method} runs on {BASES[method]}")
    if is_non_commercial(folder) and not accept.noncommercial:
        raise LicenceNotAccepted(f"{folder} may be used for non-commercial purposes only; set accept_noncommercial: true if yours are")
    return base_settings(folder)


def fetch(uri: str) -> Path:
    """The local path of a model's file or folder; one behind a URI is copied once into the user's cache."""
    if storage.scheme(uri) == "file":
        path = storage.local_path(uri)
        if not path.exists():
            raise ModelNotFound(f"there is no model at {path}")
        return path
    fs, remote = storage.filesystem(uri)
    stamp = sorted((str(n), int(fs.size(n) or 0), str(fs.ukey(n))) for n in (fs.find(remote) or [remote]))
    if not fs.exists(remote):
        raise ModelNotFound(f"there is no model at {uri}")
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "calotype" / "models"
    name = hashlib.sha256(json.dumps([uri, stamp]).encode()).hexdigest()[:20]
    target = cache / name / uri.rstrip("/").rsplit("/", 1)[-1]
    if not target.exists():
        partial = target.with_name(f"{target.name}.{os.getpid()}.part")
        partial.parent.mkdir(parents=True, exist_ok=True)
        fs.get(remote, str(partial), recursive=fs.isdir(remote))
        os.replace(partial, target)
    return target


def _lab(kind: str, name: str) -> Model:
    path = folder_of(name)
    card = read_card(path)
    methods = KIND_METHODS[kind]
    fits = [m for m in methods if card.method == m or (card.method == "text_to_image" and card.facts.get("topology") == BASES.get(m))]
    if not fits:
        what = f"a text-to-image model of the topology {card.facts.get('topology')}" if card.method == "text_to_image" else card.method
        needs = [f"{m} on a base of the topology {BASES[m]}" if m in BASES else m for m in methods]
        raise ModelNotFound(f"model: {name} is a model for {what}; {kind} runs {', '.join(needs)}")
    method = fits[0]
    own = {"image_size": card.facts.get("image_size")} if method not in BASES else base_settings(path)
    settings = {**_paper(method), **own, **card.facts.get("settings", {})}
    return Model(
        name=card.name, method=method, tier=card.tier, sources={"folder": str(path)}, revision=model_revision(path), settings=settings
    )


def _paper(method: str) -> dict[str, object]:
    """What the paper sets where neither a job nor the model says anything; `adain` and `own_kv` are left to an authors' checkpoint."""
    if method != "instant_restore":
        return {}  # its kind has them as defaults of its parameters
    return {"timestep": 249, "max_references": 4, "reference_padding": "masked", "freeu": True, "noise": 1.0, "image_size": 512}


def _revision(path: Path) -> str:
    """Digest of a model's files, remembered by path, size and time of change: hashing gigabytes takes seconds."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    stamp = json.dumps([(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files])
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "calotype" / "revisions"
    entry = cache / hashlib.sha256(stamp.encode()).hexdigest()[:20]
    if entry.exists():
        return entry.read_text()
    revision = model_revision(path)
    cache.mkdir(parents=True, exist_ok=True)
    entry.write_text(revision)
    return revision
