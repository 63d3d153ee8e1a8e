"""What every kind promises: each row comes back once, a bad one fails alone, what it shows is there, its template is a job of it.

A kind joins with a line in `SUBJECTS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestration.finalize import verify
from orchestration.folder import JobFolder
from orchestration.job import parse
from orchestration.run import prepare, run
from pipelines import KINDS
from pipelines.pipeline import Kind
from tests.pipelines import (
    test_compose,
    test_edit,
    test_personalize,
    test_restore,
    test_translate,
    test_weights_identity,
    test_weights_initialize,
    test_weights_people,
)


@dataclass(frozen=True)
class Subject:
    """A kind's tiny model, a job over some rows as the content of a job file, three good rows (of files below a folder) and a bad one."""

    model: Callable[[Path], Path]
    job: Callable[..., dict[str, Any]]
    good: Callable[[Path], list[dict[str, Any]]]
    bad: dict[str, Any]


SUBJECTS = {
    "restore": Subject(
        test_restore.tiny_model,
        test_restore.job,
        lambda folder: test_restore.archive(folder, people=1, photos=3),
        {"row_id": "bad", "image_uri": "/nowhere.png", "reference_image_uris": ["/nowhere.png"]},
    ),
    "compose/layout": Subject(
        test_compose.tiny_model,
        test_compose.job,
        lambda _: [test_compose.row(name) for name in "abc"],
        test_compose.row("bad", "a dog"),
    ),
    "edit": Subject(
        test_edit.tiny_model,
        test_edit.job,
        lambda _: [test_edit.row("a"), test_edit.row("b", "a green circle"), test_edit.row("c", source="a cat")],
        test_edit.row("bad", " "),
    ),
    "personalize": Subject(
        test_personalize.tiny_model,
        test_personalize.job,
        lambda _: [test_personalize.row(name, num_images=2) for name in "abc"],
        test_personalize.row("bad", prompt="a cat"),
    ),
    "weights/initialize": Subject(
        test_weights_initialize.tiny_model,
        test_weights_initialize.job,
        lambda _: [test_weights_initialize.row(concept, concept) for concept in ("sepia", "sepia, fog", "noir, ink outlines")],
        test_weights_initialize.row("bad", "watercolour"),
    ),
    "weights/identity": Subject(
        test_weights_identity.tiny_model,
        test_weights_identity.job,
        lambda _: [test_weights_identity.row(name) for name in "abc"],
        test_weights_identity.row("bad", 0),
    ),
    "weights/sample": Subject(
        test_personalize.tiny_model,
        partial(test_weights_people.job, "sample"),
        lambda _: [test_weights_people.sample_row(name) for name in "abc"],
        test_weights_people.sample_row("bad", -1),
    ),
    "weights/edit": Subject(
        test_personalize.tiny_model,
        partial(test_weights_people.job, "edit"),
        lambda _: [test_weights_people.edit_row(name) for name in "abc"],
        test_weights_people.edit_row("bad", attribute="wise"),
    ),
    "weights/invert": Subject(
        test_personalize.tiny_model,
        partial(test_weights_people.job, "invert"),
        lambda _: [test_weights_people.invert_row(name) for name in "abc"],
        test_weights_people.invert_row("bad", image=b"no picture"),
    ),
    "translate/collect": Subject(
        test_translate.tiny_model,
        test_translate.job,
        lambda _: [test_translate.row(concept, concept) for concept in ("sepia", "sepia, fog", "noir, ink outlines")],
        test_translate.row("bad", " "),
    ),
    "translate/finetune": Subject(
        test_translate.tiny_model,
        test_translate.finetune,
        lambda _: [test_translate.row(concept, concept) for concept in ("sepia", "sepia, fog", "noir, ink outlines")],
        test_translate.row("bad", "watercolour"),
    ),
}


@pytest.fixture(params=sorted(SUBJECTS), scope="module")
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


@pytest.fixture(scope="module")
def model(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SUBJECTS[kind.key].model(tmp_path_factory.mktemp("models") / "tiny")


def test_every_kind_is_tested_here() -> None:
    assert SUBJECTS.keys() == KINDS.keys() - {"toy"}


@pytest.mark.parametrize("media", ["files", "columns"])
def test_every_row_comes_back_once_and_a_bad_one_fails_alone(kind: Kind, model: Path, media: str, tmp_path: Path) -> None:
    subject = SUBJECTS[kind.key]
    good = subject.good(tmp_path)
    spec = parse(subject.job(tmp_path, model, [*good, subject.bad], media=media))
    summary = run(spec)
    folder = JobFolder(summary.folder)
    assert (summary.ok, summary.failed) == (len(good), 1)
    results = folder.results()
    assert sorted(results["row_id"].to_pylist()) == sorted([*(row["row_id"] for row in good), "bad"])
    assert set(prepare(spec).pipeline.committed.names) <= set(results.column_names) | {"status"}
    assert verify(folder) == []
    assert run(spec).executed == 0


def test_what_a_kind_shows_is_among_its_columns(kind: Kind, model: Path, tmp_path: Path) -> None:
    subject = SUBJECTS[kind.key]
    pipeline = prepare(parse(subject.job(tmp_path, model, subject.good(tmp_path)))).pipeline
    there = {*pipeline.rows.names, *pipeline.outputs.names}
    shown = pipeline.shown
    assert {*shown.text, *(score.column for score in shown.scores)} <= there
    assert {name for name in (shown.group, shown.layout) if name is not None} <= there
    for picture in (shown.before, shown.after):
        assert picture is None or {picture, f"{picture}_uri"} & there
    assert set(pipeline.sort_by) <= set(pipeline.rows.names)


def test_a_kind_s_template_is_a_job_of_it_also_with_its_comments_taken_away(kind: Kind) -> None:
    spec = parse(yaml.safe_load(kind.template))
    assert spec.kind == kind.name
    assert spec.mode in (None, kind.mode)
    kind.params.model_validate(spec.params)
    every = re.sub(r"^(  )?# (?=[a-z_]+: )", r"\1", kind.template, flags=re.MULTILINE)
    found = parse({**yaml.safe_load(every), "kind": kind.name})
    assert len(kind.params.model_validate(found.params).model_fields_set) > len(spec.params)
    assert found.reuse in (None, "last")
