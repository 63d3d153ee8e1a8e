"""The published methods: one file a paper, loaded when asked for."""

from __future__ import annotations

import importlib
from typing import Any

METHODS: dict[str, str] = {
    "instant_restore": "models.methods.instant_restore:InstantRestore",
    "bounded_attention": "models.methods.bounded_attention:BoundedAttention",
    "stable_flow": "models.methods.stable_flow:StableFlow",
    "weights2weights": "models.methods.weights2weights:Weights2Weights",
    "neural_weights": "models.methods.neural_weights:NeuralWeights",
}
"""Method -> module:class."""


def method_class(name: str) -> Any:
    """The class of a method; `instant-restore` is `instant_restore`. Raises ValueError naming those that exist."""
    key = name.replace("-", "_")
    if key not in METHODS:
        raise ValueError(f"There is no method {name!r}; there are {', '.join(METHODS)}.")
    module, class_name = METHODS[key].split(":")
    return getattr(importlib.import_module(module), class_name)
