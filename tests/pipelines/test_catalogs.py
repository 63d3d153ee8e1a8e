"""Lists crossed to manifests: which rows there are, under which ids, and what was left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.lab.captions import tokenizer
from orchestration.cli_manifest import parse_seeds
from pipelines import compose
from pipelines.catalogs import Catalog, compose_manifest, edit_manifest
from pipelines.lists import BadList, read_list
from pipelines.prompts import BadTemplate, Vocabulary, fill, parse_template

SUBJECTS = [
    {"phrase": "red star"},
    {"phrase": "blue circle", "noun": "circle", "reference_image_uri": "/refs/circle.png"},
    {"phrase": "orange heart"},
]
PROMPTS = [{"prompt": "a {subject} on the beach"}, {"prompt": "a {a} and a {b}"}]
LAYOUTS = [
    {"name": "middle", "boxes": {"subject": [0.25, 0.25, 0.75, 0.75]}},
    {"name": "low", "boxes": {"subject": [0.25, 0.5, 0.75, 1]}},
    {"name": "sides", "boxes": {"a": [0, 0, 0.5, 1], "b": [0.5, 0, 1, 1]}},
]


def lines(path: Path, content: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(json.dumps(line) for line in content))
    return str(path)


def crossed(folder: Path, *, subjects: Any = SUBJECTS, prompts: Any = PROMPTS, layouts: Any = LAYOUTS, **options: Any) -> Catalog:
    paths = [lines(folder / f"{name}.jsonl", of) for name, of in (("subjects", subjects), ("prompts", prompts), ("layouts", layouts))]
    return compose_manifest(*paths, **options)


def ids(catalog: Catalog) -> set[str]:
    return set(catalog.table["row_id"].to_pylist())


def test_every_prompt_meets_every_subject_in_every_layout_that_fits(tmp_path: Path) -> None:
    catalog = crossed(tmp_path, seeds=[0, 1])
    assert catalog.table.num_rows == 2 * (3 * 2 + 6 * 1)
    rows = {(r["prompt"], r["layout_name"]): r for r in catalog.table.to_pylist()}
    both = rows["a blue circle and an orange heart", "sides"]
    assert [(s["phrase"], s["box"]) for s in both["subjects"]] == [("blue circle", [0, 0, 0.5, 1]), ("orange heart", [0.5, 0, 1, 1])]
    assert (both["subject"], both["reference_image_uris"]) == ("blue circle, orange heart", ["/refs/circle.png"])
    assert both["row_id"].startswith("a-blue-circle-and-an-orange-heart-sides-")
    assert catalog.skipped == []
    for field in compose.ROWS:
        if field.name in catalog.table.schema.names:
            assert catalog.table.schema.field(field.name).type == field.type


def test_a_prompt_more_adds_rows_and_changes_none(tmp_path: Path) -> None:
    before = ids(crossed(tmp_path))
    more = [{"prompt": "an {subject} in the snow"}, *PROMPTS]
    after = ids(crossed(tmp_path, prompts=more, subjects=SUBJECTS[::-1], layouts=LAYOUTS[::-1]))  # in whatever order
    assert before < after
    assert len(after - before) == 6
    assert not before & ids(crossed(tmp_path, seeds=[0]))  # another seed is another row


def test_subjects_may_be_combined_once_or_drawn_for_each_prompt(tmp_path: Path) -> None:
    assert crossed(tmp_path, join="combinations").table.num_rows == 6 + 3
    drawn = crossed(tmp_path, join="draw")
    assert drawn.table.num_rows == 2 + 1
    kept = ids(crossed(tmp_path, join="draw", prompts=[*PROMPTS, {"prompt": "{subject}"}]))
    assert ids(drawn) < kept


def test_the_same_row_is_there_once_and_said_to_be(tmp_path: Path) -> None:
    catalog = crossed(tmp_path, prompts=[PROMPTS[0], PROMPTS[0]])
    assert catalog.table.num_rows == 6
    assert "6 rows are the same" in catalog.skipped[0].why


def test_equal_phrases_are_told_apart_by_their_occurrence() -> None:
    filled = fill(parse_template("a red star beside a {a} and a {b}"), {"a": "red star", "b": "star"})
    assert filled.prompt == "a red star beside a red star and a star"
    assert filled.occurrences == {"a": 1, "b": 2}
    assert fill(parse_template("A {subject}"), {"subject": "orange star"}).prompt == "An orange star"


def test_dreambooth_s_templates_take_the_class_noun(tmp_path: Path) -> None:
    (tmp_path / "prompts.csv").write_text(
        'kind,idx,template\r\nobject,0,a {0} {1} in the snow\r\nobject,1,"a {0} {1} on top of pink fabric"\r\n'
    )
    vocabulary = known_words(tmp_path)
    paths = [lines(tmp_path / f"{name}.jsonl", of) for name, of in (("subjects", SUBJECTS), ("layouts", LAYOUTS))]
    catalog = compose_manifest(paths[0], str(tmp_path / "prompts.csv"), paths[1], vocabulary=vocabulary)
    assert set(catalog.table["prompt"].to_pylist()) == {"a red star in the snow", "a circle in the snow", "an orange heart in the snow"}
    assert len(catalog.skipped) == 1
    assert "line 2" in catalog.skipped[0].path
    assert "3 prompts skipped; not in the vocabulary: fabric" in catalog.skipped[0].why


def test_a_prompt_that_is_too_long_for_the_model_is_skipped(tmp_path: Path) -> None:
    catalog = crossed(tmp_path, prompts=[{"prompt": "a {subject} " + "and a star " * 12}], vocabulary=known_words(tmp_path))
    assert catalog.table.num_rows == 0
    assert "tokens; the model reads 28" in catalog.skipped[0].why


def test_a_prompt_that_fits_no_layout_or_has_no_place_is_skipped_with_the_reason(tmp_path: Path) -> None:
    prompts = [{"prompt": "a {a}, a {b} and a {c}"}, {"prompt": "a star"}, {"prompt": "a {0}"}]
    whys = [skipped.why for skipped in crossed(tmp_path, prompts=prompts).skipped]
    assert "no layout has just the places a, b, c" in whys[0]
    assert all("write" in why for why in whys[1:])
    with pytest.raises(BadTemplate):
        parse_template("a {a b}")


@pytest.mark.parametrize(
    ("subjects", "layouts", "says"),
    [
        ([{"name": "x"}], LAYOUTS, "line 1 has no phrase or subject; it has name"),
        ([], LAYOUTS, "names no subject"),
        (SUBJECTS, [{"name": "x", "boxes": {"subject": [0, 0, 2, 1]}}], "four numbers from 0 to 1"),
        (SUBJECTS, [{"name": "x", "boxes": {"subject": [0, 0]}}], "four numbers"),
        (SUBJECTS, [LAYOUTS[0], LAYOUTS[0]], "has a box for subject already"),
        (SUBJECTS, [{"name": "x", "slot": "a", "x0": "left"}], "x0 is 'left', which is no number"),
    ],
)
def test_a_list_that_says_nothing_useful_is_refused(tmp_path: Path, subjects: Any, layouts: Any, says: str) -> None:
    with pytest.raises(BadList, match=says):
        crossed(tmp_path, subjects=subjects, layouts=layouts)


def test_lists_may_be_csv_json_lines_or_parquet(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('\ufeffname,slot,x0\nleft,a,0.5\n"up, right",b,\n', encoding="utf-8")
    assert read_list(str(tmp_path / "a.csv")) == [{"name": "left", "slot": "a", "x0": "0.5"}, {"name": "up, right", "slot": "b"}]
    pq.write_table(pa.Table.from_pylist([{"name": "l", "boxes": {"a": [0.0, 1.0]}}]), tmp_path / "a.parquet")
    assert read_list(str(tmp_path / "a.parquet")) == [{"name": "l", "boxes": {"a": [0.0, 1.0]}}]
    for name, content, says in (
        ("a.txt", "", "ending in .csv"),
        ("b.csv", "a,b\n1,2,3\n", "more cells"),
        ("b.jsonl", "{", "can't be read as jsonl"),
        ("c.jsonl", "[1]", "must be an object"),
        ("b.parquet", "", "can't be read as parquet"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(BadList, match=says):
            read_list(str(tmp_path / name))
    with pytest.raises(BadList, match="there is no file"):
        read_list(str(tmp_path / "nowhere.csv"))


def test_edits_meet_the_sources_that_they_fit(tmp_path: Path) -> None:
    sources = [
        {"name": "s", "source_prompt": "a red star and a red heart", "source_seed": 4},
        {"name": "photo", "source_prompt": "a circle", "image_uri": "/p.png"},
        {"source_prompt": "a square"},
    ]
    edits = [
        {"replace": "red", "with": "blue"},
        {"edit_prompt": "{source} in the snow"},
        {"edit_prompt": "a star", "source": "photo", "guidance_scale": 2},
        {"replace": "dog", "with": "cat"},
    ]
    paths = lines(tmp_path / "sources.jsonl", sources), lines(tmp_path / "edits.jsonl", edits)
    catalog = edit_manifest(*paths, seeds=[1, 2])
    rows = sorted((r["source_prompt"], r["edit_prompt"], r["source_seed"] or 0) for r in catalog.table.to_pylist())
    assert rows == [
        ("a circle", "a circle in the snow", 0),
        ("a circle", "a star", 0),
        ("a red star and a red heart", "a blue star and a blue heart", 4),
        ("a red star and a red heart", "a red star and a red heart in the snow", 4),
        ("a square", "a square in the snow", 1),
        ("a square", "a square in the snow", 2),
    ]
    assert [(Path(s.path).name, s.why) for s in catalog.skipped] == [("edits.jsonl, line 4", "it fits no source")]
    assert ids(catalog) < ids(edit_manifest(paths[0], lines(tmp_path / "more.jsonl", [{"edit_prompt": "a dog"}, *edits]), seeds=[1, 2]))


def test_seeds_are_a_number_of_them_or_a_list() -> None:
    assert parse_seeds(None) == [None]
    assert parse_seeds("3") == [0, 1, 2]
    assert parse_seeds("7, 9") == [7, 9]
    for wrong in ("0", "x", "1,x", "-1"):
        with pytest.raises(ValueError, match="--seeds"):
            parse_seeds(wrong)


def known_words(folder: Path) -> Vocabulary:
    tokenizer().save_pretrained(folder / "model" / "tokenizer")
    return Vocabulary(folder / "model")
