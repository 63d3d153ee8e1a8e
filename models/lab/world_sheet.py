"""A contact sheet of the drawn world, for asking whether a stranger would name what is drawn."""

from __future__ import annotations

from pathlib import Path

from models.lab.captions import caption
from models.lab.contact_sheet import write_contact_sheet
from models.lab.world import draw, subject


def world_sheet(path: Path, rows: int, columns: int, first: int = 0, kind: str | None = None) -> list[str]:
    """Write pictures `first` and on to a .png or .jpg file; returns their whole captions, row by row."""
    numbers = range(first, first + rows * columns)
    subjects = [subject(number, kind) for number in numbers]
    images = [draw(what, number).image for what, number in zip(subjects, numbers, strict=True)]
    write_contact_sheet(path, [images[row * columns : (row + 1) * columns] for row in range(rows)])
    return [caption(what) for what in subjects]
