"""The kinds of job and their modes: a plain dict by name, `kind` or `kind/mode`."""

from pipelines.compose import COMPOSE
from pipelines.edit import EDIT
from pipelines.personalize import PERSONALIZE
from pipelines.pipeline import Kind
from pipelines.restore import RESTORE
from pipelines.translate_collect import COLLECT
from pipelines.translate_finetune import FINETUNE
from pipelines.weights_edit import EDIT_WEIGHTS
from pipelines.weights_identity import IDENTITY
from pipelines.weights_initialize import INITIALIZE
from pipelines.weights_invert import INVERT
from pipelines.weights_sample import SAMPLE

KINDS: dict[str, Kind] = {
    kind.key: kind for kind in (RESTORE, COMPOSE, EDIT, PERSONALIZE, INITIALIZE, IDENTITY, SAMPLE, EDIT_WEIGHTS, INVERT, COLLECT, FINETUNE)
}


def find_kind(name: str, mode: str | None = None) -> Kind:
    """A kind in one of its modes; without a mode, the kind's first. Raises ValueError naming the kinds or modes that there are."""
    variants = [kind for kind in KINDS.values() if kind.name == name]
    if not variants:
        raise ValueError(f"kind: {name} is unknown; kinds are {', '.join(sorted({kind.name for kind in KINDS.values()}))}")
    if mode is None:
        return variants[0]
    if variants[0].mode is None:
        raise ValueError(f"mode: {name} has no modes; leave it out")
    found = [kind for kind in variants if kind.mode == mode]
    if not found:
        raise ValueError(f"mode: {name} has no mode {mode}; it has {', '.join(str(kind.mode) for kind in variants)}")
    return found[0]
