"""Faces in whole photographs: where they are, five landmarks, whom they resemble. Optional extra `faces`: dlib and its models, offline.

Detector: dlib's histogram-of-gradients one, which finds faces of 80 px and more; so that size is not a matter of the scan, every photograph
is searched at one size. Landmarks: dlib's 68 points (Kazemi and Sullivan 2014; trained on iBUG 300-W, whose licence excludes commercial
use), reduced to eye centres, nose tip and mouth corners. Identity: dlib's 128 numbers, where distances below 0.6 mean the same person (its
authors' threshold). The models are taken from `face_recognition_models` by path: its own import needs an old setuptools.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from workers.crops import EYE_DISTANCE, EYE_HEIGHT, align_matrix, warp
from workers.media import Pixels

SAME_PERSON = 0.6  # distance of two embeddings, by dlib's authors
SEARCHED_SIDE = 2000  # pixels of the longer side: faces from 4 % of it up are found
_MAX_ENLARGED = 4
_CHIP_SIDE, _CHIP_EYE_HEIGHT, _CHIP_EYE_DISTANCE = 150, 0.316, 0.36  # measured on the chips that dlib cuts for its embedder


class FacesNotInstalled(ImportError):
    """The optional extra that finds faces is missing."""


@dataclass(frozen=True)
class Face:
    """One face, in pixels of the upright photograph.

    `box`: x0, y0, x1, y1 from brow to chin; `landmarks5`: ten numbers, x, y of left eye, right eye, nose tip, left and right corner of the
    mouth (left as seen), inside the photograph; `confidence`: the detector's score, above 0.
    """

    box: tuple[float, float, float, float]
    landmarks5: Sequence[float]
    confidence: float

    @property
    def size(self) -> float:
        return self.box[3] - self.box[1]


class FaceFinder:
    """Finds faces in photographs. Loads its models at the first use, so that it may be sent to another process before."""

    def __init__(self, min_confidence: float = 0.3) -> None:
        self.min_confidence = min_confidence

    @cached_property
    def _detector(self) -> Any:
        return _dlib().get_frontal_face_detector()  # pyright: ignore[reportAttributeAccessIssue]

    @cached_property
    def _predictor(self) -> Any:
        return _dlib().shape_predictor(_model("shape_predictor_68_face_landmarks.dat"))  # pyright: ignore[reportAttributeAccessIssue]

    def find(self, pixels: Pixels) -> list[Face]:
        """All faces in an upright photograph (H, W, 3) uint8, from left to right. Raises FacesNotInstalled."""
        height, width = pixels.shape[:2]
        scale = min(_MAX_ENLARGED, SEARCHED_SIDE / max(height, width))
        searched = np.asarray(Image.fromarray(pixels).resize((round(width * scale), round(height * scale)), Image.Resampling.LANCZOS))
        rectangles, scores, _ = self._detector.run(searched, 0, self.min_confidence)
        faces = []
        for rectangle, score in zip(rectangles, scores, strict=True):
            points = np.array([(p.x, p.y) for p in self._predictor(searched, rectangle).parts()], float) + 0.5
            eyes_nose_mouth = np.array([points[36:42].mean(0), points[42:48].mean(0), points[30], points[48], points[54]]) / scale
            landmarks = eyes_nose_mouth.clip(0, (width, height)).ravel().tolist()
            box = (rectangle.left() / scale, rectangle.top() / scale, rectangle.right() / scale, rectangle.bottom() / scale)
            faces.append(Face(box, landmarks, float(score)))
        return sorted(faces, key=lambda face: (face.box[0], face.box[1]))


class FaceEmbedder:
    """128 numbers that are close for two pictures of one person."""

    @cached_property
    def _network(self) -> Any:
        return _dlib().face_recognition_model_v1(_model("dlib_face_recognition_resnet_model_v1.dat"))  # pyright: ignore[reportAttributeAccessIssue]

    def embed(self, pixels: Pixels, landmarks5: Sequence[float]) -> NDArray[np.float64]:
        """(128,) for the face at these landmarks (as in `Face`) of a photograph or a crop (H, W, 3) uint8.

        Raises FacesNotInstalled, or BadCrop for landmarks that are none.
        """
        matrix = align_matrix(landmarks5, _CHIP_SIDE, eye_height=_CHIP_EYE_HEIGHT, eye_distance=_CHIP_EYE_DISTANCE)
        return np.array(self._network.compute_face_descriptor(np.ascontiguousarray(warp(pixels, matrix, (_CHIP_SIDE, _CHIP_SIDE)))))

    def embed_aligned(self, pixels: Pixels) -> NDArray[np.float64]:
        """(128,) of length 1 for a crop that `crops.align_face` made or would leave as it is. Raises FacesNotInstalled."""
        side, half = pixels.shape[0], EYE_DISTANCE / 2
        left, right = ((0.5 - half) * side, EYE_HEIGHT * side), ((0.5 + half) * side, EYE_HEIGHT * side)
        found = self.embed(pixels, [*left, *right, *([side / 2] * 6)])  # the eyes alone decide how it is cut
        return found / np.linalg.norm(found)


def installed() -> bool:
    """Whether the extra is there; nothing is loaded."""
    return find_spec("dlib") is not None and find_spec("face_recognition_models") is not None


def _dlib() -> ModuleType:
    if not installed():
        raise FacesNotInstalled("finding faces needs the optional extra: pip install 'calotype[faces]'")
    import dlib

    return dlib


def _model(name: str) -> str:
    spec = find_spec("face_recognition_models")
    assert spec is not None
    assert spec.submodule_search_locations
    return str(Path(spec.submodule_search_locations[0]) / "models" / name)
