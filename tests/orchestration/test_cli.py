"""The command line: exit codes, what it prints for people and for machines, and what it says when something is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from orchestration import cli
from orchestration.folder import JobFolder
from orchestration.job import JobSpec, parse
from orchestration.lease import Lease
from orchestration.run import prepare, run
from tests import toy
from tests.faults.kill import ROOT

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """The command as a user gives it: its exit code, what it printed, and what it said on the error stream."""

    def calotype(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["calotype", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, printed.out, printed.err

    return calotype


def job_file(folder: Path, rows: int = 8, **keys: Any) -> Path:
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(toy.job(folder, rows, **keys)))
    return path


def finished(folder: Path, **keys: Any) -> str:
    return run(parse(toy.job(folder, **{"rows": 8, **keys}))).folder


@pytest.mark.parametrize(("actions", "code"), [({}, 0), ({3: "raise"}, 2)])
def test_run_ends_with_0_or_2_and_prints_counts_folder_and_page(tmp_path: Path, call: Call, actions: dict[int, str], code: int) -> None:
    path = job_file(tmp_path, actions=actions)
    done, out, _ = call("run", path)
    assert done == code
    assert f"{8 - len(actions)} ok, {len(actions)} failed of 8 rows (8 run now" in out
    assert f"job       {tmp_path}/out/toy-" in out
    assert f"review    {tmp_path}/out/toy-" in out
    done, out, err = call("run", path)
    assert (done, "nothing left to run" in out) == (code, True)
    assert err.strip() == ""  # no bar either


def test_run_with_json_prints_json_and_nothing_else(tmp_path: Path, call: Call) -> None:
    code, out, _ = call("run", job_file(tmp_path, actions={1: "raise"}), "--json")
    summary = json.loads(out)
    assert (code, summary["exit_code"], summary["ok"], summary["failed"]) == (2, 2, 7, 1)


def test_any_key_can_be_overridden(tmp_path: Path, call: Call) -> None:
    path = job_file(tmp_path, engine="ray")
    sets = ["params.factor=5", f"output={tmp_path}/other", "resources={block_rows: 2}", "limit=3"]
    code, out, _ = call("run", path, "--json", "--engine", "inline", *(a for s in sets for a in ("--set", s)))
    assert code == 0
    folder = JobFolder(json.loads(out)["folder"])
    assert folder.uri.startswith(f"{tmp_path}/other/")
    assert sorted(folder.results(["product"])["product"].to_pylist()) == [0, 5, 10]
    assert folder.read_json("job.json")["spec"]["engine"] == "inline"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nowhere.yaml"], "nowhere.yaml cannot be read"),
        (["run", "JOB", "--set", "manifst=x"], "did you mean `manifest`?"),
        (["run", "JOB", "--set", "params.facter=2"], "did you mean `factor`?"),
        (["run", "JOB", "--set", "manifest=/nowhere.parquet"], "no Parquet file at /nowhere.parquet"),
        (["run", "JOB", "--set", "kind=restore", "--set", "model=lab/nonsense"], "nonsense"),
        (["run", "JOB", "--set", "where={number: many}"], "does not fit"),
        (["run", "JOB", "--engin", "inline"], "--engin"),
        (["run"], "Missing argument"),
        (["runn", "JOB"], "runn"),
        (["init", "restor"], "kinds are"),
        (["init", "restore", "-o", "JOB"], "pass --force"),
        (["check", "JOB", "--set", "seed=x"], "seed"),
        (["status", "nowhere"], "is no job folder; `calotype list OUTPUT`"),
        (["verify", "nowhere"], "is no job folder"),
        (["retry", "nowhere"], "is no job folder"),
        (["review", "nowhere"], "is no job folder"),
        (["prove", "nonsense", "--golden", "JOB"], "nonsense"),
        (["train", "nonsense", "-o", "nowhere"], "is no recipe"),
    ],
)
def test_what_cannot_be_meant_ends_with_64_and_says_what_to_do(tmp_path: Path, call: Call, arguments: list[str], message: str) -> None:
    path = job_file(tmp_path)
    code, out, err = call(*(str(path) if a == "JOB" else a for a in arguments))
    assert (code, out) == (64, "")
    assert message in err
    assert "Traceback" not in err
    assert not list(tmp_path.rglob("job.json"))


def test_a_manifest_with_double_ids_ends_with_64(tmp_path: Path, call: Call) -> None:
    path = job_file(tmp_path)
    pq.write_table(pa.table({"row_id": ["a", "a"], "number": [1, 2]}), tmp_path / "manifest.parquet")
    code, _, err = call("run", path)
    assert (code, "row_id must be unique; these are not: a" in err) == (64, True)


def test_a_job_that_another_driver_runs_ends_with_75(tmp_path: Path, call: Call) -> None:
    path = job_file(tmp_path)
    spec = parse(yaml.safe_load(path.read_text()))
    assert isinstance(spec, JobSpec)
    with Lease(prepare(spec).folder, 60):
        code, _, err = call("run", path)
    assert (code, "held by process" in err) == (75, True)


def test_an_unfinished_job_with_other_settings_ends_with_64_and_new_begins_beside_it(tmp_path: Path, call: Call) -> None:
    path = job_file(tmp_path)
    (Path(finished(tmp_path)) / "_SUCCESS").unlink()
    code, _, err = call("run", path, "--set", "params.factor=3")
    assert (code, "params.factor: 2 -> 3" in err, "--new" in err) == (64, True, True)
    assert call("run", path, "--set", "params.factor=3", "--new")[0] == 0
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_weights_that_cannot_be_loaded_end_with_1_and_their_reason(tmp_path: Path, call: Call) -> None:
    code, _, err = call("run", job_file(tmp_path, params={"fail_load": True}))
    assert (code, "the weights can't be loaded" in err) == (1, True)


def test_an_interrupt_ends_with_130_and_says_that_nothing_is_lost(tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("orchestration.run.run", interrupted)
    code, _, err = call("run", job_file(tmp_path))
    assert (code, "goes on where it stopped" in err) == (130, True)


def test_check_predicts_and_ends_with_64_where_every_row_fails(tmp_path: Path, call: Call) -> None:
    path = job_file(tmp_path)
    code, out, _ = call("check", path)
    assert (code, "rows      8" in out, "advice    resources.replicas" in out) == (0, True, True)
    code, out, _ = call("check", path, "--json", "--rows", 4)
    assert (code, json.loads(out)["measured_rows"]) == (0, 4)
    toy.write_manifest(tmp_path / "manifest.parquet", 4, dict.fromkeys(range(4), "raise"))
    code, out, _ = call("check", path)
    assert (code, "failed: row-0000: ValueError" in out) == (64, True)
    assert not (tmp_path / "out").exists()


def test_verify_ends_with_0_and_after_damage_with_1(tmp_path: Path, call: Call) -> None:
    folder = finished(tmp_path, actions={1: "raise"})
    code, out, _ = call("verify", folder)
    assert (code, out.strip()) == (0, "verified: 8 rows, 7 ok, 1 failed, nothing lost, nothing twice")
    next(Path(folder).rglob("data/**/*.parquet")).unlink()
    code, _, err = call("verify", folder)
    assert (code, "is missing" in err) == (1, True)
    code, out, _ = call("verify", folder, "--json")
    facts = json.loads(out)
    assert (code, facts["verified"], len(facts["problems"])) == (1, False, 1)


def test_status_and_list_show_a_job_to_people_and_machines(tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = finished(tmp_path, actions={1: "raise"})
    code, out, _ = call("status", folder)
    assert (code, "finished" in out) == (0, True)
    code, out, _ = call("status", folder, "--json")
    assert (code, json.loads(out)["failed"]) == (0, 1)
    monkeypatch.chdir(tmp_path)
    code, out, _ = call("status", f"out/{Path(folder).name}/", "--json")
    assert (code, json.loads(out)["folder"]) == (0, folder)
    code, out, _ = call("list", tmp_path / "out")
    assert (code, Path(folder).name in out) == (0, True)
    code, out, _ = call("list", "out", "--json")
    assert (code, [j["state"] for j in json.loads(out)]) == (0, ["finished"])
    code, out, _ = call("list", "empty", "--json")
    assert (code, json.loads(out)) == (0, [])


def test_retry_runs_failed_rows_and_says_where_there_are_none(tmp_path: Path, call: Call) -> None:
    folder = finished(tmp_path, actions={1: "raise", 2: "missing"})
    code, out, _ = call("retry", folder, "--json", "--error-type", "ValueError")
    assert (code, json.loads(out)["executed"], json.loads(out)["generation"]) == (2, 1, 1)
    code, _, err = call("retry", folder, "--error-type", "KeyError")
    assert (code, "nothing to retry" in err) == (64, True)


def test_review_prints_where_the_page_is(tmp_path: Path, call: Call) -> None:
    code, out, _ = call("review", finished(tmp_path))
    assert (code, Path(out.strip()).exists()) == (0, True)


def test_init_writes_a_job_file_that_loads(tmp_path: Path, call: Call) -> None:
    path = tmp_path / "new.yaml"
    code, out, _ = call("init", "restore", "-o", path)
    assert (code, f"calotype check {path}" in out) == (0, True)
    assert parse(yaml.safe_load(path.read_text())).kind == "restore"
    path.write_text("mine")
    assert call("init", "restore", "--manifest", "in/Müller: all.parquet", "-o", path, "--force")[0] == 0
    assert parse(yaml.safe_load(path.read_text())).manifest.endswith("in/Müller: all.parquet")


@pytest.mark.parametrize("command", ["models", "doctor"])
def test_models_and_doctor_answer_people_and_machines(call: Call, command: str) -> None:
    code, out, _ = call(command)
    assert (code, bool(out.strip())) == (0, True)
    code, out, _ = call(command, "--json")
    assert (code, bool(json.loads(out))) == (0, True)


def test_the_command_itself_lists_every_command_and_ends_with_0() -> None:
    program = "from orchestration.cli import main; main()"
    ended = subprocess.run([sys.executable, "-c", program, "--help"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0
    for command in (
        "manifest",
        "init",
        "check",
        "run",
        "status",
        "list",
        "verify",
        "retry",
        "review",
        "models",
        "doctor",
        "train",
        "prove",
    ):
        assert f" {command} " in ended.stdout
