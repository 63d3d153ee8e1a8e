"""Pictures side by side, with words above the columns: for looking at what a model or a drawing does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from PIL import Image, ImageDraw

Rows: TypeAlias = Sequence[Sequence[Image.Image | None]]


def contact_sheet(rows: Rows, titles: Sequence[str] = (), cell: int = 96) -> Image.Image:
    """A grid of pictures, each resized to `cell` pixels; None leaves a cell empty. Raises ValueError when there is no picture."""
    if not any(rows):
        raise ValueError("a contact sheet needs at least one picture")
    head = 16 if titles else 0
    sheet = Image.new("RGB", (max(len(row) for row in rows) * cell, head + len(rows) * cell), (255, 255, 255))
    pen = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        pen.text((column * cell + 3, 2), title, fill=(0, 0, 0))
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            if image is not None:
                sheet.paste(image.convert("RGB").resize((cell, cell), Image.Resampling.BICUBIC), (x * cell, head + y * cell))
    return sheet


def write_contact_sheet(path: Path, rows: Rows, titles: Sequence[str] = (), cell: int = 96) -> None:
    """Write `contact_sheet` to a .png or .jpg file; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(rows, titles, cell).save(path, quality=88)
