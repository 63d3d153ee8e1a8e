"""Where bytes live: URIs to filesystems, size limits, atomic and create-once writes, and the allow-list for what manifests may name."""

from __future__ import annotations

import os
import posixpath
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import fsspec
import pyarrow.fs as pafs
from fsspec import AbstractFileSystem

_S3_OPTIONS: dict[str, Any] = {
    "config_kwargs": {
        "retries": {"mode": "standard", "max_attempts": 5},
        "connect_timeout": 5,
        "read_timeout": 20,
        "max_pool_connections": 32,
    },
    "use_listings_cache": False,
}


class UriNotAllowed(PermissionError):
    """A manifest names a place that this job may not read."""


class TooLarge(ValueError):
    """A file is larger than the limit; it was not read."""


def scheme(uri: str) -> str:
    """'file' for paths and file: URIs, else the URI's scheme in lower case."""
    head = urlsplit(uri).scheme.lower()
    return head if len(head) > 1 else "file"


def local_path(uri: str) -> Path:
    """The absolute local path of a path or file: URI. Raises ValueError for other schemes."""
    if scheme(uri) != "file":
        raise ValueError(f"{uri} is not a local path")
    return Path(unquote(urlsplit(uri).path) if uri.lower().startswith("file:") else uri).expanduser().absolute()


def filesystem(uri: str) -> tuple[AbstractFileSystem, str]:
    """fsspec filesystem and the path in it, for a local path, file:// or s3:// URI (any fsspec scheme that is installed)."""
    if scheme(uri) == "file":
        return fsspec.filesystem("file"), str(local_path(uri))
    options = _S3_OPTIONS if scheme(uri) == "s3" else {}
    fs, path = fsspec.core.url_to_fs(uri, **options)
    return fs, path


def arrow_filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """The same place as a pyarrow filesystem, for Parquet readers and writers."""
    if scheme(uri) == "file":
        return pafs.LocalFileSystem(), str(local_path(uri))
    fs, path = filesystem(uri)
    return pafs.PyFileSystem(pafs.FSSpecHandler(fs)), path


def join(uri: str, *parts: str) -> str:
    """Path or URI below another one."""
    return posixpath.join(uri.rstrip("/"), *parts)


def write_atomic(fs: AbstractFileSystem, path: str, data: bytes) -> None:
    """Write a whole file or none of it: temporary file and rename locally, one put on an object store."""
    if fs.protocol == "file" or "file" in fs.protocol:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        temporary = _temporary(path)
        try:
            with open(temporary, "wb") as file:
                file.write(data)
            os.replace(temporary, path)
        except BaseException:
            if os.path.exists(temporary):
                os.unlink(temporary)
            raise
    else:
        fs.pipe_file(path, data)


def _temporary(path: str) -> str:
    """A name beside the path that is short, however long the path's own is."""
    return os.path.join(os.path.dirname(path), f".{uuid.uuid4().hex}.tmp")


def create_once(fs: AbstractFileSystem, path: str, data: bytes) -> bool:
    """Create a file only if it does not exist (O_EXCL, S3 If-None-Match). True if this call made it."""
    if "file" in fs.protocol:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        temporary = _temporary(path)
        with open(temporary, "wb") as file:
            file.write(data)
        try:
            os.link(temporary, path)  # whole or not at all, also for readers in between
            return True
        except FileExistsError:
            return False
        finally:
            os.unlink(temporary)
    try:
        fs.pipe_file(path, data, mode="create")
        return True
    except FileExistsError:
        return False


@dataclass(frozen=True)
class Reader:
    """Reads the bytes that a manifest's URIs name, within an allow-list and a size limit.

    `roots` are path or URI prefixes (empty: every local path and s3://); http(s) only where a root names it. `max_bytes` bounds one file.
    """

    roots: Sequence[str] = ()
    max_bytes: int = 256 * 2**20

    def check(self, uri: str) -> None:
        """Raises UriNotAllowed where the URI is outside the allowed roots."""
        if not self.roots:
            if scheme(uri) in ("file", "s3"):
                return
            raise UriNotAllowed(f"{uri}: only local paths and s3:// are read; add its prefix to resources.allowed_roots to allow it")
        place = _normal(uri)
        if not any(place == root or place.startswith(root.rstrip("/") + "/") for root in map(_normal, self.roots)):
            raise UriNotAllowed(f"{uri} is outside resources.allowed_roots ({', '.join(self.roots)})")

    def read(self, uri: str) -> bytes:
        """The file's bytes. Raises FileNotFoundError, UriNotAllowed, TooLarge, or OSError for transient trouble."""
        self.check(uri)
        fs, path = filesystem(uri)
        with fs.open(path, "rb") as file:
            data = file.read(self.max_bytes + 1)
        assert isinstance(data, bytes)
        if len(data) > self.max_bytes:
            raise TooLarge(f"{uri} is larger than {self.max_bytes} bytes (resources.max_file_bytes)")
        return data


def _normal(uri: str) -> str:
    if scheme(uri) == "file":
        return os.path.realpath(local_path(uri))  # a link out of the root is outside
    _, _, place = uri.partition("://")  # whole: in an object's key ? and # are letters like any other
    return f"{scheme(uri)}://{posixpath.normpath(place)}"
