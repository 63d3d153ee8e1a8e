"""What decides a job's results, as one number: never engine, replicas, block or batch size."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from orchestration.job import JobSpec

_SOURCES = ("models", "pipelines", "workers")  # the packages that touch a row's content
_NOT_ROWS = ("models/lab", "models/recipes", "models/training")  # they make models; a model counts by its own revision


def parts(spec: JobSpec, params: Mapping[str, Any], model_revision: str, manifest_digest: str) -> dict[str, Any]:
    """The components of a job's fingerprint, JSON-able, as job.json keeps them and `run` compares them."""
    return {
        "kind": spec.kind,
        "mode": spec.mode,
        "params": dict(params),
        "seed": spec.seed,
        "model": spec.model if isinstance(spec.model, str) else spec.model.model_dump(),
        "model_revision": model_revision,
        "manifest": manifest_digest,
        "rows": spec.model_dump(mode="json", include={"where", "limit", "sample", "on_bad_source"}),  # YAML's dates as text
        "media": spec.media,
        "code": code_version(),
    }


def digest(components: Mapping[str, Any]) -> str:
    """sha256 of the components in canonical JSON."""
    return hashlib.sha256(json.dumps(components, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def difference(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The components that differ, as lines `key: old -> new`."""
    lines = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += difference(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {_short(a)} -> {_short(b)}")
    return lines


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "…"


@cache
def code_version() -> str:
    """The package's version and a digest of the source that touches rows."""
    found = hashlib.sha256()
    root = Path(__file__).parent.parent
    for package in _SOURCES:
        for path in sorted((root / package).rglob("*.py")):
            name = path.relative_to(root).as_posix()
            if not name.startswith(_NOT_ROWS):
                found.update(name.encode() + b"\0" + path.read_bytes())
    return f"{importlib.metadata.version('calotype')}+{found.hexdigest()[:10]}"
