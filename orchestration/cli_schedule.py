"""`calotype schedule`: jobs that run by themselves."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from dataclasses import asdict
from typing import Annotated, Any

import typer

from orchestration.terminal import OK, AsJson, JobFile, Sets, err, out, progress

app = typer.Typer(no_args_is_help=True, help="Jobs that run by themselves, at times that you name.")

Name = Annotated[str, typer.Argument(help="The schedule's name.")]
StoreUrl = Annotated[
    str | None,
    typer.Option(
        "--store",
        envvar="CALOTYPE_SCHEDULES",
        show_envvar=False,
        help="SQLAlchemy URL of the schedules; else CALOTYPE_SCHEDULES, else a SQLite file among your data.",
    ),
]


@app.command()
def add(
    name: Name,
    job: JobFile,
    cron: Annotated[str, typer.Option("--cron", help='When: minute, hour, day of month, month, day of week, such as "0 2 * * *".')],
    timezone: Annotated[str | None, typer.Option("--timezone", help="Of the times, such as Europe/Berlin; else this machine's.")] = None,
    sets: Sets = None,
    keep: Annotated[int | None, typer.Option("--keep", help="Delete finished jobs beyond the N newest; else none.", metavar="N")] = None,
    on_failure: Annotated[
        str | None, typer.Option("--on-failure", help="A command for firings that do not end with 0; gets JSON on its input.")
    ] = None,
    webhook: Annotated[
        str | None, typer.Option("--webhook", help="An address to post that JSON to; may hold $VARIABLES of the daemon's environment.")
    ] = None,
    no_check: Annotated[bool, typer.Option("--no-check", help="Do not try two rows of the job first.")] = False,
    store: StoreUrl = None,
    as_json: AsJson = False,
) -> int:
    """Run a job file again and again. `calotype schedule run` must run for it."""
    from orchestration.job import load
    from orchestration.schedule import hooks
    from orchestration.schedule.cron import ScheduleError, local_timezone
    from orchestration.schedule.firing import Firing, Schedule

    schedule = Schedule(
        name=name,
        job=str(job.absolute()),
        directory=os.getcwd(),
        cron=cron,
        timezone=timezone or local_timezone(),
        sets=tuple(sets or ()),
        keep=keep,
        on_failure=on_failure,
        webhook=webhook,
    )
    hooks.check(schedule)
    now = time.time()
    times = _next_times(schedule, now, 3)
    if not times:
        raise ScheduleError(f"--cron {cron!r}: no calendar has such a day, it would never fire")
    spec = load(job, [*schedule.sets, f"name={Firing(name, times[0], 'due').job_name}"], schedule=name)
    opened = _store(store)
    if not no_check:
        _check(spec)
    opened.add(schedule, now)
    if as_json:
        out.print_json(json.dumps({**_facts(schedule, now), "store": opened.name}))
        return OK
    out.print(f"{name} added to {opened.name}; next: {', '.join(_local(schedule, t) for t in times)}", markup=False)
    out.print("`calotype schedule run` runs it; keep that running", markup=False)
    return OK


@app.command("list")
def list_schedules(store: StoreUrl = None, as_json: AsJson = False) -> int:
    """The schedules, and when they fire next."""
    from orchestration.schedule.firing import iso

    opened, now = _store(store), time.time()
    found = opened.schedules()
    if as_json:
        out.print_json(json.dumps([_facts(schedule, now) for schedule in found]))
        return OK
    table = [["schedule", "cron", "timezone", "next", "last", "job file"]]
    for schedule in found:
        last = next(iter(opened.firings(schedule.name, limit=1)), None)
        row = [
            schedule.name,
            schedule.cron,
            schedule.timezone,
            _local(schedule, _next_times(schedule, now, 1)[0]),
            "" if last is None else f"{iso(last.fire_time)} {_outcome(last)}",
            schedule.job,
        ]
        table.append(row)
    _print_columns(table)
    return OK


@app.command()
def remove(name: Name, store: StoreUrl = None) -> int:
    """No more firings; one that runs is finished, the history and the jobs stay."""
    _store(store).remove(name)
    out.print(f"{name} removed", markup=False)
    return OK


@app.command()
def run(store: StoreUrl = None) -> int:
    """The daemon: starts what is due, and goes on with what a daemon before it left. Ctrl-C ends it, and not the jobs that run."""
    from orchestration.schedule import store as stores
    from orchestration.schedule.daemon import Daemon
    from orchestration.schedule.launch import Launcher, log_folder, this_program
    from orchestration.schedule.process import Process

    opened = _store(store)
    logs = log_folder(store or stores.default_url())
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", force=True)
    logging.getLogger("orchestration.schedule").setLevel(logging.INFO)
    err.print(f"{len(opened.schedules())} schedules in {opened.name}; logs of firings in {logs}; Ctrl-C ends the daemon", markup=False)
    left = Daemon(opened, Launcher(logs, this_program()), Process.of(os.getpid())).run(stop)
    if left:
        err.print(f"{left} firings go on by themselves; the next daemon takes them up", markup=False)
    return OK


@app.command()
def history(
    name: Annotated[str | None, typer.Argument(help="Only of this schedule.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="The latest N.")] = 30,
    store: StoreUrl = None,
    as_json: AsJson = False,
) -> int:
    """What has fired: when, how it ended, how many rows, where the job and its page are."""
    opened = _store(store)
    found = opened.firings(name, limit=limit)
    if name is not None and not found:
        opened.get(name)  # raises for a name that never was
    if as_json:
        out.print_json(json.dumps([firing.describe() for firing in found]))
        return OK
    table = [["schedule", "fire time", "outcome", "ok", "failed", "minutes", "page or job"]]
    for firing in found:
        facts = firing.describe()
        minutes = (firing.finished - firing.started) / 60 if firing.finished and firing.started else None
        row = [
            firing.schedule,
            facts["fire_time"],
            _outcome(firing),
            "" if firing.ok is None else str(firing.ok),
            "" if firing.failed is None else str(firing.failed),
            "" if minutes is None else f"{minutes:.1f}",
            "deleted, only the newest are kept" if firing.retired else facts["review"] or firing.folder or firing.log or "",
        ]
        table.append(row)
    _print_columns(table)
    return OK


def _print_columns(table: list[list[str]]) -> None:
    """Rows as lines, never cut off or broken to fit a screen: a path that is not whole leads nowhere."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        out.print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip(), markup=False)


def _store(url: str | None) -> Any:
    from orchestration.schedule.store import Store, default_url

    return Store(url or default_url())


def _check(spec: Any) -> None:
    """What `calotype check` says of the job, on two rows. Raises ScheduleError where it could not run."""
    from orchestration.check import check
    from orchestration.schedule.cron import ScheduleError

    with progress(spec.name, quiet=True):
        report = check(spec, rows=2)
    if not report.runnable:
        raise ScheduleError("\n".join([*report.lines(), "no row that was tried ended well; mend the job, or pass --no-check"]))


def _next_times(schedule: Any, now: float, count: int) -> list[int]:
    found, time_ = list[int](), now
    while len(found) < count and (after := schedule.times.after(time_)) is not None:
        found.append(after)
        time_ = after
    return found


def _local(schedule: Any, time_: float) -> str:
    from datetime import datetime

    return datetime.fromtimestamp(time_, schedule.times.zone).strftime("%Y-%m-%d %H:%M %Z")


def _outcome(firing: Any) -> str:
    if firing.state != "finished":
        return f"running, stopped before: {firing.tries}" if firing.state == "running" and firing.tries else firing.state
    hook = "" if firing.hook in (None, "due", "done") else f"; hook: {firing.hook}"
    return f"{firing.exit_code}: {firing.describe()['meaning']}{hook}"


def _facts(schedule: Any, now: float) -> dict[str, Any]:
    from orchestration.schedule.firing import iso

    facts = {k: v for k, v in asdict(schedule).items() if k != "created"}
    return {**facts, "next": [iso(t) for t in _next_times(schedule, now, 3)]}
