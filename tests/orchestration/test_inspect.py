"""Looking at jobs, models and the machine."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestration.folder import JobFolder, jobs
from orchestration.inspect import describe, doctor, known_models, write_review_again
from orchestration.job import parse
from orchestration.lease import Lease
from orchestration.run import run
from tests import toy


def finished(folder: Path, **keys: Any) -> JobFolder:
    return JobFolder(run(parse(toy.job(folder, **{"rows": 8, **keys}))).folder)


def test_a_finished_job_is_described_by_its_manifest(tmp_path: Path) -> None:
    facts = describe(finished(tmp_path, actions={2: "raise"}))
    assert (facts["state"], facts["kind"], facts["engine"], facts["driver"]) == ("finished", "toy", "inline", None)
    assert [facts[k] for k in ("planned", "done", "ok", "failed", "generation")] == [8, 8, 7, 1, 0]
    assert json.loads(json.dumps(facts)) == facts


def test_a_job_is_planning_then_running_then_stopped_then_finished(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    success, record = Path(folder.uri, "_SUCCESS").read_bytes(), folder.read_json("job.json")
    Path(folder.uri, "_SUCCESS").unlink()
    assert describe(folder)["state"] == "stopped"
    with Lease(folder, 60):
        facts = describe(folder)
        assert (facts["state"], facts["driver"]) == ("running", f"process {os.getpid()} on {os.uname().nodename}")
    Path(folder.uri, "job.json").unlink()
    assert describe(folder)["state"] == "planning"
    folder.write_json("job.json", record)
    Path(folder.uri, "_SUCCESS").write_bytes(success)
    assert describe(folder)["state"] == "finished"


@pytest.mark.parametrize(
    ("changes", "state"),
    [({}, "running"), ({"started": 1.0}, "stopped"), ({"host": "another"}, "running"), ({"host": "another", "heartbeat": 0.0}, "stopped")],
)
def test_a_job_whose_driver_was_killed_is_not_called_running(tmp_path: Path, changes: dict[str, Any], state: str) -> None:
    folder = finished(tmp_path)
    Path(folder.uri, "_SUCCESS").unlink()
    mine = {"owner": "a", "host": os.uname().nodename, "pid": os.getpid(), "started": psutil.Process().create_time()}
    folder.write_json("lease.json", {**mine, "heartbeat": time.time(), "ttl_s": 60, **changes})
    assert describe(folder)["state"] == state


def test_the_jobs_below_a_folder_are_listed_by_name_and_nothing_else_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b", "a"):
        finished(tmp_path, name=name, output=str(tmp_path / "out [1]"))
    (tmp_path / "out [1]/mlartifacts").mkdir()
    (tmp_path / "out [1]/job.json").write_text("{}")
    assert [j.name.split("-")[0] for j in jobs(str(tmp_path / "out [1]"))] == ["a", "b"]
    monkeypatch.chdir(tmp_path)
    assert [describe(j)["state"] for j in jobs("out [1]/")] == ["finished", "finished"]
    assert list(jobs(str(tmp_path / "nowhere"))) == []


def test_the_review_page_can_be_written_again_also_of_an_unfinished_job(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    page = Path(write_review_again(folder))
    assert page == Path(folder.uri, "review/index.html")
    page.unlink()
    Path(folder.uri, "_SUCCESS").unlink()
    assert Path(write_review_again(folder)).exists()


def test_the_models_name_how_a_full_size_one_is_given() -> None:
    found = known_models()
    assert "{method, base, checkpoint}" in {m["model"] for m in found}
    assert all(set(m) == {"model", "method", "size", "notes"} for m in found)


def test_the_doctor_names_what_is_missing_and_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://user:secret@host")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    facts = doctor()
    assert facts["python"][0]
    assert facts["extra faces"] == (False, "finds and embeds faces; pip install -e '.[faces]'")
    assert "secret" not in json.dumps(facts)
    assert all(isinstance(good, bool) and text for good, text in facts.values())
