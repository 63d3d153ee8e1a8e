from __future__ import annotations

import io
import struct
import zlib
from typing import Any, get_args

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms

from workers import media

COLOURS = np.zeros((16, 24, 3), np.uint8)  # red above green on the left, blue above white on the right
COLOURS[:8, :12], COLOURS[8:, :12], COLOURS[:8, 12:], COLOURS[8:, 12:] = (220, 20, 20), (20, 200, 20), (20, 20, 220), (255, 255, 255)


def file_of(image: Image.Image, format: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def dated_exif(orientation: int = 1) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.Base.Artist] = "Ada"
    exif[ExifTags.IFD.Exif] = {ExifTags.Base.DateTimeOriginal: "1912:07:04 10:00:00", ExifTags.Base.ExifImageWidth: 24}
    exif[ExifTags.IFD.GPSInfo] = {ExifTags.GPS.GPSLatitudeRef: "N"}
    return exif


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_stand_upright_whatever_the_orientation(orientation: int) -> None:
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transpositions that store an upright picture with this orientation
    stored = Image.fromarray(COLOURS)
    if orientation > 1:
        stored = stored.transpose(Image.Transpose(undo[orientation]))
    picture = media.decode_image(file_of(stored, "PNG", exif=dated_exif(orientation)))
    assert np.array_equal(picture.pixels, COLOURS)
    assert picture.orientation == orientation
    assert picture.exif is not None
    kept = Image.Exif()
    kept.load(picture.exif)
    assert kept[ExifTags.Base.Orientation] == 1


@pytest.mark.parametrize("format", get_args(media.Format))
def test_profile_date_author_and_place_come_through_every_format(format: media.Format) -> None:
    source = media.decode_image(file_of(Image.fromarray(COLOURS), "JPEG", exif=dated_exif(6), icc_profile=media.srgb_profile()))
    made = Image.open(io.BytesIO(media.encode_image(source.pixels, format, icc_profile=source.icc_profile, exif=source.exif, xmp=b"<x/>")))
    exif = made.getexif()
    assert made.info["icc_profile"] == media.srgb_profile()
    assert made.size == (16, 24)
    assert exif[ExifTags.Base.Orientation] == 1
    assert exif[ExifTags.Base.Artist] == "Ada"
    assert exif.get_ifd(ExifTags.IFD.Exif) == {ExifTags.Base.DateTimeOriginal: "1912:07:04 10:00:00"}
    assert exif.get_ifd(ExifTags.IFD.GPSInfo) == {ExifTags.GPS.GPSLatitudeRef: "N"}


def test_a_tiff_gives_its_date_but_not_its_own_layout() -> None:
    source = media.decode_image(file_of(Image.fromarray(COLOURS), "TIFF", exif=dated_exif().tobytes()))
    assert source.exif is not None
    kept = Image.Exif()
    kept.load(source.exif)
    assert set(kept) == {ExifTags.Base.Orientation, ExifTags.Base.Artist, ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo}


@pytest.mark.parametrize("format", ["png", "tiff"])
def test_lossless_formats_give_back_the_pixels(format: media.Format) -> None:
    assert np.array_equal(media.decode_image(media.encode_image(COLOURS, format)).pixels, COLOURS)


def test_sixteen_bit_grey_keeps_its_tones() -> None:
    wide = (np.arange(256, dtype=np.uint16).reshape(16, 16)) * 257
    picture = media.decode_image(file_of(Image.fromarray(wide), "TIFF"))
    assert np.array_equal(picture.pixels[..., 0], np.arange(256).reshape(16, 16))
    assert np.array_equal(picture.pixels[..., 0], picture.pixels[..., 2])
    assert media.decode_image(file_of(Image.fromarray(wide), "PNG")).pixels.max() == 255


def test_cmyk_palette_bilevel_and_grey_become_rgb() -> None:
    image = Image.fromarray(COLOURS)
    cmyk = media.decode_image(file_of(image.convert("CMYK"), "JPEG", quality=95)).pixels.astype(int)
    assert abs(cmyk[2:6, 2:10] - COLOURS[2:6, 2:10]).max() < 12
    assert np.array_equal(media.decode_image(file_of(image.convert("P", palette=Image.Palette.ADAPTIVE), "PNG")).pixels, COLOURS)
    assert set(np.unique(media.decode_image(file_of(image.convert("1"), "PNG")).pixels)) == {0, 255}
    assert media.decode_image(file_of(image.convert("L"), "JPEG")).mode == "L"


def test_transparent_parts_become_white() -> None:
    alpha = np.full((16, 24), 255, np.uint8)
    alpha[:8] = 0
    pixels = media.decode_image(file_of(Image.fromarray(np.dstack([COLOURS, alpha])), "PNG")).pixels
    assert (pixels[:8] == 255).all()
    assert np.array_equal(pixels[8:], COLOURS[8:])


def test_a_profile_of_another_colour_space_is_not_kept_for_rgb_pixels() -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    assert media.decode_image(file_of(Image.fromarray(COLOURS), "PNG", icc_profile=lab)).icc_profile is None
    assert media.decode_image(file_of(Image.fromarray(COLOURS).convert("L"), "PNG", icc_profile=b"no profile")).icc_profile is None


def test_the_embedded_thumbnail_of_the_damaged_picture_is_left_out() -> None:
    thumbnail = file_of(Image.fromarray(COLOURS), "JPEG")
    ifd0 = struct.pack("<HHHIII", 1, 0x0112, 3, 1, 6, 26)
    ifd1 = (
        struct.pack("<H", 2)
        + struct.pack("<HHII", 0x0201, 4, 1, 56)
        + struct.pack("<HHII", 0x0202, 4, 1, len(thumbnail))
        + struct.pack("<I", 0)
    )
    exif = b"Exif\0\0II*\0\x08\0\0\0" + ifd0 + ifd1 + thumbnail
    data = file_of(Image.fromarray(COLOURS), "JPEG", exif=exif)
    assert Image.open(io.BytesIO(data)).getexif().get_ifd(ExifTags.IFD.IFD1)
    picture = media.decode_image(data)
    assert picture.orientation == 6
    assert thumbnail not in media.encode_image(picture.pixels, "jpeg", exif=picture.exif)


def test_a_decompression_bomb_is_refused_before_it_is_decoded() -> None:
    chunk = lambda name, body: struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))  # noqa: E731
    bomb = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", b"")
        + chunk(b"IEND", b"")
    )
    for refuse in (lambda: media.decode_image(bomb), lambda: media.read_header(io.BytesIO(bomb))):
        with pytest.raises(media.ImageTooLarge, match=r"60000|3600000000"):
            refuse()
    small = file_of(Image.fromarray(COLOURS), "PNG")
    with pytest.raises(media.ImageTooLarge, match="24 x 16 pixels are more than the limit of 383"):
        media.decode_image(small, max_pixels=383)
    assert media.decode_image(small, max_pixels=384).width == 24


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_file_that_breaks_off_is_an_error_although_its_header_reads(format: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    data = file_of(Image.fromarray(noise), format)
    cut = data[: len(data) * 2 // 3]
    with pytest.raises(media.ImageBroken, match=r"copy it again|check that the file"):
        media.decode_image(cut)
    if format in ("JPEG", "PNG"):
        assert media.read_header(io.BytesIO(cut)) == media.Header(format.lower(), 64, 64)


@pytest.mark.parametrize("data", [b"", b"hello", b"\xff\xd8\xff", b"GIF89a" + bytes(40)])
def test_bytes_that_are_no_picture_say_what_to_check(data: bytes) -> None:
    with pytest.raises(media.ImageBroken, match="check that the file is whole"):
        media.decode_image(data)
