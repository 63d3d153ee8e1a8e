"""Which layers of a base are vital: measured once a base, kept in vital_layers.json beside it. Imports no torch, so that a driver may ask.

A file says for which transformer it was measured; for any other it is refused.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from models.catalog import model_revision

FILE = "vital_layers.json"
PUBLISHED: dict[str, tuple[int, ...]] = {"FLUX.1-dev": (0, 1, 17, 18, 25, 28, 53, 54, 56)}
"""Base -> layers that its authors' code uses (snap-research/stable-flow, counted through); the paper's set has layer 2 besides."""


class VitalLayersUnknown(ValueError):
    """A base's vital layers were never measured, or the file that is there belongs to another transformer."""


@dataclass(frozen=True)
class VitalLayers:
    """A measurement: `scores` by layer (1 - mean similarity without it), `chosen` the layers with the highest ones."""

    base: str
    base_hash: str  # of the transformer's folder
    similarity_net: str
    prompts_digest: str
    scores: tuple[float, ...]
    chosen: tuple[int, ...]

    def write(self, file: Path) -> None:
        """As JSON."""
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, file: Path) -> VitalLayers:
        """Raises VitalLayersUnknown if the file is missing or is none of these."""
        if not file.is_file():
            raise VitalLayersUnknown(f"There is no {file}.")
        try:
            facts = json.loads(file.read_text())
            return cls(**{**facts, "scores": tuple(facts["scores"]), "chosen": tuple(facts["chosen"])})
        except (ValueError, KeyError, TypeError) as error:
            raise VitalLayersUnknown(f"{file} is no measurement of vital layers ({error!r}); measure again.") from error


def transformer_hash(base: Path) -> str:
    """The revision of a base's transformer: what vital layers are measured on. Writing vital_layers.json beside it does not change it."""
    return model_revision(base / "transformer")


def find_vital_layers(base: Path, file: Path | None = None) -> tuple[int, ...]:
    """The measured layers of the base in a folder, from `file`, else from the one beside it, else those published for a base of its name.

    Raises VitalLayersUnknown with the command that measures them.
    """
    place = file or base / FILE
    if not place.is_file():
        name = published_name(base)
        if file is None and name is not None:
            return PUBLISHED[name]
        raise VitalLayersUnknown(f"The vital layers of {base} were not measured ({place} is missing). {_remedy(base, place)}")
    found = VitalLayers.read(place)
    if found.base_hash != transformer_hash(base):
        raise VitalLayersUnknown(f"{place} was measured on another transformer than the one in {base}. {_remedy(base, place)}")
    return found.chosen


def most_vital(scores: Sequence[float], n: int) -> tuple[int, ...]:
    """The n layers with the highest scores, in the order of the layers."""
    return tuple(sorted(sorted(range(len(scores)), key=lambda layer: -scores[layer])[:n]))


def published_name(base: Path) -> str | None:
    """The key of PUBLISHED whose name a folder carries, also within the cache of Hugging Face. Its licence is non-commercial."""
    parts = base.resolve().parts
    return next((name for name in PUBLISHED if any(part == name or part.endswith(f"--{name}") for part in parts)), None)


def _remedy(base: Path, place: Path) -> str:
    return f"Measure them: `calotype train vital-layers -o {place.parent} --set base={base}`, or name layers in params.vital_layers."
