"""A sample archive for the demo and for tests: ordinary files as an old disk holds them, of people who do not exist."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image

from models.lab.damage import degrade, from_pil, to_pil
from models.lab.people import Identity, random_identity, random_view
from models.lab.portraits import draw_portrait
from workers.media import Format, encode_image, srgb_profile

NAMES = (
    *("anna", "boris", "clara", "david", "elena", "farid", "greta", "hiro", "ines", "jonas", "kofi", "leila"),
    *("marek", "nora", "oskar", "pilar", "rosa", "samir", "tove", "umut", "vera", "wanda", "yusuf", "zoe"),
)
_FILES: Sequence[tuple[str, Format]] = (
    *((".jpg", "jpeg"), (".JPG", "jpeg"), (".png", "png"), (".jpeg", "jpeg"), (".webp", "webp"), (".tif", "tiff"), (".PNG", "png")),
)
_LEVELS = ("medium", "strong", "medium", "mild")
_TURNED = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}  # how the camera was held
_README = """\
A sample archive, drawn by calotype. These people do not exist.

photos/      damaged portraits: a folder a person, or the person's name in the file's name
references/  clean portraits of the same people

Two of the photographs are broken on purpose: one is no picture at all, one breaks off in the middle.
"""


@dataclass(frozen=True)
class SampleArchive:
    """What was drawn: files a folder, the two broken ones by their path below `photos`."""

    photos: int
    references: int
    no_picture: str
    breaks_off: str


def draw_sample_archive(
    folder: Path, *, people: int = 12, photos_each: int = 8, references_each: tuple[int, int] = (2, 4), seed: int = 0, side: int = 128
) -> SampleArchive | None:
    """Draw `folder`/photos and `folder`/references; None, and nothing changed, where an archive is complete there already.

    The first people have a folder each, the last third only their name in front of a number. Every fifth photograph carries a capture date and
    a colour profile and was taken with the camera held sideways. The same seed gives the same files. Raises ValueError for more people than
    there are names.
    """
    if not 2 <= people <= len(NAMES):
        raise ValueError(f"people: 2 to {len(NAMES)}, got {people}")
    if (folder / "README.txt").exists():
        return None
    generator = torch.Generator().manual_seed(seed)
    counts = {"photos": 0, "references": 0}
    identities = [random_identity(generator) for _ in range(people)]
    for index, (name, identity) in enumerate(zip(NAMES, identities, strict=False)):
        low, high = references_each
        for number in range(1, int(torch.randint(low, high + 1, (), generator=generator)) + 1):
            _write(folder / "references" / name / f"{number:02d}.jpg", encode_image(_portrait(identity, side, generator), "jpeg"))
            counts["references"] += 1
        for number in range(1, photos_each + 1):
            extension, format = _FILES[counts["photos"] % len(_FILES)]
            flat = f"{name.title()}_{number}{extension}" if index % 2 else f"{name}-{number:02d}{extension}"
            path = folder / "photos" / (flat if 3 * index >= 2 * people else f"{name}/{number:02d}{extension}")
            damaged = _damaged(identity, _LEVELS[number % len(_LEVELS)], side, generator)
            _write(path, _as_scanned(damaged, format, counts["photos"]))
            counts["photos"] += 1
    first, second = NAMES[0], NAMES[1]
    no_picture, breaks_off = f"{first}/{photos_each + 1:02d}.jpg", f"{second}/{photos_each + 1:02d}.jpg"
    _write(folder / "photos" / no_picture, b"<html><body>404 Not Found</body></html>\n")
    whole = encode_image(_damaged(identities[1], "mild", side, generator), "jpeg")
    _write(folder / "photos" / breaks_off, whole[: len(whole) // 2])
    _write(folder / "README.txt", _README.encode())  # last: it says that the archive is complete
    return SampleArchive(counts["photos"] + 2, counts["references"], no_picture, breaks_off)


def _portrait(identity: Identity, side: int, generator: torch.Generator) -> np.ndarray:
    return np.asarray(draw_portrait(identity, random_view(generator), side).image)


def _damaged(identity: Identity, level: str, side: int, generator: torch.Generator) -> np.ndarray:
    clean = from_pil(Image.fromarray(_portrait(identity, side, generator)))
    return np.asarray(to_pil(degrade(clean, level, generator)))


def _as_scanned(pixels: np.ndarray, format: Format, index: int) -> bytes:
    if index % 5 != 3:
        return encode_image(pixels, format)
    orientation = list(_TURNED)[index // 5 % len(_TURNED)]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.IFD.Exif] = {ExifTags.Base.DateTimeOriginal: f"{1900 + index % 80}:06:{1 + index % 28:02d} 12:00:00"}
    turned = np.asarray(Image.fromarray(pixels).transpose(_TURNED[orientation]))
    return encode_image(turned, format, exif=exif.tobytes(), icc_profile=srgb_profile())


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
