"""Small copies of pictures for the page: upright, sRGB, never enlarged, one file a picture however many rows show it."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms, ImageOps

from orchestration.folder import JobFolder
from workers import storage
from workers.crops import warp
from workers.media import ImageBroken, ImageTooLarge, decode_image

_QUALITY = 88  # with full colour resolution: a reviewer must not take the thumbnail's artefacts for the picture's
_INDEX = "review/thumbs/index.json"


@dataclass(frozen=True)
class Frame:
    """A part of a picture: the 2x3 matrix, as six numbers, from the upright picture to a crop of `width` x `height` pixels."""

    matrix: tuple[float, ...]
    width: int
    height: int

    def is_whole(self, width: int, height: int) -> bool:
        """Whether the crop is the whole picture of this size, only scaled."""
        a, b, x, c, d, y = self.matrix
        return b == c == x == y == 0 and math.isclose(a * width, self.width) and math.isclose(d * height, self.height)


@dataclass(frozen=True)
class Source:
    """A picture to show: its bytes, or a URI, absolute or relative to a job folder; `version` changes when the file behind it does.

    `frame`: of which only a part is shown. `job`: the URI of the other job folder that a relative URI is meant in.
    """

    uri: str | None = None
    data: bytes | None = None
    version: str = ""
    frame: Frame | None = None
    job: str | None = None

    def key(self, px: int) -> str:
        """Name of its thumbnail, 20 hex digits."""
        content = self.data if self.data is not None else f"{self.uri}\0{self.version}".encode()
        part = ("" if self.frame is None else repr(self.frame)) + (self.job or "")
        return hashlib.sha1(f"{px}\0{part}\0".encode() + content).hexdigest()[:20]


@dataclass(frozen=True)
class Thumb:
    """A thumbnail in review/thumbs/, or the reason why there is none; `width` and `height` in pixels."""

    key: str
    width: int = 0
    height: int = 0
    missing: str | None = None


class Thumbnails:
    """Makes thumbnails of at most `px` a side in a pool of threads, and remembers those that are already in the folder."""

    def __init__(self, folder: JobFolder, reader: storage.Reader, *, px: int, max_pixels: int, threads: int = 8) -> None:
        self.folder, self.reader, self.px, self.max_pixels, self.threads = folder, reader, px, max_pixels, threads
        kept = folder.read_json(_INDEX) or {}
        self._made = {key: Thumb(key, width, height) for key, (width, height) in kept.items()}

    def make(self, sources: Sequence[Source]) -> list[Thumb]:
        """A thumbnail of each source, in order. What can't be read is said in `missing`; nothing is raised for it."""
        todo = {source.key(self.px): source for source in sources}
        todo = {key: source for key, source in todo.items() if key not in self._made}
        with ThreadPoolExecutor(self.threads) as pool:
            self._made.update(zip(todo, pool.map(self._make, todo.values()), strict=True))
        return [self._made[source.key(self.px)] for source in sources]

    def close(self) -> None:
        """Write down which thumbnails are there, so that the next page of this folder need not make them again."""
        self.folder.write_json(_INDEX, {t.key: [t.width, t.height] for t in self._made.values() if t.missing is None})

    def _make(self, source: Source) -> Thumb:
        key = source.key(self.px)
        try:
            image = shrink(self._read(source), self.px, self.max_pixels, source.frame)
        except FileNotFoundError:
            return Thumb(key, missing="not found")
        except storage.UriNotAllowed:
            return Thumb(key, missing="outside the allowed roots")
        except (storage.TooLarge, ImageTooLarge):
            return Thumb(key, missing="too large to show")
        except ImageBroken:
            return Thumb(key, missing="not a readable picture")
        except Exception as error:  # a page about trouble must not fail on trouble; S3 clients raise many types
            return Thumb(key, missing=f"not readable ({type(error).__name__})")
        sink = io.BytesIO()
        image.save(sink, "JPEG", quality=_QUALITY, subsampling=0)
        storage.write_atomic(self.folder.fs, self.folder.join(thumb_path(key)), sink.getvalue())
        return Thumb(key, image.width, image.height)

    def _read(self, source: Source) -> bytes:
        if source.data is not None:
            return source.data
        assert source.uri is not None
        if storage.scheme(source.uri) == "file" and not source.uri.startswith(("/", "file:", "~")):
            return (self.folder if source.job is None else JobFolder(source.job)).read_bytes(source.uri)
        return self.reader.read(source.uri)


def thumb_path(key: str) -> str:
    """Path of a thumbnail relative to the job folder."""
    return f"review/thumbs/{key[:2]}/{key}.jpg"


def shrink(data: bytes, px: int, max_pixels: int, frame: Frame | None = None) -> Image.Image:
    """The picture or its `frame`, upright, RGB in sRGB, at most `px` a side. Raises ImageBroken or ImageTooLarge.

    A JPEG is decoded at the smallest of its own scales that is large enough: 5 to 10 times faster for camera files.
    """
    try:
        image = Image.open(io.BytesIO(data))
    except Exception as error:
        raise ImageBroken(str(error)) from error
    if image.width * image.height > max_pixels:
        raise ImageTooLarge(f"{image.width} x {image.height} pixels")
    if frame is not None and frame.is_whole(image.width, image.height):
        frame = None
    if image.format == "JPEG" and image.mode in ("RGB", "L") and frame is None:
        try:
            profile = image.info.get("icc_profile") if image.mode == "RGB" else None
            image.draft(image.mode, (2 * px, 2 * px))
            image = ImageOps.exif_transpose(image).convert("RGB")
        except Exception as error:
            raise ImageBroken(str(error)) from error
    else:
        picture = decode_image(data, max_pixels=max_pixels)
        pixels, profile = picture.pixels, picture.icc_profile
        if frame is not None:
            pixels = warp(pixels, np.array(frame.matrix).reshape(2, 3), (frame.width, frame.height))
        image = Image.fromarray(pixels)
    image.thumbnail((px, px), Image.Resampling.LANCZOS)
    return _to_srgb(image, profile) if profile else image


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    try:
        return ImageCms.profileToProfile(image, io.BytesIO(profile), ImageCms.createProfile("sRGB")) or image
    except ImageCms.PyCMSError:
        return image  # a damaged profile: the numbers as they are
