"""How well a picture of the drawn world obeys its layout, by the lab's attribute reader. It knows flat objects only, and trained no method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.catalog import ModelNotFound, lab_path, model_revision


def reader_revision() -> str | None:
    """Digest of the reader's weights; None where they did not come with this calotype."""
    try:
        return model_revision(lab_path("reader"))
    except ModelNotFound:
        return None


def score_by_reader(pixels_BHW3: NDArray[np.uint8], layout: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """For each picture the mean probability, over all shapes and colours that the phrases of its layout name, of seeing it in its box.

    None where no phrase names one.
    """
    import torch

    from models.nets.reader import THING_VALUES, crops

    named = [
        (subject["box"], attribute, values.index(word))
        for subject in layout
        for attribute, values in THING_VALUES.items()
        for word in subject["phrase"].lower().split()
        if word in values[:-1]
    ]
    if not named:
        return [None] * len(pixels_BHW3)
    images = torch.from_numpy(np.ascontiguousarray(pixels_BHW3)).permute(0, 3, 1, 2).float() / 127.5 - 1
    seen = torch.stack(
        [_reader().probabilities(crops(images, [box] * len(images)), "thing", attribute)[:, value] for box, attribute, value in named]
    )
    return seen.mean(0).tolist()


@cache
def _reader() -> Any:
    from models.nets.reader import Reader

    return Reader.load(lab_path("reader"))
