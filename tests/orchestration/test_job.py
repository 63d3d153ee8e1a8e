"""The job file: what it may hold, and what is said when it holds something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from orchestration.job import JobFileError, load, parse, put

JOB = {"kind": "restore", "name": "n", "manifest": "/m.parquet", "output": "/o", "model": "lab/x"}


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump({**JOB, **changes}))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"manifst": 1}, "manifst: unknown key; did you mean `manifest`?"),
        ({"resources": {"block_row": 4}}, "resources.block_row: unknown key; did you mean `block_rows`?"),
        ({"tracking": {"experimnt": "x"}}, "tracking.experimnt: unknown key; did you mean `experiment`?"),
        ({"resources": {"zzz": 4}}, "resources.zzz: unknown key; known here: allowed_roots"),
        ({"model": {"method": "m", "base": "b", "chekpoint": "c"}}, "model.chekpoint: unknown key; did you mean `checkpoint`?"),
        ({"seed": "many"}, "seed: Input should be a valid integer"),
        ({"engine": "spark"}, "engine: Input should be 'ray' or 'inline'"),
        ({"sample": 1.5}, "sample: Input should be less than or equal to 1"),
        ({"name": "a b"}, "name: String should match pattern"),
        ({"resources": {"lease_ttl_s": 0}}, "resources.lease_ttl_s: Input should be greater than or equal to 1"),
    ],
)
def test_a_job_that_cannot_be_run_is_refused_with_its_key_and_what_to_write(change: dict[str, Any], message: str) -> None:
    with pytest.raises(JobFileError) as caught:
        parse({**JOB, **change})
    assert message in str(caught.value)


@pytest.mark.parametrize("key", sorted(JOB))
def test_every_required_key_is_named_when_it_is_missing(key: str) -> None:
    with pytest.raises(JobFileError, match=f"{key}: required, and missing"):
        parse({k: v for k, v in JOB.items() if k != key})


def test_overrides_reach_every_depth_and_options_come_last(tmp_path: Path) -> None:
    path = written(tmp_path, resources={"block_rows": 4, "replicas": 2})
    sets = ["resources.block_rows=16", "params.deep.er=[1, 2]", "where={subject: [a, b]}", "model=lab/y", "engine=ray", "name=a=b"]
    with pytest.raises(JobFileError, match="name: String should match pattern"):
        load(path, sets)
    spec = load(path, sets[:-1], engine="inline")
    assert (spec.resources.block_rows, spec.resources.replicas, spec.engine) == (16, 2, "inline")
    assert (spec.params, spec.where, spec.model) == ({"deep": {"er": [1, 2]}}, {"subject": ["a", "b"]}, "lab/y")
    assert load(path, sets[:-1], engine=None).engine == "ray"


@pytest.mark.parametrize(
    ("item", "message"), [("seed", "write key=value"), ("=3", "write key=value"), ("seed=[", "not YAML"), ("sed=3", "did you mean `seed`")]
)
def test_an_override_that_makes_no_sense_is_refused(tmp_path: Path, item: str, message: str) -> None:
    with pytest.raises(JobFileError, match=message):
        load(written(tmp_path), [item])


def test_a_file_that_is_missing_broken_or_no_mapping_says_how_to_make_one(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    with pytest.raises(JobFileError, match=r"cannot be read.*calotype init restore -o"):
        load(path)
    path.write_text("a: [1")
    with pytest.raises(JobFileError, match="is not YAML"):
        load(path)
    path.write_text("- a\n- b\n")
    with pytest.raises(JobFileError, match=r"holds no job.*calotype init"):
        load(path)
    path.write_text("a: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(JobFileError, match="is not YAML"):
        load(path)


def test_paths_are_made_absolute_and_uris_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    spec = parse({**JOB, "manifest": "m/*.parquet", "output": "~/jobs/"})
    assert (spec.manifest, spec.output) == (str(tmp_path / "m/*.parquet"), "/home/someone/jobs")
    spec = parse({**JOB, "manifest": "s3://bucket/in/", "output": "file:///x/y"})
    assert (spec.manifest, spec.output) == ("s3://bucket/in", "/x/y")


def test_today_s_date_can_stand_in_name_and_output() -> None:
    spec = parse({**JOB, "name": "n-{date}", "output": "/o/{date}"})
    assert spec.output.removeprefix("/o/") == spec.name.removeprefix("n-")
    assert len(spec.name) == len("n-2026-01-01")


def test_a_firing_s_date_is_that_of_its_fire_time_whenever_it_is_resumed() -> None:
    keys = {"name": "nightly-20240229T233000Z", "output": "/o/{schedule}", "manifest": "/m/{date}/*.parquet", "where": {"day": ["{date}"]}}
    spec = parse({**JOB, **keys, "schedule": "nightly", "tracking": {"tags": {"night": "{date}"}}, "params": {"prompt": "{date}"}})
    assert (spec.output, spec.manifest, spec.where) == ("/o/nightly", "/m/2024-02-29/*.parquet", {"day": ["2024-02-29"]})
    assert spec.tracking.tags == {"night": "2024-02-29"}
    assert spec.params == {"prompt": "{date}"}  # what decides a row's result is never filled in
    assert parse(spec.model_dump(mode="json")) == spec


def test_a_schedule_s_name_in_a_job_without_schedule_is_refused() -> None:
    with pytest.raises(JobFileError, match=r"^output: `\{schedule\}` .* pass --schedule NAME"):
        parse({**JOB, "output": "/o/{schedule}"})


def test_what_job_json_keeps_is_read_back_as_the_same_job() -> None:
    spec = parse({**JOB, "model": {"method": "m", "base": "b"}, "where": {"a": [1, None]}, "resources": {"allowed_roots": ["/a"]}})
    assert parse(spec.model_dump(mode="json")) == spec


keys = st.text("abc", min_size=1, max_size=2)


@given(
    path=st.lists(keys, min_size=1, max_size=3),
    value=st.integers(),
    content=st.dictionaries(keys, st.integers() | st.dictionaries(keys, st.integers())),
)
def test_put_sets_one_key_and_leaves_its_neighbours(path: list[str], value: int, content: dict[str, Any]) -> None:
    before = {k: dict(v) if isinstance(v, dict) else v for k, v in content.items()}
    put(content, path, value)
    found: Any = content
    for key in path:
        found = found[key]
    assert found == value
    assert {k: v for k, v in content.items() if k != path[0]} == {k: v for k, v in before.items() if k != path[0]}
