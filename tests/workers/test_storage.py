"""Where bytes live, and what a manifest may name."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers import storage
from workers.storage import Reader, TooLarge, UriNotAllowed

LOCAL = fsspec.filesystem("file")


@pytest.mark.parametrize(
    ("uri", "scheme"),
    [("/a/b.jpg", "file"), ("a/b.jpg", "file"), ("~/b", "file"), ("file:///a", "file"), ("S3://b/k", "s3"), ("https://x/y", "https")],
)
def test_a_scheme_is_read_from_a_uri_and_paths_are_files(uri: str, scheme: str) -> None:
    assert storage.scheme(uri) == scheme


def test_local_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert storage.local_path("photos/a.jpg") == tmp_path / "photos/a.jpg"
    assert storage.local_path("~/a.jpg") == Path("/home/someone/a.jpg")
    assert storage.local_path("file:///a%20b/c%23.jpg") == Path("/a b/c#.jpg")
    assert storage.local_path("/odd/a#b?c.jpg") == Path("/odd/a#b?c.jpg")
    with pytest.raises(ValueError, match="not a local path"):
        storage.local_path("s3://bucket/key")


def test_an_atomic_write_leaves_the_old_file_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep/er/file"
    storage.write_atomic(LOCAL, str(path), b"old")

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", no_space)
    with pytest.raises(OSError, match="No space"):
        storage.write_atomic(LOCAL, str(path), b"new")
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


def test_a_reader_beside_an_atomic_writer_sees_whole_files_only(tmp_path: Path) -> None:
    path, seen, stop = tmp_path / "file", set[bytes](), threading.Event()
    contents = [letter * 300_000 for letter in (b"a", b"b")]
    storage.write_atomic(LOCAL, str(path), contents[0])

    def read() -> None:
        while not stop.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(40):
        storage.write_atomic(LOCAL, str(path), contents[number % 2])
    stop.set()
    reader.join(10)
    assert seen <= set(contents)


def test_a_name_as_long_as_a_disk_takes_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 255)
    storage.write_atomic(LOCAL, str(path), b"whole")
    assert path.read_bytes() == b"whole"
    assert storage.create_once(LOCAL, str(tmp_path / ("y" * 255)), b"once")


def test_creating_once_lets_one_of_many_win_and_keeps_its_content(tmp_path: Path) -> None:
    path, start, won = tmp_path / "sub/once", threading.Barrier(12), list[int]()

    def create(number: int) -> None:
        start.wait()
        if storage.create_once(LOCAL, str(path), str(number).encode()):
            won.append(number)

    threads = [threading.Thread(target=create, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(won) == 1
    assert path.read_bytes() == str(won[0]).encode()
    assert list(path.parent.iterdir()) == [path]


def test_without_roots_local_files_and_s3_are_read_and_the_web_is_not() -> None:
    for uri in ("/anywhere/a.jpg", "a.jpg", "file:///a.jpg", "s3://bucket/a.jpg"):
        Reader().check(uri)
    for uri in ("http://x/a.jpg", "https://x/a.jpg", "ftp://x/a", "gs://x/a", "simplecache::http://x/a", "data:text/plain,x"):
        with pytest.raises(UriNotAllowed, match="allowed_roots"):
            Reader().check(uri)


def test_with_roots_only_what_lies_below_them_is_read(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "in-between"
    inside.mkdir()
    outside.mkdir()
    (inside / "a").write_bytes(b"ok")
    (outside / "b").write_bytes(b"secret")
    (inside / "link").symlink_to(outside / "b")
    reader = Reader((str(inside), "s3://bucket/photos", "https://archive.example/scans"))
    assert reader.read(str(inside / "a")) == b"ok"
    assert reader.read((inside / "a").as_uri()) == b"ok"
    for uri in (outside / "b", inside / "../in-between/b", inside / "link", "/etc/passwd"):
        with pytest.raises(UriNotAllowed, match="outside"):
            reader.read(str(uri))
    for uri in ("s3://bucket/photos/a.jpg", "s3://bucket/photos/x/../a.jpg", "https://archive.example/scans/1.jpg"):
        reader.check(uri)
    for uri in (
        "s3://bucket/photos-private/a.jpg",
        "s3://bucket/photos/../private/a.jpg",
        "s3://bucket/photos?private",
        "s3://bucket/photos#private",
        "s3://other/photos/a.jpg",
        "http://archive.example/scans/1.jpg",
        "https://archive.example@evil.example/scans/1.jpg",
    ):
        with pytest.raises(UriNotAllowed, match="outside"):
            reader.check(uri)


@given(parts=st.lists(st.sampled_from(["..", ".", "a", "b", ""]), max_size=8))
def test_no_walk_through_dots_leaves_a_root(parts: list[str]) -> None:
    uri = "s3://bucket/root/" + "/".join(parts)
    depth, left = 0, False
    for part in parts:
        depth += {"..": -1, ".": 0, "": 0}.get(part, 1)
        left = left or depth < 0
    try:
        Reader(("s3://bucket/root",)).check(uri)
    except UriNotAllowed:
        assert left
    else:
        assert depth >= 0


def test_a_file_over_the_limit_is_not_read_and_one_at_the_limit_is(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert Reader(max_bytes=5).read(str(tmp_path / "a")) == b"12345"
    with pytest.raises(TooLarge, match="larger than 4 bytes"):
        Reader(max_bytes=4).read(str(tmp_path / "a"))
    with pytest.raises(FileNotFoundError):
        Reader().read(str(tmp_path / "nowhere"))
