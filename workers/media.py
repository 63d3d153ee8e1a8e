"""Still pictures in and out: bytes of a file to upright 8-bit RGB pixels with what must be kept beside them, and back to a file.

Limits are checked on the header, before any pixel is decoded. What the picture carries (colour profile, capture date, place) is kept in a
form that fits the decoded pixels: upright, so orientation 1, and without the embedded thumbnail, which would go on showing the picture as
it was before restoring.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from functools import cache
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageOps
from PIL.PngImagePlugin import PngInfo

Pixels = NDArray[np.uint8]
Format = Literal["png", "jpeg", "webp", "tiff"]

MAX_PIXELS = 100_000_000  # 300 MB decoded; a 35 mm frame scanned at 8000 dpi has 86 million
READ_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF")
_XMP_TAG = 700
_KEPT_TAGS = (
    ExifTags.Base.ImageDescription,
    ExifTags.Base.Make,
    ExifTags.Base.Model,
    ExifTags.Base.DateTime,
    ExifTags.Base.Artist,
    ExifTags.Base.Copyright,
)
_DROPPED_EXIF = (
    ExifTags.Base.MakerNote,
    ExifTags.Base.ExifImageWidth,
    ExifTags.Base.ExifImageHeight,
    ExifTags.Base.ExifInteroperabilityOffset,
)


class ImageBroken(ValueError):
    """The bytes are not a picture that can be read."""


class ImageTooLarge(ValueError):
    """The picture has more pixels than allowed; it was not decoded."""


@dataclass(frozen=True)
class Header:
    """What a file says of itself before any pixel is decoded; `width`, `height` as stored, before orientation."""

    format: str
    width: int
    height: int


@dataclass(frozen=True)
class Picture:
    """Upright pixels (H, W, 3) uint8 RGB and what the file carried.

    `icc_profile` describes these pixels (None: sRGB is assumed). `exif` holds the source's date, camera, author, copyright and place,
    with orientation 1. `orientation` is the EXIF orientation found in the file (1-8); `format`, `mode` are the file's, in Pillow's words.
    """

    pixels: Pixels
    format: str
    mode: str
    orientation: int
    icc_profile: bytes | None = None
    exif: bytes | None = None

    @property
    def height(self) -> int:
        return self.pixels.shape[0]

    @property
    def width(self) -> int:
        return self.pixels.shape[1]


def read_header(file: BinaryIO, *, max_pixels: int = MAX_PIXELS) -> Header:
    """Format and size of an open file; reads the header only. Raises ImageBroken or ImageTooLarge."""
    image = _open(file, max_pixels)
    return Header(_format_of(image), image.width, image.height)


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Picture:
    """Decode the bytes of a JPEG, PNG, WebP or TIFF file (its first picture) to upright 8-bit RGB.

    Transparent parts become white, 16-bit grey is scaled to 8 bit, and CMYK or grey with a colour profile goes to sRGB by that profile; RGB
    values stay as they are, in the space of the returned profile. Raises ImageTooLarge before decoding, ImageBroken for anything that can't
    be read whole.
    """
    image = _open(io.BytesIO(data), max_pixels)
    try:
        image.load()
        mode, orientation = image.mode, image.getexif().get(ExifTags.Base.Orientation, 1)
        rgb, profile = _to_rgb(image)
        turned = _upright(rgb, orientation)
        return Picture(
            pixels=np.asarray(turned),
            format=_format_of(image),
            mode=mode,
            orientation=orientation if orientation in range(1, 9) else 1,
            icc_profile=profile,
            exif=_carried_exif(image),
        )
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises a dozen types for damaged files
        raise ImageBroken(
            f"the picture breaks off or is damaged ({type(error).__name__}: {error}); "
            "copy it again from its source, or open and save it in an editor"
        ) from error


def encode_image(
    pixels: Pixels,
    format: Format = "png",
    *,
    icc_profile: bytes | None = None,
    exif: bytes | None = None,
    xmp: bytes | None = None,
    quality: int = 95,
) -> bytes:
    """The bytes of a file with these pixels (H, W, 3) uint8. The same arguments give the same bytes.

    png and tiff are lossless, tiff uncompressed; `quality` (1-100) is for jpeg, in full colour resolution, and webp. `exif` and `xmp` are
    written as given.
    """
    image, file = Image.fromarray(pixels), io.BytesIO()
    options: dict[str, Any] = {"icc_profile": icc_profile} if icc_profile else {}
    if format == "tiff":
        tags = Image.Exif()
        if exif:
            tags.load(exif)
        if xmp:
            tags[_XMP_TAG] = xmp
        image.save(file, "TIFF", compression="raw", exif=tags, **options)  # Pillow's compressed TIFFs cannot hold the EXIF date
        return file.getvalue()
    if exif:
        options["exif"] = exif
    if format == "png":
        text = PngInfo()
        if xmp:
            text.add_itxt("XML:com.adobe.xmp", xmp.decode("utf-8"))  # XMP specification, part 3: embedding in PNG
        image.save(file, "PNG", pnginfo=text, **options)
    else:
        if xmp:
            options["xmp"] = xmp
        image.save(file, format.upper(), quality=quality, **({"subsampling": 0} if format == "jpeg" else {}), **options)
    return file.getvalue()


@cache
def srgb_profile() -> bytes:
    """An ICC profile of sRGB, always the same bytes: the time of its making is taken out."""
    made = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return made[:24] + struct.pack(">6H", 2000, 1, 1, 0, 0, 0) + made[36:]  # ICC.1:2022, 7.2.8


def _open(file: BinaryIO, max_pixels: int) -> Image.Image:
    try:
        image = Image.open(file, formats=READ_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageTooLarge(f"{error} (limit {max_pixels} pixels); scale it down, or raise the limit if you trust it") from error
    except MemoryError:
        raise
    except Exception as error:
        raise ImageBroken("not a picture in JPEG, PNG, WebP or TIFF; check that the file is whole and what its name says") from error
    if image.width * image.height > max_pixels:
        raise ImageTooLarge(
            f"{image.width} x {image.height} pixels are more than the limit of {max_pixels}; "
            "scale it down, or raise the limit if you trust it"
        )
    return image


def _format_of(image: Image.Image) -> str:
    name = (image.format or "").lower()
    return "jpeg" if name == "mpo" else name  # a phone's JPEG with a second picture behind it


def _to_rgb(image: Image.Image) -> tuple[Image.Image, bytes | None]:
    profile: bytes | None = image.info.get("icc_profile") or None
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        return Image.fromarray((wide.clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB"), None
    if image.mode == "F":
        raise ValueError("floating point pictures have no agreed white; save it with 8 or 16 bit")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        shown = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown).convert("RGB")
    if image.mode in ("CMYK", "L") and profile:
        return _by_profile(image, profile)
    return image.convert("RGB"), profile if _space(profile) == "RGB " else None


def _by_profile(image: Image.Image, profile: bytes) -> tuple[Image.Image, bytes | None]:
    """To sRGB by the file's own profile; without it where the profile is damaged or belongs to another mode."""
    try:
        source = ImageCms.getOpenProfile(io.BytesIO(profile))
        turned = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except ImageCms.PyCMSError:
        return image.convert("RGB"), None
    assert turned is not None
    return turned, srgb_profile()


def _space(profile: bytes | None) -> str:
    return profile[16:20].decode("latin-1") if profile else ""  # ICC.1:2022, 7.2.6 data colour space


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    image.getexif().clear()
    image.getexif()[ExifTags.Base.Orientation] = orientation
    return ImageOps.exif_transpose(image)


def _carried_exif(image: Image.Image) -> bytes | None:
    """Date, camera, author, copyright and place; None where there is nothing or where it is too damaged to be rewritten."""
    try:
        found, kept = image.getexif(), Image.Exif()
        for tag in _KEPT_TAGS:
            if tag in found:
                kept[tag] = found[tag]
        detail = {tag: value for tag, value in found.get_ifd(ExifTags.IFD.Exif).items() if tag not in _DROPPED_EXIF}
        place = dict(found.get_ifd(ExifTags.IFD.GPSInfo))
        if detail:
            kept[ExifTags.IFD.Exif] = detail
        if place:
            kept[ExifTags.IFD.GPSInfo] = place
        if not len(kept):
            return None
        kept[ExifTags.Base.Orientation] = 1
        return kept.tobytes()
    except Exception:  # metadata in the wild breaks in every way; the picture matters more
        return None
