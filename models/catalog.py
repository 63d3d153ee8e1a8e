"""Models by name and by content, without loading them: what a driver needs to know before any torch is imported."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WEIGHTS = Path(__file__).parent / "weights"


class ModelNotFound(ValueError):
    """There is no model of this name or at this path, or its card cannot be read."""


@dataclass(frozen=True)
class Card:
    """What a model folder says about itself in card.json."""

    name: str  # as a job file writes it: lab/instant-restore
    path: Path
    method: str  # instant_restore
    tier: str  # "lab" | "full"
    facts: Mapping[str, Any]  # the whole card: settings, recipe, seed, data, minutes, metrics


def read_card(folder: Path) -> Card:
    """The card of a model folder. Raises ModelNotFound if there is none, or if it does not name method and tier."""
    file = folder / "card.json"
    if not file.is_file():
        raise ModelNotFound(f"{folder} is no model folder: it has no card.json. {_available()}")
    try:
        facts = json.loads(file.read_text())
        return Card(f"{facts['tier']}/{folder.name}", folder, facts["method"], facts["tier"], facts)
    except (ValueError, KeyError, TypeError) as error:
        raise ModelNotFound(f"{file} is no model card ({error!r}); it needs at least method and tier.") from error


def is_lab(folder: Path) -> bool:
    """Whether a folder's card says that it holds a lab model."""
    try:
        return read_card(folder).tier == "lab"
    except ModelNotFound:
        return False


def lab_models() -> list[Path]:
    """The folders of all models that came with calotype, by name."""
    return [file.parent for file in sorted(WEIGHTS.glob("*/card.json"))]


def lab_path(name: str) -> Path:
    """Folder of the model that a job file calls lab/instant-restore and a command line instant_restore. Raises ModelNotFound."""
    wanted = name.removeprefix("lab/").replace("_", "-")
    for folder in lab_models():
        if folder.name == wanted:
            return folder
    raise ModelNotFound(f"There is no lab model {name!r}. {_available()}")


def named_folder(name: str) -> Path:
    """Folder of a model that a setting names: a lab model as lab/translator, anything else as a path. Raises ModelNotFound for an unknown lab model."""
    return lab_path(name) if name.startswith("lab/") else Path(name)


def model_revision(path: Path) -> str:
    """sha256 of a model's files by name and content, as hex: a folder's in order of name, or a single file's. Raises ModelNotFound.

    Hidden files and texts for readers (.md) decide no result and do not count.
    """
    counted = (p for p in path.rglob("*") if p.is_file() and not p.name.startswith(".") and p.suffix != ".md")
    files = [path] if path.is_file() else sorted(counted)
    if not files:
        raise ModelNotFound(f"{path} holds no model files.")
    digest = hashlib.sha256()
    for file in files:
        name = file.name if file == path else file.relative_to(path).as_posix()
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{name}\0{content}\n".encode())
    return digest.hexdigest()


def _available() -> str:
    names = [f"lab/{folder.name}" for folder in lab_models()]
    return f"Models that came with calotype: {', '.join(names)}." if names else "None came with this calotype; `calotype train` makes them."
