"""Weights in the registry: a version a job, found again by concept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import mlflow
import pytest

from orchestration.mlflow_run import MlflowRun
from orchestration.registry import NEWEST, NotRegistered, resolve
from tests.orchestration.tracked_job import PIPELINE, JobInTheMaking, night

WEIGHTS = replace(PIPELINE, family="translators")


@pytest.fixture
def store(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def finish(job: JobInTheMaking, store: str) -> MlflowRun:
    job.commit(job.rows)
    job.point(job.rows, 2.0)
    summary = job.seal()
    run = MlflowRun(store, None, "calotype", {}, job.folder, job.begin(), WEIGHTS)
    run.open()
    run.finish(summary)
    return run


def test_each_job_is_a_version_of_its_family_and_the_newest_has_the_alias(tmp_path: Path, store: str) -> None:
    first, second = night(tmp_path / "1", rows=8, failing=8), night(tmp_path / "2", rows=8, failing=8)
    run = finish(first, store)
    finish(second, store)
    client = mlflow.MlflowClient(tracking_uri=store, registry_uri=store)
    versions = sorted(client.search_model_versions("name='translators'"), key=lambda v: int(v.version))
    assert [v.tags["calotype.folder"] for v in versions] == [first.folder.uri, second.folder.uri]
    assert versions[0].tags["calotype.files"] == "7"
    assert versions[0].source == f"runs:/{run.run_id}/weights"
    assert resolve(f"models:/translators@{NEWEST}", store) == second.folder.uri
    assert resolve("models:/translators/1", store) == first.folder.uri
    assert versions[0].description == f"restore with {versions[0].tags['calotype.model']}, in {first.folder.uri}"


def test_the_newest_of_a_mode_stays_when_a_job_of_another_is_registered(tmp_path: Path, store: str) -> None:
    made, edited = (night(tmp_path / name, rows=8, failing=8) for name in ("made", "edited"))
    for job, mode in ((made, "identity"), (edited, "edit")):
        job.job["spec"] |= {"kind": "weights", "mode": mode}
        finish(job, store)
    assert resolve("models:/translators@newest-identity", store) == made.folder.uri
    assert resolve("models:/translators@newest-edit", store) == edited.folder.uri
    assert resolve(f"models:/translators@{NEWEST}", store) == edited.folder.uri


def test_finishing_again_makes_no_second_version(tmp_path: Path, store: str) -> None:
    job = night(tmp_path, rows=8, failing=8)
    finish(job, store)
    job.retry([7])
    again = MlflowRun(store, None, "calotype", {}, job.folder, job.job, WEIGHTS)
    again.open()
    again.finish(job.seal())
    client = mlflow.MlflowClient(tracking_uri=store, registry_uri=store)
    (version,) = client.search_model_versions("name='translators'")
    assert version.tags["calotype.files"] == "8"


@pytest.mark.parametrize("uri", ["models:/translators", "models:/nothing@newest"])
def test_what_is_not_registered_is_refused(uri: str, store: str) -> None:
    with pytest.raises(NotRegistered, match="models:/"):
        resolve(uri, store)
