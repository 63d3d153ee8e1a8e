from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given
from hypothesis import strategies as st

from orchestration.schedule import folders
from orchestration.schedule.cron import ScheduleError
from orchestration.schedule.firing import Firing, Schedule
from orchestration.schedule.store import Store
from tests import toy


class Nights:
    """A schedule that keeps two jobs, and firings of successive hours whose job folders are what retention looks at."""

    def __init__(self, folder: Path, keep: int | None = 2) -> None:
        self.out = folder / "out"
        self.store = Store("sqlite://")
        self.schedule = Schedule("nightly", str(folder / "job.yaml"), str(folder), "0 * * * *", "UTC", keep=keep)
        self.store.add(self.schedule, 0.0)
        self.folders: list[Path] = []

    def night(self, *, finished: bool = True, exit_code: int = 0, reuses: list[int] | None = None) -> None:
        number = len(self.folders)
        due = self.store.note_due(self.schedule, 3600.0 * (number + 1) + 1)
        assert due is not None
        claimed = self.store.claim("nightly", "d b 1 x", 0.0)
        assert claimed is not None
        path = self.job(f"{claimed.job_name}-0123456789ab", finished=finished, reuses=reuses)
        self.folders.append(path)
        self.store.change(claimed, state="finished", exit_code=exit_code, folder=str(path))

    def job(self, name: str, *, finished: bool = True, reuses: list[int] | None = None) -> Path:
        path = self.out / name
        (path / "plan").mkdir(parents=True)
        (path / "job.json").write_text("{}")
        if finished:
            (path / "_SUCCESS").write_text("")
        if reuses is not None:
            table = pa.table({"row_id": [f"r{i}" for i in range(len(reuses))], "folder": [str(self.folders[i]) for i in reuses]})
            pq.write_table(table, path / "plan" / "reused.parquet")
        return path

    def left(self) -> list[int]:
        """Numbers of the nights whose folders are there after a retention."""
        folders.retire(self.store, self.schedule, 1.0)
        return [i for i, path in enumerate(self.folders) if path.exists()]


def test_the_newest_finished_jobs_stay_and_the_history_says_what_went(tmp_path: Path) -> None:
    nights = Nights(tmp_path)
    for _ in range(5):
        nights.night()
    assert nights.left() == [3, 4]
    assert [f.retired is not None for f in nights.store.firings("nightly")] == [False, False, True, True, True]
    assert [f.describe()["review"] is None for f in nights.store.firings("nightly")] == [False, False, True, True, True]


def test_without_keep_nothing_is_ever_deleted(tmp_path: Path) -> None:
    nights = Nights(tmp_path, keep=None)
    for _ in range(3):
        nights.night()
    assert nights.left() == [0, 1, 2]


def test_an_unfinished_job_stays_and_is_not_counted(tmp_path: Path) -> None:
    nights = Nights(tmp_path)
    nights.night(finished=False, exit_code=1)
    for _ in range(3):
        nights.night()
    nights.night(finished=False, exit_code=64)
    assert nights.left() == [0, 2, 3, 4]


def test_a_job_that_a_kept_job_reuses_stays_also_through_others_and_for_jobs_of_others(tmp_path: Path) -> None:
    nights = Nights(tmp_path)
    nights.night()
    nights.night()
    nights.night(reuses=[0])
    nights.night()
    nights.night(reuses=[2])
    nights.night()
    assert nights.left() == [0, 2, 4, 5]
    nights.job("by-hand-0123456789ab", reuses=[4])
    for _ in range(2):
        nights.night()
    assert nights.left() == [0, 2, 4, 6, 7]


def test_a_deletion_that_was_cut_off_is_completed_the_next_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nights = Nights(tmp_path)
    for _ in range(3):
        nights.night()

    def pulled_out(fs: LocalFileSystem, path: str, recursive: bool = False) -> None:
        (Path(path) / "_SUCCESS").unlink()
        raise OSError("the disk was pulled out")

    with monkeypatch.context() as moment:
        moment.setattr(LocalFileSystem, "rm", pulled_out)
        assert nights.left() == [0, 1, 2]
    assert nights.left() == [1, 2]


def test_keep_is_one_at_the_least() -> None:
    with pytest.raises(ScheduleError, match="1 at the least"):
        Schedule("n", "j", "d", "0 * * * *", "UTC", keep=0)


names = st.sampled_from("abcdefg")


@given(old=st.sets(names), reused=st.dictionaries(names, st.sets(names)))
def test_nothing_that_goes_is_reused_by_anything_that_stays(old: set[str], reused: dict[str, set[str]]) -> None:
    reused = {name: reused.get(name, set()) for name in {*old, *reused}}
    gone = folders.to_delete(old, reused)
    assert gone <= old
    assert not any(used & gone for name, used in reused.items() if name not in gone)
    kept_though_old = old - gone  # not one too many
    assert all(any(name in used for other, used in reused.items() if other not in gone and other != name) for name in kept_though_old)


def test_the_folder_of_a_job_that_did_not_say_where_it_is_is_found_by_its_name(tmp_path: Path) -> None:
    nights = Nights(tmp_path)
    (tmp_path / "job.yaml").write_text(yaml.safe_dump({**toy.job(tmp_path), "output": "out"}))
    firing = Firing("nightly", 3600, "running")
    assert folders.find(nights.schedule, firing) is None
    there = nights.job(f"{firing.job_name}-0123456789ab", finished=False)
    nights.job(f"{firing.job_name}x-0123456789ab")
    assert folders.find(nights.schedule, firing) == str(there)
