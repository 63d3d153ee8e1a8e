from __future__ import annotations

import os
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from workers import media
from workers.provenance import DIGITAL_SOURCE_TYPE, OriginalInTheWay, Provenance, read_provenance, write_picture

GREY = np.full((12, 10, 3), 128, np.uint8)


@pytest.mark.parametrize("format", get_args(media.Format))
def test_every_format_says_who_made_the_picture(format: media.Format) -> None:
    made = Provenance(
        model="lab/instant-restore", method="instant_restore", job="archive-1a2b", rows=["anna/01#face-1", "a&b<ü>"], source="01.jpg"
    )
    said = read_provenance(media.encode_image(GREY, format, xmp=made.xmp()))
    assert said.pop("software").startswith("calotype ")
    assert said == {
        "digital_source_type": DIGITAL_SOURCE_TYPE,
        "model": "lab/instant-restore",
        "method": "instant_restore",
        "job": "archive-1a2b",
        "rows": ["anna/01#face-1", "a&b<ü>"],
        "source": "01.jpg",
    }


def test_the_same_facts_give_the_same_file() -> None:
    made = Provenance("m", "n", "j", ["r"])
    assert media.encode_image(GREY, "png", xmp=made.xmp()) == media.encode_image(GREY, "png", xmp=made.xmp())


def test_an_id_that_xml_cannot_hold_does_not_break_the_packet() -> None:
    said = read_provenance(media.encode_image(GREY, "png", xmp=Provenance("m", "n", "j", ["a\x00\x1b\ud800z"]).xmp()))
    assert said["rows"] == ["a\ufffd\ufffd\ufffdz"]


def test_a_picture_without_a_packet_or_with_a_foreign_one_says_nothing_of_us() -> None:
    assert read_provenance(media.encode_image(GREY, "jpeg")) == {}
    assert read_provenance(media.encode_image(GREY, "jpeg", xmp=b"<x:xmpmeta")) == {}
    bomb = b'<!DOCTYPE r [<!ENTITY a "aaaa">]><r>&a;</r>'
    assert read_provenance(media.encode_image(GREY, "png", xmp=bomb)) == {}


def test_an_original_is_never_written_to_not_even_through_a_link(tmp_path: Path) -> None:
    original, soft, hard = tmp_path / "photo.png", tmp_path / "soft.png", tmp_path / "hard.png"
    original.write_bytes(b"original")
    soft.symlink_to(original)
    os.link(original, hard)
    for destination in (str(original), f"file://{original}", str(soft), str(hard)):
        with pytest.raises(OriginalInTheWay, match="never written to"):
            write_picture(destination, b"new", [str(tmp_path / "other.png"), str(original)])
    assert original.read_bytes() == b"original"
    write_picture(str(tmp_path / "new" / "photo.png"), b"new", [str(original)])
    assert (tmp_path / "new" / "photo.png").read_bytes() == b"new"


def test_a_picture_made_from_words_alone_says_that_nothing_in_it_was_photographed() -> None:
    for generated, kind in ((True, "/trainedAlgorithmicMedia"), (False, "/compositeWithTrainedAlgorithmicMedia")):
        made = Provenance("m", "n", "j", ["r"], generated=generated)
        data = media.encode_image(GREY, "png", xmp=made.xmp())
        assert read_provenance(data)["digital_source_type"].endswith(kind)
