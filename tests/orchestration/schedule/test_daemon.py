"""Never twice, never lost: with a pretended clock, pretended processes, and the real store. Real processes: tests/faults/test_schedule.py."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestration.schedule import daemon as daemons
from orchestration.schedule.daemon import Daemon
from orchestration.schedule.firing import iso
from tests.orchestration.schedule.world import START, World

HOUR = 3600.0


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def looks(*watchers: Daemon, times: int = 2) -> None:
    for _ in range(times):
        for watcher in watchers:
            watcher.look()


def test_a_firing_starts_at_its_time_and_ends_with_what_its_job_said(world: World) -> None:
    world.schedule()
    daemon = world.daemon()
    daemon.look()
    assert world.started == []  # nothing is due when a schedule is added
    world.passes(1260)
    looks(daemon)
    assert [job.name for job in world.started] == ["nightly-20261124T070000Z"]
    world.running[0].end(2)
    looks(daemon)
    (firing,) = world.firings()
    assert (firing.state, firing.exit_code, firing.ok, firing.failed) == ("finished", 2, 3, 0)
    assert firing.folder == "/out/nightly-20261124T070000Z-000000000000"


def test_two_daemons_on_one_store_start_a_firing_once(world: World) -> None:
    world.schedule()
    first, second = world.daemon(), world.daemon("elsewhere")
    for _ in range(5):
        world.passes(HOUR)
        looks(first, second)
        world.running[0].end(0)
        looks(second, first)
    assert len(world.started) == 5
    assert [f.state for f in world.firings()] == ["finished"] * 5


def test_times_at_which_no_daemon_ran_are_made_up_for_by_one_firing(world: World) -> None:
    world.schedule()
    world.passes(72 * HOUR)
    looks(world.daemon())
    assert [job.name for job in world.started] == ["nightly-20261127T060000Z"]
    (firing,) = world.firings()
    assert firing.missed_since is not None
    assert iso(firing.missed_since) == "2026-11-24T07:00:00Z"


def test_a_firing_waits_for_the_one_before_it_and_those_that_wait_become_one(world: World) -> None:
    world.schedule()
    daemon = world.daemon()
    for _ in range(4):
        world.passes(HOUR)
        looks(daemon)
    assert len(world.started) == 1
    assert [f.state for f in world.firings()] == ["running", "coalesced", "coalesced", "due"]
    world.running[0].end(0)
    looks(daemon)
    assert [job.name[8:] for job in world.started] == ["20261124T070000Z", "20261124T100000Z"]


def test_schedules_do_not_wait_for_each_other(world: World) -> None:
    world.schedule("one")
    world.schedule("two")
    world.passes(HOUR)
    looks(world.daemon())
    assert len(world.running) == 2


@pytest.mark.parametrize("job_survives", [True, False])
def test_a_firing_whose_daemon_was_killed_is_finished_by_the_next_one(world: World, job_survives: bool) -> None:
    world.schedule()
    killed = world.daemon()
    world.passes(HOUR)
    looks(killed)
    world.kill(killed)
    (job,) = world.running
    if not job_survives:
        job.end(137)
    daemon = world.daemon()
    looks(daemon)
    assert len(world.running) == 1  # the old process goes on, or a new one does
    world.running[0].end(0)
    looks(daemon, times=3)
    assert world.done == {job.name: 1}
    assert [(f.state, f.exit_code, f.ok) for f in world.firings()] == [("finished", 0, 3)]


def test_a_daemon_killed_before_it_wrote_down_the_process_it_started_costs_nothing(world: World) -> None:
    world.schedule()
    killed = world.daemon()
    world.passes(HOUR)
    looks(killed)
    world.kill(killed)
    (firing,) = world.firings("running")
    world.store.change(firing, process=None)
    daemon = world.daemon()
    looks(daemon)
    assert [job.code for job in world.started] == [None, 75]  # its command met the job's lease
    world.running[0].end(0)
    for _ in range(3):
        world.passes(daemons.WAIT_S)
        looks(daemon)
    assert world.done.total() == 1
    assert [f.state for f in world.firings()] == ["finished"]


def test_a_daemon_on_another_machine_is_replaced_only_after_it_has_been_silent(world: World) -> None:
    world.schedule()
    silent = world.daemon("elsewhere")
    world.passes(HOUR)
    looks(silent)
    (job,) = world.running
    job.end(137)  # the other machine lost its power
    daemon = world.daemon()
    looks(daemon)
    assert len(world.started) == 1
    world.passes(daemons.SILENT_S + 1)
    looks(daemon)
    assert [job.process.host for job in world.started] == ["elsewhere", "here"]
    looks(silent)  # it was only asleep
    world.running[0].end(0)
    looks(daemon, silent)
    assert world.done.total() == 1
    assert [f.state for f in world.firings()] == ["finished"]


def test_a_clock_that_is_set_back_fires_nothing_again_and_loses_nothing(world: World) -> None:
    world.schedule()
    daemon = world.daemon()
    for step in (HOUR, HOUR, -1.5 * HOUR, HOUR, HOUR):
        world.now += step
        world.since_boot += 60
        looks(daemon)
        for job in world.running:
            job.end(0)
        looks(daemon)
    assert [job.name[8:] for job in world.started] == ["20261124T070000Z", "20261124T080000Z", "20261124T090000Z"]


def test_a_clock_that_was_years_ahead_for_a_while_silences_no_schedule(world: World) -> None:
    world.schedule()
    daemon = world.daemon()
    for step in (4 * 365 * 24 * HOUR, -4 * 365 * 24 * HOUR, HOUR, HOUR):
        world.now += step
        looks(daemon)
        for job in world.running:
            job.end(0)
        looks(daemon)
    assert [job.name[8:16] for job in world.started] == ["20301123", "20261124", "20261124"]


def test_a_firing_that_stops_on_an_error_is_run_again_some_times(world: World) -> None:
    world.schedule()
    daemon = world.daemon()
    world.passes(HOUR)
    looks(daemon)
    for tries in range(1, daemons.TRIES + 1):
        world.running[0].end(1)
        looks(daemon, times=1)
        assert len(world.started) == tries  # not at once
        world.passes(daemons.WAIT_S * tries)
        looks(daemon, times=1)
    (firing,) = world.firings()
    assert (len(world.started), firing.state, firing.exit_code) == (daemons.TRIES, "finished", 1)


def test_a_bad_job_file_is_not_run_again(world: World) -> None:
    world.schedule()
    daemon = world.daemon()
    world.passes(HOUR)
    looks(daemon)
    world.running[0].end(64)
    looks(daemon)
    assert [(f.state, f.exit_code, f.describe()["meaning"]) for f in world.firings()] == [
        ("finished", 64, "job file, manifest or command line is wrong")
    ]


def test_what_cannot_be_started_is_an_error_like_others(world: World) -> None:
    world.schedule()
    daemon = world.daemon()

    def launch(*_: object) -> None:
        raise FileNotFoundError(2, "No such file or directory")

    daemon.launch = launch  # pyright: ignore[reportAttributeAccessIssue]
    world.passes(HOUR)
    for _ in range(daemons.TRIES + 1):
        looks(daemon)
        world.passes(daemons.WAIT_S * daemons.TRIES)
    assert [(f.state, f.exit_code) for f in world.firings()] == [("finished", 1)]


def test_a_schedule_that_is_removed_finishes_what_runs_and_starts_nothing_more(world: World) -> None:
    world.schedule()
    daemon = world.daemon()
    for _ in range(2):
        world.passes(HOUR)
        looks(daemon)
    world.store.remove("nightly")
    world.running[0].end(0)
    for _ in range(2):
        world.passes(HOUR)
        looks(daemon)
    assert len(world.started) == 1
    assert [f.state for f in world.firings()] == ["finished"]


events = st.lists(
    st.one_of(
        st.tuples(st.just("later"), st.integers(1, 5 * 3600)),
        st.tuples(st.just("back"), st.integers(1, 3 * 3600)),
        st.tuples(st.just("look"), st.integers(0, 1)),
        st.tuples(st.just("kill"), st.integers(0, 1)),
        st.tuples(st.just("end"), st.sampled_from([0, 0, 2, 1, 137])),
    ),
    min_size=5,
    max_size=25,
)


@settings(max_examples=25)
@given(events=events, hosts=st.sampled_from([("here", "here"), ("here", "elsewhere")]))
def test_whatever_happens_every_time_is_covered_and_no_job_is_done_twice(events: list[tuple[str, int]], hosts: tuple[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        schedule = world.schedule(cron="*/20 * * * *")
        watchers, latest_seen = [world.daemon(host) for host in hosts], START
        for event, value in events:
            match event:
                case "later":
                    world.passes(value)
                case "back":
                    world.now -= value
                case "look":
                    watchers[value].look()
                    latest_seen = max(latest_seen, world.now)
                case "kill":
                    world.kill(watchers[value])
                    watchers[value] = world.daemon(hosts[value])
                case _ if world.running:
                    world.running[0].end(value)
                case _:
                    pass
        for _ in range(8):  # peace at last, for less than the time between two firings
            world.since_boot += daemons.WAIT_S * daemons.TRIES
            world.now += 2 * daemons.SILENT_S if world.store.firings(states=("running",)) else 0
            looks(*watchers, times=1)
            latest_seen = max(latest_seen, world.now)
            for job in world.running:
                job.end(0)
        firings = world.firings()
        assert {f.state for f in firings} <= {"finished", "coalesced"}
        assert max(world.done.values(), default=1) == 1
        assert len({f.key for f in firings}) == len(firings)
        time = schedule.times.after(START)
        finished = [f.fire_time for f in firings if f.state == "finished"]
        while time is not None and time <= latest_seen:
            assert any(t >= time for t in finished), iso(time)
            time = schedule.times.after(time)
