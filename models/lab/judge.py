"""An independent judge of who a face is: dlib's published face embedder (extra `faces`), which took no part in any training here.

Crops are aligned already, so the judge's own face chip is cut at a fixed place: nothing is detected, and no picture is missing from a mean.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.training.views import crop

CHIP_SIDE = 150
# In dlib's 150 px chip with padding 0.25 the eyes' centres lie at (47.7, 47.1) and (100.3, 47.1); in an aligned crop of side 1 at 0.45, 0.27
# apart. The chip therefore spans 0.771 of the crop, its centre at (0.505, 0.593).
CHIP_PLACEMENT = torch.tensor([[0.771, 0.0, 0.010], [0.0, 0.771, 0.186]])


class NoJudge(ImportError):
    """The packages of the independent judge are not installed."""


class FaceJudge:
    """Embeds aligned face crops; people are the same when their embeddings are near (dlib's own threshold is 0.6)."""

    def __init__(self) -> None:
        try:
            import dlib
        except ImportError as error:
            raise NoJudge("the independent judge needs dlib; install it with: pip install 'calotype[faces]'") from error
        weights = importlib.util.find_spec("face_recognition_models")
        if weights is None or not weights.submodule_search_locations:
            raise NoJudge("the independent judge needs face_recognition_models; install it with: pip install 'calotype[faces]'")
        file = Path(next(iter(weights.submodule_search_locations))) / "models" / "dlib_face_recognition_resnet_model_v1.dat"
        self.net: Any = dlib.face_recognition_model_v1(str(file))  # pyright: ignore[reportAttributeAccessIssue]

    def embed(self, images_B3HW: Tensor) -> Tensor:
        """(B, 128) embeddings of crops in [-1, 1]; the distance of two is how much the faces differ."""
        chips = [_chip(image) for image in images_B3HW]
        return torch.tensor(np.array([self.net.compute_face_descriptor(chip) for chip in chips]), dtype=torch.float32)


def _chip(image_3HW: Tensor) -> np.ndarray:
    pixels = ((image_3HW.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    chip = crop(pixels, CHIP_PLACEMENT, CHIP_SIDE)
    return ((chip + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
