from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from models.lab.people import random_identity, random_view
from models.lab.portraits import Portrait, draw_portrait
from workers import faces
from workers.crops import align_face
from workers.faces import FaceEmbedder, FaceFinder, FacesNotInstalled

needs_faces = pytest.mark.skipif(not faces.installed(), reason="extra `faces` is not installed")


def seen(finder: FaceFinder, generator: torch.Generator) -> Portrait:
    """A portrait of somebody new in which the detector sees the drawn face well; it overlooks about one in four."""
    for _ in range(40):
        portrait = draw_portrait(random_identity(generator), random_view(generator), 160)
        found = finder.find(np.asarray(portrait.image))
        if len(found) == 1 and found[0].confidence > 1:
            return portrait
    raise AssertionError("the detector sees none of 40 portraits well")


@needs_faces
def test_every_face_of_a_group_is_found_from_left_to_right_with_its_landmarks() -> None:
    generator, finder = torch.Generator().manual_seed(1), FaceFinder()
    people = [seen(finder, generator) for _ in range(2)]
    group = Image.new("RGB", (500, 200), (200, 200, 190))
    for portrait, x in zip(people, (300, 20), strict=True):
        group.paste(portrait.image, (x, 20))
    found = finder.find(np.asarray(group))
    assert len(found) == 2
    for face, portrait, x in zip(found, people[::-1], (20, 300), strict=True):
        truth = portrait.landmarks.numpy() + np.array([x, 20])
        assert np.abs(np.reshape(face.landmarks5, (5, 2)) - truth).mean() < 6
        assert face.box[0] < face.landmarks5[0] < face.box[2]
        assert face.confidence > 0


@needs_faces
def test_an_empty_wall_has_no_face() -> None:
    wall = np.tile(np.linspace(90, 160, 300).astype(np.uint8)[:, None, None], (1, 200, 3))
    assert FaceFinder().find(wall) == []


@needs_faces
def test_two_portraits_of_a_person_are_closer_than_those_of_another() -> None:
    generator, embedder = torch.Generator().manual_seed(1), FaceEmbedder()
    identities = [random_identity(generator) for _ in range(4)]
    portraits = [[draw_portrait(identity, random_view(generator), 160) for identity in identities] for _ in range(2)]
    first, second = (np.array([embedder.embed(np.asarray(p.image), p.landmarks.flatten().tolist()) for p in views]) for views in portraits)
    distances = np.linalg.norm(first[:, None] - second[None], axis=-1)
    assert (distances.argmin(1) == np.arange(4)).all()


@needs_faces
def test_an_aligned_crop_and_its_photograph_have_the_same_embedding() -> None:
    generator, embedder = torch.Generator().manual_seed(2), FaceEmbedder()
    portrait = draw_portrait(random_identity(generator), random_view(generator), 256)
    pixels, landmarks = np.asarray(portrait.image), portrait.landmarks.flatten().tolist()
    whole = embedder.embed(pixels, landmarks)
    aligned = embedder.embed_aligned(align_face(pixels, landmarks, 200)[0])
    assert np.linalg.norm(aligned) == pytest.approx(1)
    assert float(aligned @ whole / np.linalg.norm(whole)) > 0.99


def test_a_missing_extra_is_named_with_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faces, "find_spec", lambda name: None)
    assert not faces.installed()
    with pytest.raises(FacesNotInstalled, match=r"pip install 'calotype\[faces\]'"):
        FaceFinder().find(np.zeros((100, 100, 3), np.uint8))
