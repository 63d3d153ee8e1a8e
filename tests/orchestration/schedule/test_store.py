from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from orchestration.schedule.cron import ScheduleError
from orchestration.schedule.firing import Firing, Schedule
from orchestration.schedule.store import Store, data_folder, default_url

HOUR = 3600.0
NIGHTLY = Schedule("nightly", "/job.yaml", "/", "0 * * * *", "UTC", sets=("a=1", "b=2"), keep=3, on_failure="mail", webhook="$HOOK")


@pytest.fixture
def store() -> Store:
    store = Store("sqlite://")
    store.add(NIGHTLY, 0.0)
    return store


def running(store: Store) -> Firing:
    assert store.note_due(NIGHTLY, HOUR) is not None
    claimed = store.claim("nightly", "host boot 1 born", HOUR)
    assert claimed is not None
    return claimed


def test_a_schedule_comes_back_as_it_was_added(store: Store) -> None:
    assert store.get("nightly") == NIGHTLY
    assert store.schedules() == [NIGHTLY]


def test_of_many_that_look_and_claim_at_once_one_gets_the_firing(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'schedules.db'}"
    Store(url).add(NIGHTLY, 0.0)
    together = Barrier(6)

    def watch(number: int) -> tuple[Firing | None, Firing | None]:
        mine = Store(url)  # as if in a process of its own
        together.wait()
        return mine.note_due(NIGHTLY, HOUR + number), mine.claim("nightly", f"host boot {number} born", HOUR)

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(watch, range(6)))
    assert sum(noted is not None for noted, _ in found) == 1
    assert sum(claimed is not None for _, claimed in found) == 1
    assert [f.state for f in Store(url).firings()] == ["running"]


def test_whoever_lost_a_firing_writes_nothing_to_it(store: Store) -> None:
    mine = running(store)
    taken = store.adopt(mine, "host boot 2 born", 2 * HOUR)
    assert taken is not None
    assert store.change(mine, state="finished", exit_code=1) is None
    assert store.firings() == [taken]


def test_a_firing_is_taken_over_by_one_and_only_as_it_was_seen(store: Store) -> None:
    seen = running(store)
    store.beat("host boot 1 born", HOUR + 30)  # its daemon was only slow
    assert store.adopt(seen, "host boot 2 born", 2 * HOUR) is None
    (again,) = store.firings()
    assert store.adopt(again, "host boot 2 born", 2 * HOUR) is not None
    assert store.adopt(again, "host boot 3 born", 2 * HOUR) is None


def test_a_name_is_free_again_only_when_its_last_firing_has_ended(store: Store) -> None:
    firing = running(store)
    store.remove("nightly")
    assert store.schedules() == []
    with pytest.raises(ScheduleError, match="still runs"):
        store.add(NIGHTLY, 2 * HOUR)
    store.change(firing, state="finished", exit_code=0)
    store.add(NIGHTLY, 2 * HOUR)
    assert len(store.firings("nightly")) == 1  # the history stays


def test_the_store_is_named_by_the_environment_or_lies_among_the_user_s_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALOTYPE_SCHEDULES", "postgresql://x/y")
    assert default_url() == "postgresql://x/y"
    monkeypatch.delenv("CALOTYPE_SCHEDULES")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert default_url() == "sqlite:////data/calotype/schedules.db"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert data_folder() == Path("/home/someone/.local/share/calotype")
