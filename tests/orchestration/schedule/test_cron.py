from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestration.schedule.cron import Cron, ScheduleError, local_timezone

BERLIN = "Europe/Berlin"


def unix(text: str, zone: str = "UTC") -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


def times(cron: str, zone: str, after: str, count: int) -> list[str]:
    """The next times as the clock on the wall of the zone shows them, with their offset from UTC."""
    schedule, found, time = Cron(cron, zone), list[str](), unix(after, zone)
    for _ in range(count):
        following = schedule.after(time)
        assert following is not None
        time = following
        found.append(datetime.fromtimestamp(time, ZoneInfo(zone)).isoformat(timespec="minutes"))
    return found


def test_every_night_at_two_is_the_same_hour_on_the_wall_in_summer_and_winter() -> None:
    assert times("0 4 * * *", BERLIN, "2026-10-24T12:00", 2) == ["2026-10-25T04:00+01:00", "2026-10-26T04:00+01:00"]
    assert times("0 4 * * *", BERLIN, "2026-03-28T12:00", 2) == ["2026-03-29T04:00+02:00", "2026-03-30T04:00+02:00"]


def test_a_time_that_the_clock_jumps_over_fires_right_after_the_jump() -> None:
    assert times("15,45 2 * * *", BERLIN, "2026-03-28T12:00", 3) == [
        "2026-03-29T03:00+02:00",
        "2026-03-30T02:15+02:00",
        "2026-03-30T02:45+02:00",
    ]


def test_a_time_that_the_clock_shows_twice_fires_once() -> None:
    assert times("30 2 * * *", BERLIN, "2026-10-24T12:00", 2) == ["2026-10-25T02:30+02:00", "2026-10-26T02:30+01:00"]


def test_every_hour_is_every_real_hour_also_when_the_clock_changes() -> None:
    assert times("0 * * * *", BERLIN, "2026-10-25T01:30", 3) == [
        "2026-10-25T02:00+02:00",
        "2026-10-25T02:00+01:00",
        "2026-10-25T03:00+01:00",
    ]
    assert times("0 * * * *", BERLIN, "2026-03-29T00:30", 2) == ["2026-03-29T01:00+01:00", "2026-03-29T03:00+02:00"]


@pytest.mark.parametrize(
    ("weekdays", "days"),
    [
        ("0", [29]),
        ("7", [29]),
        ("sun", [29]),
        ("1-5", [24, 25, 26, 27, 30]),
        ("fri-mon", [27, 28, 29, 30]),
        ("1-5/2", [25, 27, 30]),
        ("SAT,3", [25, 28]),
    ],
)
def test_days_of_the_week_are_counted_from_sunday(weekdays: str, days: list[int]) -> None:
    found = times(f"0 2 * * {weekdays}", "UTC", "2026-11-24T00:00", len(days))  # a Tuesday
    assert [int(t[8:10]) for t in found] == days


def test_day_of_month_and_day_of_week_both_given_mean_either() -> None:
    assert [t[5:10] for t in times("0 2 13 * 5", "UTC", "2026-11-27T12:00", 4)] == ["12-04", "12-11", "12-13", "12-18"]


@pytest.mark.parametrize(
    ("cron", "message"),
    [
        ("61 2 * * *", r"61.* is higher than the maximum value .*expected five fields: minute \(0-59\)"),
        ("0 2 * *", "has 4 fields; expected five fields"),
        ("", "expected five fields"),
        ("x 2 * * *", r'"x" for field "minute"; expected five'),
        ("0 2 * * 8", "'8' is no day of the week; expected five"),
        ("0 2 * * 1/2", "is no day of the week"),
        ("*/0 2 * * *", "expected five fields"),
    ],
)
def test_a_bad_expression_is_refused_with_what_is_expected(cron: str, message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        Cron(cron, "UTC")


@pytest.mark.parametrize(
    ("zone", "message"),
    [
        ("Europe/Berln", "did you mean `Europe/Berlin`"),
        ("berlin", "did you mean `Europe/Berlin`"),
        ("nowhere at all", "such as Europe/Berlin or UTC"),
        ("../etc", "IANA"),
    ],
)
def test_an_unknown_time_zone_is_refused_with_the_nearest(zone: str, message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        Cron("0 2 * * *", zone)


def test_a_day_that_no_calendar_has_is_known_never_to_come() -> None:
    assert not Cron("0 0 30 2 *", "UTC").ever
    assert Cron("0 0 29 2 *", "UTC").ever
    assert Cron("0 2 * * *", local_timezone()).ever


def test_the_latest_time_is_found_without_counting_all_before_it() -> None:
    cron = Cron("* * * * *", "UTC")
    assert cron.latest(0, unix("2026-11-24T10:20:30")) == unix("2026-11-24T10:20")
    assert cron.latest(unix("2026-11-24T10:20"), unix("2026-11-24T10:20:59")) is None
    assert Cron("0 0 29 2 *", "UTC").latest(0, unix("2026-11-24T10:20")) == unix("2024-02-29T00:00")


def by_hand(minutes: set[int], hours: set[int] | None, zone: ZoneInfo, begin: float, end: float) -> list[float]:
    """The same by looking at every minute: what does the clock on the wall show, has it shown it before, what did it jump over?"""
    found, time = [], begin + 60
    while time <= end:
        wall, before = (datetime.fromtimestamp(t, zone) for t in (time, time - 60))
        skipped = before.replace(tzinfo=None) + timedelta(minutes=1)
        shown = [] if hours is not None and wall.fold else [wall]
        while hours is not None and skipped < wall.replace(tzinfo=None):
            shown.append(skipped)
            skipped += timedelta(minutes=1)
        if any(w.minute in minutes and (hours is None or w.hour in hours) for w in shown):
            found.append(time)
        time += 60
    return found


@settings(max_examples=40)
@given(
    minutes=st.sets(st.integers(0, 59), min_size=1, max_size=3),
    hours=st.none() | st.sets(st.integers(0, 4), min_size=1, max_size=2),
    start=st.sampled_from(["2026-03-28T22:00", "2026-10-24T22:00", "2026-04-04T12:00", "2026-10-03T12:00", "2026-06-01T20:00"]),
    zone=st.sampled_from([BERLIN, "Australia/Lord_Howe", "UTC"]),  # Lord Howe's clock moves by half an hour
    shift=st.integers(0, 600),
)
def test_times_are_those_found_by_looking_at_every_minute(
    minutes: set[int], hours: set[int] | None, start: str, zone: str, shift: int
) -> None:
    begin = unix(start) + 60 * shift
    end = begin + 10 * 3600
    listed = ",".join(map(str, sorted(minutes)))
    cron = Cron(f"{listed} {'*' if hours is None else ','.join(map(str, sorted(hours)))} * * *", zone)
    found, time = list[float](), begin
    while (following := cron.after(time)) is not None and following <= end:
        found.append(following)
        time = following
    expected = by_hand(minutes, hours, ZoneInfo(zone), begin, end)
    if hours is not None or zone != "Australia/Lord_Howe":  # a jump by half an hour moves "every hour at 15" by half an hour, once
        assert found == expected
    assert cron.latest(begin, end) == (found[-1] if found else None)
    assert all(datetime.fromtimestamp(t, UTC).second == 0 for t in found)
