"""Pictures in a folder, local or remote: which files can be used, and why not the others. Headers are read, no pixel is decoded."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NamedTuple

from fsspec import AbstractFileSystem

from workers.media import MAX_PIXELS, read_header
from workers.storage import filesystem, join, scheme

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff")
_THREADS = 8  # headers of a remote folder are waited for, not computed


class NotAFolder(ValueError):
    """A path or URI that should be a folder of photographs is none."""


class Skipped(NamedTuple):
    """A file or folder that was left out, and why."""

    path: str
    why: str


@dataclass(frozen=True)
class PictureFile:
    """A file whose header says that it is a picture. `path` is relative to the folder, with forward slashes; `uri` is absolute."""

    uri: str
    path: str


def list_pictures(
    folder: str, *, without: str | None = None, max_bytes: int = 256 * 2**20, max_pixels: int = MAX_PIXELS
) -> tuple[list[PictureFile], list[Skipped]]:
    """The pictures in a folder and below, in natural order, and everything that was skipped.

    `without`: a folder below that is not entered. Links are followed, each real folder is entered once. Raises NotAFolder.
    """
    fs, root = filesystem(folder)
    if not fs.isdir(root):
        raise NotAFolder(f"{folder} is not a folder; give the folder that holds the photographs")
    base = root if scheme(folder) == "file" else folder.rstrip("/")
    left_out = filesystem(without)[1] if without is not None else None
    skipped, files = [], list[tuple[str, int]]()
    for path, size, why in _walk_local(root, left_out) if scheme(folder) == "file" else _walk_remote(fs, root, left_out):
        if why or (why := _reason_by_name(path, size, max_bytes)):
            skipped.append(Skipped(join(base, path).encode("utf-8", "replace").decode(), why))
        else:
            files.append((path, size))
    files.sort(key=lambda file: natural_key(file[0]))
    with ThreadPoolExecutor(_THREADS) as pool:
        reasons = list(pool.map(lambda file: _reason_by_header(fs, join(root, file[0]), max_pixels), files))
    good = [PictureFile(join(base, path), path) for (path, _), why in zip(files, reasons, strict=True) if why is None]
    skipped += [Skipped(join(base, path), why) for (path, _), why in zip(files, reasons, strict=True) if why is not None]
    return good, sorted(skipped, key=lambda s: natural_key(s.path))


def natural_key(path: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sorts 2 before 10 and A beside a; the path itself decides between what is otherwise equal."""
    parts = re.split(r"(\d+)", unicodedata.normalize("NFC", path).casefold())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part], path


def _walk_local(root: str, left_out: str | None) -> Iterator[tuple[str, int, str | None]]:
    entered, pending = set[str](), [""]
    avoid = os.path.realpath(left_out) if left_out is not None else None
    while pending:
        folder = pending.pop()
        real = os.path.realpath(os.path.join(root, folder))
        if real == avoid:
            continue
        if real in entered:
            yield folder, 0, "a link to a folder that was already looked into"
            continue
        entered.add(real)
        try:
            entries = sorted(os.scandir(os.path.join(root, folder)), key=lambda entry: entry.name)
        except OSError as error:
            yield folder or ".", 0, f"the folder cannot be read: {error.strerror}"
            continue
        for entry in entries:
            path = f"{folder}/{entry.name}" if folder else entry.name
            try:
                if entry.is_dir() and not entry.name.startswith("."):
                    pending.append(path)
                else:
                    yield path, entry.stat().st_size, None
            except OSError as error:
                yield path, 0, f"cannot be read: {error.strerror}"


def _walk_remote(fs: AbstractFileSystem, root: str, left_out: str | None) -> Iterator[tuple[str, int, str | None]]:
    found = fs.find(root, detail=True)
    assert isinstance(found, dict)
    for name, info in found.items():
        if left_out is None or not name.startswith(left_out.rstrip("/") + "/"):
            yield name[len(root.rstrip("/")) + 1 :], int(info.get("size") or 0), None


def _reason_by_name(path: str, size: int, max_bytes: int) -> str | None:
    name = PurePosixPath(path)
    if any(part.startswith(".") for part in name.parts):
        return "hidden"
    if name.suffix.lower() not in EXTENSIONS:
        return f"not a picture by its name ({', '.join(EXTENSIONS)} are read)"
    if path.encode("utf-8", "replace").decode() != path:
        return "its name is not valid UTF-8; rename it"
    if size == 0:
        return "empty file"
    if size > max_bytes:
        return f"too large: {size / 2**20:.0f} MiB, the limit is {max_bytes // 2**20} MiB"
    return None


def _reason_by_header(fs: AbstractFileSystem, path: str, max_pixels: int) -> str | None:
    try:
        with fs.open(path, "rb") as file:
            read_header(file, max_pixels=max_pixels)  # pyright: ignore[reportArgumentType]  # fsspec's files are binary files
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    except ValueError as error:
        return str(error)
    return None
