"""Schedules and their firings in a database. Every change of state is one transaction that first takes its schedule's row.

A firing is a row, unique by schedule and fire time: that is why none happens twice, whoever watches the clock and whatever the clock does.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from orchestration.schedule.cron import ScheduleError
from orchestration.schedule.firing import Firing, Schedule, iso

_TABLES = sa.MetaData()
_SCHEDULES = sa.Table(
    "calotype_schedules",
    _TABLES,
    sa.Column("name", sa.String(64), primary_key=True),
    *(sa.Column(name, sa.Text) for name in ("job", "directory", "cron", "timezone", "sets", "on_failure", "webhook")),
    sa.Column("keep", sa.Integer),
    sa.Column("created", sa.Double),
    sa.Column("seen", sa.Double, nullable=False),  # up to where on the clock its times have become firings
    sa.Column("removed", sa.Boolean, nullable=False),
    sa.Column("turn", sa.Integer, nullable=False),  # counts transactions; writing it takes the row
)
_FIRINGS = sa.Table(
    "calotype_firings",
    _TABLES,
    sa.Column("schedule", sa.String(64), primary_key=True),
    sa.Column("fire_time", sa.BigInteger, primary_key=True),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("missed_since", sa.BigInteger),
    *(sa.Column(name, sa.Text) for name in ("daemon", "process", "folder", "log", "hook")),
    *(sa.Column(name, sa.Double) for name in ("heartbeat", "started", "finished", "retired")),
    sa.Column("tries", sa.Integer, nullable=False, default=0),
    *(sa.Column(name, sa.Integer) for name in ("exit_code", "ok", "failed")),
)
_FIRING = _FIRINGS.c


class Store:
    """Schedules and firings at a SQLAlchemy URL; the tables are made where they are missing. Raises ScheduleError for a URL that can't be used."""

    def __init__(self, url: str) -> None:
        try:
            parsed = make_url(url)
            self.name = parsed.render_as_string(hide_password=True)
            if parsed.drivername.startswith("sqlite") and parsed.database:
                Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
            waits = {"timeout": 30} if parsed.drivername == "sqlite" else {}  # seconds that a writer waits for another
            self.engine: Engine = sa.create_engine(parsed, connect_args=waits, pool_pre_ping=True)
            self._make_tables()
        except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
            raise ScheduleError(
                f"--store: not a database that can be used ({str(error).splitlines()[0]}); write a SQLAlchemy URL whose driver is installed, "
                "such as sqlite:////var/lib/calotype/schedules.db or postgresql+psycopg://user@host/database"
            ) from error
        except (SQLAlchemyError, OSError) as error:
            raise ScheduleError(f"--store {self.name} can't be opened: {getattr(error, 'orig', error)}") from error

    def add(self, schedule: Schedule, now: float) -> None:
        """Add a schedule; its first time is the next one after `now`. Raises ScheduleError if there is one of this name."""
        found = self._row(schedule.name)
        if found is not None and not found["removed"]:
            raise ScheduleError(
                f"there is a schedule {schedule.name}; `calotype schedule remove {schedule.name}` first, or take another name"
            )
        open_firing = next(iter(self.firings(schedule.name, states=("due", "running"))), None)
        if open_firing is not None:
            raise ScheduleError(
                f"an earlier schedule {schedule.name} was removed, but its firing of {iso(open_firing.fire_time)} still runs; "
                "wait for it, or take another name"
            )
        values = {name: getattr(schedule, name) for name in _names(Schedule)} | {"sets": json.dumps(schedule.sets), "created": now}
        with self.engine.begin() as connection:
            connection.execute(_SCHEDULES.delete().where(_SCHEDULES.c.name == schedule.name))
            connection.execute(_SCHEDULES.insert().values(**values, seen=now, removed=False, turn=0))

    def remove(self, name: str) -> None:
        """No more firings. One that waits is dropped, one that runs is finished; what has been stays in the history. Raises ScheduleError."""
        self.get(name)
        with self._taken(name) as connection:
            connection.execute(_SCHEDULES.update().where(_SCHEDULES.c.name == name).values(removed=True))
            connection.execute(_FIRINGS.delete().where(_FIRING.schedule == name, _FIRING.state == "due"))

    def schedules(self, *, removed: bool = False) -> list[Schedule]:
        """Schedules by name; with `removed` also those whose last firing may still run."""
        query = sa.select(_SCHEDULES).order_by(_SCHEDULES.c.name)
        with self.engine.connect() as connection:
            rows = connection.execute(query if removed else query.where(_SCHEDULES.c.removed.is_(False))).mappings().all()
        return [_schedule(cast("Mapping[str, Any]", row)) for row in rows]

    def get(self, name: str) -> Schedule:
        """A schedule. Raises ScheduleError with the nearest name for one that is not there."""
        row = self._row(name)
        if row is None or row["removed"]:
            known = [s.name for s in self.schedules()]
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean `{near[0]}`?" if near else f"schedules are {', '.join(known)}" if known else "there are none"
            raise ScheduleError(f"no schedule {name} in {self.name}; {hint}")
        return _schedule(row)

    def firings(
        self, name: str | None = None, *, states: Sequence[str] = (), hook: str | None = None, limit: int | None = None
    ) -> list[Firing]:
        """Firings, the latest first."""
        query = sa.select(_FIRINGS).order_by(_FIRING.fire_time.desc(), _FIRING.schedule).limit(limit)
        if name is not None:
            query = query.where(_FIRING.schedule == name)
        if states:
            query = query.where(_FIRING.state.in_(states))
        if hook is not None:
            query = query.where(_FIRING.hook == hook)
        with self.engine.connect() as connection:
            return [Firing(**row) for row in connection.execute(query).mappings()]

    def note_due(self, schedule: Schedule, now: float) -> Firing | None:
        """Make a firing of the latest time that has come since the last look, if any.

        Earlier times that nobody saw are named in its `missed_since`; a firing that still waits is coalesced into it. A clock that was set
        back is followed: times that have fired already do not fire again.
        """
        seen = self._row(schedule.name)
        if seen is None or seen["removed"] or seen["seen"] <= now < (schedule.times.after(seen["seen"]) or float("inf")):
            return None
        with self._taken(schedule.name) as connection:
            seen = connection.scalar(
                sa.select(_SCHEDULES.c.seen).where(_SCHEDULES.c.name == schedule.name, _SCHEDULES.c.removed.is_(False))
            )
            if seen is None:
                return None
            connection.execute(_SCHEDULES.update().where(_SCHEDULES.c.name == schedule.name).values(seen=now))
            latest = schedule.times.latest(seen, now) if seen < now else None
            if latest is None or _one(connection, (schedule.name, latest)) is not None:
                return None
            first = schedule.times.after(seen)
            firing = Firing(schedule.name, latest, "due", missed_since=first if first != latest else None)
            waiting = (_FIRING.schedule == schedule.name) & (_FIRING.state == "due") & (_FIRING.fire_time < latest)
            connection.execute(_FIRINGS.update().where(waiting).values(state="coalesced"))
            connection.execute(_FIRINGS.insert().values(**_values(firing)))
            return firing

    def claim(self, name: str, daemon: str, now: float) -> Firing | None:
        """The schedule's firing that is due, now running in this daemon's hands; None if none is, or one of the schedule runs."""
        with self._taken(name) as connection:
            unfinished = connection.execute(
                sa.select(_FIRINGS)
                .where(_FIRING.schedule == name, _FIRING.state.in_(("due", "running")))
                .order_by(_FIRING.fire_time.desc())
            ).mappings()
            found = [Firing(**row) for row in unfinished]
            if not found or any(f.state == "running" for f in found):
                return None
            return _change(connection, found[0], state="running", daemon=daemon, heartbeat=now, started=now)

    def adopt(self, firing: Firing, daemon: str, now: float) -> Firing | None:
        """Take over a firing from the daemon that had it; None if that has changed meanwhile."""
        with self._taken(firing.schedule) as connection:
            held = _one(connection, firing.key)
            if held is None or (held.state, held.daemon, held.heartbeat) != (firing.state, firing.daemon, firing.heartbeat):
                return None
            return _change(connection, held, daemon=daemon, process=None, heartbeat=now)

    def change(self, firing: Firing, **values: Any) -> Firing | None:
        """Write facts of a firing that this daemon has; None, and nothing written, if another has taken it over."""
        with self._taken(firing.schedule) as connection:
            held = _one(connection, firing.key)
            return _change(connection, held, **values) if held is not None and held.daemon == firing.daemon else None

    def beat(self, daemon: str, now: float) -> None:
        """Show the daemons of other machines that this one lives."""
        with self.engine.begin() as connection:
            connection.execute(_FIRINGS.update().where(_FIRING.daemon == daemon, _FIRING.state == "running").values(heartbeat=now))

    def _make_tables(self) -> None:
        try:
            _TABLES.create_all(self.engine)
        except SQLAlchemyError:  # another process made them between the look and the making
            _TABLES.create_all(self.engine)

    def _row(self, name: str) -> Mapping[str, Any] | None:
        with self.engine.connect() as connection:
            row = connection.execute(sa.select(_SCHEDULES).where(_SCHEDULES.c.name == name)).mappings().one_or_none()
            return cast("Mapping[str, Any] | None", row)

    @contextmanager
    def _taken(self, name: str) -> Iterator[Connection]:
        """A transaction that begins with a write to the schedule's row, so that all others about this schedule wait, on any database."""
        with self.engine.begin() as connection:
            connection.execute(_SCHEDULES.update().where(_SCHEDULES.c.name == name).values(turn=_SCHEDULES.c.turn + 1))
            yield connection


def default_url() -> str:
    """The store where none is named: CALOTYPE_SCHEDULES, or a SQLite file among this user's data."""
    return os.environ.get("CALOTYPE_SCHEDULES") or f"sqlite:///{data_folder() / 'schedules.db'}"


def data_folder() -> Path:
    """Where this user's calotype keeps what belongs to no job: below XDG_DATA_HOME, or ~/.local/share."""
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "calotype"


def _names(of: type) -> list[str]:
    return [field.name for field in fields(of)]


def _values(firing: Firing) -> dict[str, Any]:
    return {name: getattr(firing, name) for name in _names(Firing)}


def _schedule(row: Mapping[str, Any]) -> Schedule:
    values = {name: row[name] for name in _names(Schedule)}
    return Schedule(**{**values, "sets": tuple(json.loads(row["sets"]))})


def _one(connection: Connection, key: tuple[str, int]) -> Firing | None:
    query = sa.select(_FIRINGS).where(_FIRING.schedule == key[0], _FIRING.fire_time == key[1])
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else Firing(**row)


def _change(connection: Connection, firing: Firing, **values: Any) -> Firing:
    connection.execute(_FIRINGS.update().where(_FIRING.schedule == firing.schedule, _FIRING.fire_time == firing.fire_time).values(**values))
    return Firing(**{**_values(firing), **values})
