"""What is written into the pictures we make: that a trained model took part, which one, in which job, for which row; and its reader.

A picture made from another one says `compositeWithTrainedAlgorithmicMedia` (IPTC NewsCodes, https://cv.iptc.org/newscodes/digitalsourcetype/:
media edited with a trained model), not `algorithmicallyEnhanced`: that one is for corrections such as sharpening that leave the content alone,
while a restored face holds detail that the model took from elsewhere. One made from words alone says `trainedAlgorithmicMedia`. Where and when
a photograph was taken stays in (EXIF date and GPS): a restored copy is kept beside its original and is no more public than that.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from io import BytesIO
from pathlib import PurePosixPath
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from PIL import Image

from workers.storage import filesystem, local_path, scheme, write_atomic

DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
GENERATED_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
_SPACES = {
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "dc": "http://purl.org/dc/elements/1.1/",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
    "calotype": "urn:calotype:provenance:1#",
}
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, production 2
_NAMES = {
    "digital_source_type": "Iptc4xmpExt:DigitalSourceType",
    "software": "xmp:CreatorTool",
    "source": "dc:source",
    "model": "calotype:model",
    "method": "calotype:method",
    "job": "calotype:job",
}


class OriginalInTheWay(PermissionError):
    """A picture was about to be written over one of the photographs that it was made from."""


@dataclass(frozen=True)
class Provenance:
    """How a picture came about. `rows`: ids of the rows whose results it shows; `source`: path or URI of the photograph; `generated`: no
    photograph took part.

    Only the source's last part is written: a picture may travel, and should not tell where an archive keeps its files.
    """

    model: str
    method: str
    job: str
    rows: Sequence[str]
    source: str | None = None
    generated: bool = False

    def xmp(self) -> bytes:
        """An XMP packet (ISO 16684-1). The same facts give the same bytes: no clock is read."""
        values = {
            "digital_source_type": GENERATED_SOURCE_TYPE if self.generated else DIGITAL_SOURCE_TYPE,
            "software": f"calotype {version('calotype')}",
            "source": PurePosixPath(self.source).name if self.source else None,
            "model": self.model,
            "method": self.method,
            "job": self.job,
        }
        spaces = " ".join(f'xmlns:{prefix}="{uri}"' for prefix, uri in _SPACES.items())
        simple = "".join(f"<{_NAMES[key]}>{_text(value)}</{_NAMES[key]}>" for key, value in values.items() if value is not None)
        rows = "".join(f"<rdf:li>{_text(row)}</rdf:li>" for row in self.rows)
        return (
            '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
            f'<rdf:RDF {spaces}><rdf:Description rdf:about="">{simple}<calotype:rows><rdf:Bag>{rows}</rdf:Bag></calotype:rows>'
            '</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
        ).encode()


def read_provenance(data: bytes) -> dict[str, Any]:
    """What a picture file says of its making: digital_source_type, software, source, model, method, job (text), rows (list).

    Empty where it says nothing. Raises OSError where the bytes are no picture. Reads the header only.
    """
    xmp = Image.open(BytesIO(data)).info.get("xmp", b"")
    packet = xmp.encode() if isinstance(xmp, str) else bytes(xmp)
    if not packet or b"<!DOCTYPE" in packet:  # no XMP packet has one; entity expansion needs it
        return {}
    try:
        tree = ElementTree.fromstring(packet.rstrip(b"\x00"))
    except ElementTree.ParseError:
        return {}
    texts = {key: tree.findtext(f".//{name}", namespaces=_SPACES) for key, name in _NAMES.items()}
    found: dict[str, Any] = {key: text for key, text in texts.items() if text is not None}
    if rows := [item.text or "" for item in tree.findall(".//calotype:rows/rdf:Bag/rdf:li", _SPACES)]:
        found["rows"] = rows
    return found


def write_picture(destination: str, data: bytes, sources: Iterable[str]) -> None:
    """Write a picture file, whole or not at all; `sources` are the photographs that it was made from.

    Raises OriginalInTheWay where the destination is one of them, also by way of a link.
    """
    for source in sources:
        if _same_file(destination, source):
            raise OriginalInTheWay(f"{destination} is an original; originals are never written to. Choose another output folder.")
    fs, path = filesystem(destination)
    write_atomic(fs, path, data)


def _same_file(first: str, second: str) -> bool:
    if scheme(first) != scheme(second):
        return False
    if scheme(first) != "file":
        return filesystem(first)[1] == filesystem(second)[1]
    a, b = local_path(first), local_path(second)
    return os.path.realpath(a) == os.path.realpath(b) or (a.exists() and b.exists() and os.path.samefile(a, b))


def _text(value: str) -> str:
    return escape(_NOT_XML.sub("\ufffd", value))
