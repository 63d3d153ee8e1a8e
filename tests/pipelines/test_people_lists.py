"""People, prompts and edits become the rows of a personalize job, whose ids are made of their content."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from orchestration.cli import app
from orchestration.folder import JobFolder
from orchestration.job import parse
from orchestration.plan import ManifestRefused
from orchestration.run import run
from pipelines.lists import BadList
from pipelines.people_lists import Person, edit_manifest, invert_manifest, people_in, personalize_manifest, read_edits, sample_manifest
from tests.pipelines import test_personalize, test_weights_identity, test_weights_people

PEOPLE = [Person("ada", "/people/ada.safetensors"), Person("bob", "/people/bob.safetensors")]


def written(file: Path, text: str) -> str:
    file.write_text(text)
    return str(file)


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    return written(tmp_path / "prompts.csv", "prompt,negative_prompt\na portrait of a person,\na person at sea,blurry\n")


def test_everybody_meets_every_prompt_and_every_set_of_edits(tmp_path: Path, prompts: str) -> None:
    edits = written(
        tmp_path / "edits.csv",
        "name,attribute,strength,start_timestep\nplain,,,\nolder,beard,1.5,700\nolder,glasses,1,\n,beard,-1,\n",
    )
    table = personalize_manifest(PEOPLE, prompts, edits=edits, seeds=[7, 8], num_images=2).table
    rows = table.to_pylist()
    assert len(rows) == 2 * 2 * 3 * 2 == len({row["row_id"] for row in rows})
    older = next(row for row in rows if row["start_timestep"] == 700)
    assert older["edits"] == [{"attribute": "beard", "strength": 1.5}, {"attribute": "glasses", "strength": 1.0}]
    assert (older["person_id"], older["start_weights_uri"], older["num_images"]) == ("ada", "/people/ada.safetensors", 2)
    assert {row["negative_prompt"] for row in rows if row["prompt"] == "a person at sea"} == {"blurry"}
    assert sum(row["edits"] is None for row in rows) == 8
    assert older["row_id"].startswith("ada-older-a-portrait-of-a-person-")


def test_a_person_more_adds_rows_and_changes_none_and_what_is_there_twice_is_named(prompts: str) -> None:
    ids = personalize_manifest(PEOPLE[:1], prompts).table["row_id"].to_pylist()
    more = personalize_manifest([*PEOPLE, PEOPLE[0]], prompts)
    assert set(ids) < set(more.table["row_id"].to_pylist())
    assert more.table.num_rows == 4
    assert [skipped.why for skipped in more.skipped] == ["2 rows say the same as others; each is there once"]


def test_people_are_the_adapters_of_a_folder_or_the_lines_of_a_list(tmp_path: Path) -> None:
    folder = tmp_path / "people"
    folder.mkdir()
    for name in ("ada.safetensors", "bob.pt", "notes.txt"):
        (folder / name).touch()
    found, skipped = people_in(str(folder))
    assert found == [Person("ada", str(folder / "ada.safetensors")), Person("bob", str(folder / "bob.pt"))]
    assert [(Path(left.path).name, left.why) for left in skipped] == [("notes.txt", "ends in none of .safetensors, .pt")]
    listed, _ = people_in(written(tmp_path / "people.csv", "person_id,weights_uri\nada,a.safetensors\n,b/bob.safetensors\n"))
    assert listed == [Person("ada", "a.safetensors"), Person("bob", "b/bob.safetensors")]
    with pytest.raises(BadList, match="people are a job's folder, a folder of"):
        people_in(str(tmp_path / "nobody"))


def test_half_an_edit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadList, match="line 1: an edit is an attribute and a strength"):
        read_edits(written(tmp_path / "edits.csv", "attribute,strength\nbeard,\n"))


def test_everybody_meets_every_edit_and_what_an_adapter_cannot_hold_is_named(tmp_path: Path) -> None:
    edits = written(
        tmp_path / "edits.csv", "name,attribute,strength,start_timestep\nplain,,,\nolder,beard,1.5,\nolder,glasses,1,\nlate,beard,-1,700\n"
    )
    catalog = edit_manifest(PEOPLE, edits)
    rows = catalog.table.to_pylist()
    assert len(rows) == 2 * 2 == len({row["row_id"] for row in rows})
    older = next(row for row in rows if row["row_id"].startswith("ada-older-"))
    assert older["edits"] == [{"attribute": "beard", "strength": 1.5}, {"attribute": "glasses", "strength": 1.0}]
    assert (older["person_id"], older["start_weights_uri"]) == ("ada", "/people/ada.safetensors")
    assert [(skipped.path.rpartition(", ")[2], skipped.why.partition(",")[0]) for skipped in catalog.skipped] == [
        ("plain", "edits nothing"),
        ("late", "its start_timestep"),
    ]
    assert edit_manifest([*PEOPLE, PEOPLE[0]], edits).table["row_id"].to_pylist() == [row["row_id"] for row in rows]


def test_new_people_are_named_by_their_seeds() -> None:
    rows = sample_manifest([0, 7, 7]).table.to_pylist()
    assert rows == [{"row_id": f"new-{seed:05d}", "seed": seed, "person_id": f"new-{seed:05d}"} for seed in (0, 7)]


def test_photographs_to_invert_carry_the_consent_and_files_that_are_none_are_named(tmp_path: Path) -> None:
    (tmp_path / "club").mkdir()
    for name in ("ada.png", "club/bob.png"):
        (tmp_path / name).write_bytes(test_weights_identity.photograph(0))
    (tmp_path / "notes.txt").write_text("no picture")
    catalog = invert_manifest(str(tmp_path), "by mail")
    rows = catalog.table.to_pylist()
    assert [(row["row_id"], row["person_id"], row["consent"]) for row in rows] == [
        ("ada.png", "ada", "by mail"),
        ("club/bob.png", "club/bob", "by mail"),
    ]
    assert [Path(skipped.path).name for skipped in catalog.skipped] == ["notes.txt"]


@pytest.mark.parametrize("mode", ["sample", "edit", "invert"])
def test_the_commands_for_models_of_people_write_manifests_that_their_jobs_run(tmp_path: Path, mode: str) -> None:
    model = test_personalize.tiny_model(tmp_path / "tiny")
    people = tmp_path / "people"
    people.mkdir()
    test_personalize.person(people / "ada.safetensors", 0)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/ada.png").write_bytes(test_weights_identity.photograph(0))
    edits = written(tmp_path / "edits.csv", "attribute,strength\ntall,1\ntall,-1\n")
    given = {
        "sample": ["sample", "--seeds", "2"],
        "edit": ["edit-people", str(people), "--edits", edits],
        "invert": ["invert", str(tmp_path / "photos")],
    }
    manifest = tmp_path / "made.parquet"
    result = CliRunner().invoke(app, ["manifest", *given[mode], "-o", str(manifest), "--json"])
    made = json.loads(result.stdout)["rows"]
    assert made == {"sample": 2, "edit": 2, "invert": 1}[mode], result.output
    summary = run(parse({**test_weights_people.job(mode, tmp_path, model, []), "manifest": str(manifest)}))
    assert (summary.ok, summary.failed) == (made, 0)


@pytest.mark.parametrize(("mode", "command"), [("sample", "sample"), ("edit", "edit-people"), ("invert", "invert")])
def test_a_job_without_its_manifest_names_the_command_that_writes_one(tmp_path: Path, mode: str, command: str) -> None:
    content = test_weights_people.job(mode, tmp_path, test_personalize.tiny_model(tmp_path / "tiny"), [])
    with pytest.raises(ManifestRefused, match=f"calotype manifest {command} "):
        run(parse({**content, "manifest": str(tmp_path / "nowhere.parquet")}))


def test_the_command_writes_a_manifest_that_a_job_runs(tmp_path: Path) -> None:
    model = test_personalize.tiny_model(tmp_path / "tiny")
    people = tmp_path / "people"
    people.mkdir()
    for number, name in enumerate(("ada", "bob")):
        test_personalize.person(people / f"{name}.safetensors", number)
    lines = written(tmp_path / "prompts.jsonl", json.dumps({"prompt": "a dog"}))
    manifest = tmp_path / "made.parquet"
    result = CliRunner().invoke(app, ["manifest", "personalize", str(people), "--prompts", lines, "-o", str(manifest), "--json"])
    assert json.loads(result.stdout)["rows"] == 2, result.output
    assert pq.read_table(manifest)["person_id"].to_pylist() == ["ada", "bob"]
    summary = run(parse({**test_personalize.job(tmp_path, model, []), "manifest": str(manifest)}))
    assert (summary.ok, summary.failed) == (2, 0)
    refused = CliRunner().invoke(app, ["manifest", "personalize", summary.folder, "--prompts", lines, "-o", str(manifest)])
    assert refused.exit_code != 0
    assert "has no column weights_uri" in str(refused.exception)
    assert JobFolder(summary.folder).finished


def test_people_of_a_weights_job_are_its_ok_rows_by_name_and_the_failed_ones_are_named(tmp_path: Path) -> None:
    base = test_weights_identity.tiny_model(tmp_path / "base")
    rows = [test_weights_identity.row("a"), test_weights_identity.row("b", 0), test_weights_identity.row("c")]
    done = JobFolder(run(parse(test_weights_identity.job(tmp_path, base, rows))).folder)
    lines, manifest = written(tmp_path / "prompts.csv", "prompt\na dog\n"), tmp_path / "made.parquet"
    result = CliRunner().invoke(app, ["manifest", "personalize", done.uri, "--prompts", lines, "-o", str(manifest), "--json"])
    assert json.loads(result.stdout)["skipped"] == [["row b", "failed"]], result.output
    made = pq.read_table(manifest).to_pylist()
    assert [row["person_id"] for row in made] == ["person a", "person c"]
    assert all(Path(row["start_weights_uri"]).is_file() for row in made)
    (Path(done.uri) / "_SUCCESS").unlink()
    again = CliRunner().invoke(app, ["manifest", "personalize", done.uri, "--prompts", lines, "-o", str(manifest), "--json"])
    assert [why.partition(";")[0] for _, why in json.loads(again.stdout)["skipped"]] == ["failed", "is not finished"]
