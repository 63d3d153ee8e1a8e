"""The job folders of firings: finding them, and deleting old ones without taking anything from those that stay."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from contextlib import chdir

from orchestration.folder import JobFolder, jobs
from orchestration.schedule.firing import Firing, Schedule
from orchestration.schedule.store import Store

log = logging.getLogger(__name__)


def find(schedule: Schedule, firing: Firing) -> str | None:
    """The folder of a firing that did not say where it is, by the job's name; None if there is none."""
    from orchestration.job import JobFileError, load  # not needed while all goes well, and not light

    try:
        with chdir(schedule.directory):
            output = load(schedule.job, [*schedule.sets, f"name={firing.job_name}"], schedule=schedule.name).output
            found = [folder.uri for folder in jobs(output) if folder.name.rpartition("-")[0] == firing.job_name]
    except (JobFileError, OSError):
        return None
    return found[-1] if found else None


def retire(store: Store, schedule: Schedule, now: float) -> list[str]:
    """Delete finished jobs of a schedule beyond its `keep` newest; returns the folders that went.

    Stays: a job that is not finished, and one whose rows any job below the same outputs reuses, unless that goes too. What is to go is
    noted first, so that a deletion that was cut off is completed the next time.
    """
    if schedule.keep is None:
        return []
    ended = [f for f in store.firings(schedule.name, states=("finished",)) if f.folder is not None]
    finished = [f for f in ended if f.retired is None and JobFolder(str(f.folder)).finished]
    old = {str(f.folder) for f in finished[schedule.keep :]}
    for uri in to_delete(old, _reused_below({_parent(uri) for uri in old})):
        firing = next(f for f in finished if f.folder == uri)
        store.change(firing, retired=now)
    gone = []
    for firing in store.firings(schedule.name, states=("finished",)):
        if firing.retired is None or firing.folder is None:
            continue
        folder = JobFolder(firing.folder)
        try:
            if folder.fs.exists(folder.path):
                folder.fs.rm(folder.path, recursive=True)
        except OSError as error:
            log.warning("%s: %s could not be deleted, tried again after the next firing: %s", schedule.name, folder.uri, error)
            continue
        store.change(firing, folder=None)
        log.info("%s: deleted %s, only the newest %d stay", schedule.name, folder.uri, schedule.keep)
        gone.append(folder.uri)
    return gone


def to_delete(old: Iterable[str], reused: Mapping[str, set[str]]) -> set[str]:
    """Of the old jobs, those that no job that stays reuses, also not through others. `reused`: for each job, the jobs that it takes rows of."""
    old = set(old)
    stay, new = set[str](), set(reused) - old
    while new:
        stay |= new
        new = {used for job in new for used in reused.get(job, set())} - stay
    return old - stay


def _reused_below(outputs: Iterable[str]) -> dict[str, set[str]]:
    return {folder.uri: reused_by(folder) for output in outputs for folder in jobs(output)}


def reused_by(folder: JobFolder) -> set[str]:
    """The folders of the jobs whose rows a job reuses, as its plan lists them."""
    table = folder.read_table(["plan/reused.parquet"], ["folder"]) if folder.exists("plan/reused.parquet") else None
    return set() if table is None else {str(uri).rstrip("/") for uri in table["folder"].unique().to_pylist()}


def _parent(uri: str) -> str:
    return uri.rstrip("/").rpartition("/")[0]
