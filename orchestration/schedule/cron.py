"""When a schedule fires: a cron expression in a time zone, with the clock changes of that zone."""

from __future__ import annotations

import difflib
import re
from datetime import UTC, datetime, timedelta
from functools import cached_property
from zoneinfo import ZoneInfo, available_timezones

import tzlocal
from apscheduler.triggers.cron import CronTrigger

EXPECTED = (
    "expected five fields: minute (0-59), hour (0-23), day of month (1-31), month (1-12 or jan-dec), day of week (0-7 or sun-sat; 0 and 7 are "
    'Sunday); each may be *, a list 1,15, a range 1-5 or a step */10. Every night at two: "0 2 * * *"'
)
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_FIRST_LOOK_S = 60


class ScheduleError(ValueError):
    """Something about a schedule that cannot be meant; says what to write instead (exit code 64)."""


class Cron:
    """Times at which a cron expression fires, as whole unix seconds.

    Clock changes as in cron itself: where hours are named (`30 2 * * *`), a time that the clock jumps over fires right after the jump, and a
    time that it shows twice fires the first time only; where every hour is meant (`*/5 * * * *`), real time counts. Day of month and day of
    week both given: either. Raises ScheduleError.
    """

    def __init__(self, expression: str, timezone: str) -> None:
        self.expression, self.zone = " ".join(expression.split()), zone(timezone)
        fields = self.expression.split(" ")
        if len(fields) != 5:
            raise ScheduleError(f"--cron {expression!r} has {len(fields)} fields; {EXPECTED}")
        minute, hour, day, month, weekday = fields
        self._wall_clock = not hour.startswith("*")
        weekday = ",".join(map(_weekdays, weekday.split(",")))
        try:
            if "*" in (day[0], weekday[0]):
                self._triggers = [self._trigger(minute, hour, day, month, weekday)]
            else:
                self._triggers = [self._trigger(minute, hour, day, month, "*"), self._trigger(minute, hour, "*", month, weekday)]
        except ValueError as error:
            raise ScheduleError(f"--cron {expression!r}: {error}; {EXPECTED}") from error

    @cached_property
    def ever(self) -> bool:
        """False for a day that no calendar has, such as the 30th of February."""
        return self.after(datetime.now(UTC).timestamp()) is not None

    def after(self, time: float) -> int | None:
        """The first time later than `time`; None if there is none."""
        found = [t for t in (self._after(trigger, time) for trigger in self._triggers) if t is not None]
        return min(found, default=None)

    def latest(self, after: float, until: float) -> int | None:
        """The last time in (after, until]; None if there is none. Looks back from `until`, so that a long pause costs little."""
        look = _FIRST_LOOK_S
        while True:
            begin = max(after, until - look)
            last, found = None, self.after(begin)
            while found is not None and found <= until:
                last, found = found, self.after(found)
            if last is not None or begin <= after:
                return last
            look *= 2

    def _trigger(self, minute: str, hour: str, day: str, month: str, weekday: str) -> CronTrigger:
        zone = UTC if self._wall_clock else self.zone  # UTC: the trigger sees what the clock on the wall shows, without its changes
        return CronTrigger(minute=minute, hour=hour, day=day, month=month, day_of_week=weekday, timezone=zone)

    def _after(self, trigger: CronTrigger, time: float) -> int | None:
        now = datetime.fromtimestamp(time // 1 + 1, self.zone)  # a second later: the trigger may answer with the moment it is given
        if not self._wall_clock:
            found = trigger.get_next_fire_time(None, now)
            return None if found is None else int(found.timestamp())
        wall = now.replace(tzinfo=UTC, fold=0)
        while True:
            found = trigger.get_next_fire_time(None, wall)
            if found is None:
                return None
            moment = _first_showing(found.replace(tzinfo=None), self.zone)
            if moment > time:
                return moment
            wall = found + timedelta(seconds=1)


def _first_showing(wall: datetime, zone: ZoneInfo) -> int:
    """When a clock of the zone first shows this time or a later one: of two showings the first, of a time jumped over the end of the jump."""
    early, late = (int(wall.replace(tzinfo=zone, fold=fold).timestamp()) for fold in (1, 0))
    if early >= late:
        return late
    offset = datetime.fromtimestamp(late, zone).utcoffset()
    while early + 1 < late:
        middle = (early + late) // 2
        if datetime.fromtimestamp(middle, zone).utcoffset() == offset:
            late = middle
        else:
            early = middle
    return late


def _weekdays(part: str) -> str:
    """Cron counts days from Sunday, APScheduler from Monday: numbers and ranges become names, which both understand."""
    found = re.fullmatch(r"(\w+)(?:-(\w+))?(?:/(\d+))?", part)
    if found is None:
        return part  # `*`, `*/2` or a mistake, which the trigger names
    first, last = _weekday(found[1]), _weekday(found[2] or found[1])
    step = int(found[3] or 1)
    if first is None or last is None or step < 1 or (found[3] and not found[2]):
        raise ScheduleError(f"--cron: {part!r} is no day of the week; {EXPECTED}")
    last += 7 if last < first else 0  # fri-mon; sat-7
    return ",".join(_DAYS[day % 7] for day in range(first, last + 1, step))


def _weekday(word: str) -> int | None:
    if word.lower() in _DAYS:
        return _DAYS.index(word.lower())
    return int(word) if word in tuple("01234567") else None


def zone(name: str) -> ZoneInfo:
    """A time zone by its IANA name. Raises ScheduleError with the nearest known name."""
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        cities = {z.rsplit("/", 1)[-1].lower(): z for z in available_timezones()} | {z.lower(): z for z in available_timezones()}
        near = difflib.get_close_matches(name.lower(), cities, n=1)
        hint = f"did you mean `{cities[near[0]]}`?" if near else "write an IANA name, such as Europe/Berlin or UTC"
        raise ScheduleError(f"--timezone {name}: unknown; {hint}") from None


def local_timezone() -> str:
    """The IANA name of this machine's time zone; UTC where it has none."""
    return tzlocal.get_localzone_name() or "UTC"
