"""`calotype schedule` as a user gives it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestration.schedule.launch import this_program
from orchestration.schedule.store import Store
from tests import toy
from tests.orchestration.test_cli import Call, call, job_file

__all__ = ["call"]  # the fixture
NIGHTLY = ("--cron", "0 2 * * *", "--timezone", "Europe/Berlin")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of the test's own, and the folder that the user stands in."""
    monkeypatch.setenv("CALOTYPE_SCHEDULES", f"sqlite:///{tmp_path / 'data' / 'schedules.db'}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def store(folder: Path) -> Store:
    return Store(f"sqlite:///{folder / 'data' / 'schedules.db'}")


def test_a_schedule_is_added_listed_and_removed(place: Path, call: Call) -> None:
    job = job_file(place)
    code, out, _ = call("schedule", "add", "nightly", job.name, *NIGHTLY, "--keep", "3", "--set", "limit=4")
    assert code == 0
    assert "02:00 CE" in out  # Berlin's time, winter or summer
    (found,) = store(place).schedules()
    assert (found.job, found.directory, found.sets, found.keep) == (str(job), str(place), ("limit=4",), 3)
    code, out, _ = call("schedule", "list", "--json")
    (facts,) = json.loads(out)
    assert (code, facts["name"], facts["timezone"], len(facts["next"])) == (0, "nightly", "Europe/Berlin", 3)
    assert "nightly" in call("schedule", "list")[1]
    assert call("schedule", "remove", "nightly")[0] == 0
    assert json.loads(call("schedule", "list", "--json")[1]) == []
    assert call("schedule", "add", "nightly", job.name, *NIGHTLY)[0] == 0  # the name is free again


def test_add_with_json_says_when_it_fires_and_where_it_is_kept(place: Path, call: Call) -> None:
    code, out, _ = call("schedule", "add", "nightly", job_file(place), "--cron", "30 4 1 1 *", "--timezone", "UTC", "--json")
    facts = json.loads(out)
    assert (code, facts["store"]) == (0, f"sqlite:///{place}/data/schedules.db")
    assert all(t.endswith("-01-01T04:30:00Z") for t in facts["next"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["add", "n", "JOB", "--cron", "61 2 * * *"], "expected five fields: minute (0-59)"),
        (["add", "n", "JOB", "--cron", "0 0 30 2 *"], "it would never fire"),
        (["add", "n", "JOB", "--cron", "0 2 * * *", "--timezone", "Europe/Belin"], "did you mean `Europe/Berlin`?"),
        (["add", "n m", "JOB", *NIGHTLY], "can't name a schedule"),
        (["add", "n" * 48, "JOB", *NIGHTLY], "at most 47"),
        (["add", "n", "nowhere.yaml", *NIGHTLY], "nowhere.yaml cannot be read"),
        (["add", "n", "JOB", *NIGHTLY, "--set", "manifst=x"], "did you mean `manifest`?"),
        (["add", "n", "JOB", *NIGHTLY, "--set", "manifest=/nowhere.parquet"], "no Parquet file at /nowhere.parquet"),
        (["add", "n", "JOB", *NIGHTLY, "--set", "params.fail_load=true"], "the weights can't be loaded"),
        (["add", "n", "JOB", *NIGHTLY, "--keep", "0"], "--keep: 1 at the least"),
        (["add", "n", "JOB", *NIGHTLY, "--webhook", "example.org"], "write an http(s) address"),
        (["add", "there", "JOB", *NIGHTLY], "`calotype schedule remove there` first"),
        (["remove", "ther"], "did you mean `there`?"),
        (["history", "ther"], "did you mean `there`?"),
        (["list", "--store", "nonsense"], "write a SQLAlchemy URL"),
        (["list", "--store", "nosuch://x/y"], "write a SQLAlchemy URL"),
        (["list", "--store", "sqlite:////dev/null/x.db"], "can't be opened"),
    ],
)
def test_what_cannot_be_meant_ends_with_64_and_says_what_to_do(place: Path, call: Call, arguments: list[str], message: str) -> None:
    job = job_file(place)
    assert call("schedule", "add", "there", job, *NIGHTLY, "--no-check")[0] == 0
    code, _, err = call("schedule", *(str(job) if a == "JOB" else a for a in arguments))
    assert message in err
    assert code in (64, 1) if "weights" in message else code == 64
    assert [s.name for s in store(place).schedules()] == ["there"]


def test_a_job_of_which_no_row_ends_well_is_not_scheduled_unless_asked(place: Path, call: Call) -> None:
    job = job_file(place, 2, actions={0: "raise", 1: "raise"})
    code, _, err = call("schedule", "add", "nightly", job, *NIGHTLY)
    assert code == 64
    assert "row-0000 is bad" in err
    assert "pass --no-check" in err
    assert call("schedule", "add", "nightly", job, *NIGHTLY, "--no-check")[0] == 0


def test_a_job_for_tomorrow_s_manifest_can_be_scheduled_today(place: Path, call: Call) -> None:
    content: dict[str, Any] = {**toy.job(place), "manifest": "manifests/{date}.parquet", "output": "jobs/{schedule}"}
    (place / "job.yaml").write_text(yaml.safe_dump(content))
    assert call("schedule", "add", "nightly", "job.yaml", *NIGHTLY)[0] == 64
    assert call("schedule", "add", "nightly", "job.yaml", *NIGHTLY, "--no-check")[0] == 0


def test_the_history_shows_times_codes_rows_and_the_page(place: Path, call: Call) -> None:
    assert call("schedule", "add", "nightly", job_file(place), *NIGHTLY, "--no-check")[0] == 0
    assert json.loads(call("schedule", "history", "--json")[1]) == []
    opened = store(place)
    (schedule,) = opened.schedules()
    assert opened.note_due(schedule, schedule.created + 86400.0) is not None
    claimed = opened.claim("nightly", "h b 1 x", 100.0)
    assert claimed is not None
    assert "running" in call("schedule", "history")[1]
    opened.change(claimed, state="finished", exit_code=2, ok=7, failed=1, folder="/out/x", started=100.0, finished=190.0)
    code, out, _ = call("schedule", "history", "nightly", "--json")
    (facts,) = json.loads(out)
    assert (code, facts["exit_code"], facts["ok"], facts["failed"]) == (0, 2, 7, 1)
    assert (facts["started"], facts["finished"]) == ("1970-01-01T00:01:40Z", "1970-01-01T00:03:10Z")
    assert facts["review"] == "/out/x/review/index.html"
    shown = call("schedule", "history")[1]
    for text in (facts["fire_time"], "2: finished, some rows failed", " 7 ", " 1 ", "1.5", "/out/x/review/index.html"):
        assert text in shown
    assert call("schedule", "remove", "nightly")[0] == 0
    assert len(json.loads(call("schedule", "history", "nightly", "--json")[1])) == 1  # what has been stays


def test_a_password_in_the_store_s_url_is_not_shown(place: Path, call: Call) -> None:
    _, out, err = call("schedule", "list", "--store", "postgresql+psycopg://me:hidden@nowhere.invalid/x")
    assert "hidden" not in out + err


def test_a_firing_runs_the_program_that_the_daemon_is(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    from types import SimpleNamespace

    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=None))
    monkeypatch.setattr(sys, "argv", ["/venv/bin/calotype", "schedule", "run"])
    assert this_program() == [sys.executable, "/venv/bin/calotype"]
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=SimpleNamespace(name="tests.faults.driver")))
    assert this_program() == [sys.executable, "-m", "tests.faults.driver"]
