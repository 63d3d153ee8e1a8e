"""`calotype manifest`: folders or lists become the rows of a job."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestration.terminal import OK, AsJson, err, out

app = typer.Typer(no_args_is_help=True, help="Make a manifest: a folder, or lists to cross, becomes Parquet.")

Output = Annotated[Path, typer.Option("-o", "--output", help="The manifest to write (.parquet).")]
Seeds = Annotated[str | None, typer.Option("--seeds", help="N for 0 to N-1, or a list such as 7,9; else each row's from its id.")]
People = Annotated[
    str, typer.Argument(help="Who: a finished weights job (folder or models:/people@newest), a folder of adapter files, or a list.")
]
Model = Annotated[
    str | None, typer.Option("--vocabulary", help="Skip prompts with words that this model does not know: its folder, or lab/unet.")
]


@app.command("restore")
def restore(
    photos: Annotated[str, typer.Argument(help="Folder of damaged photographs; sub-folder or file-name prefix = person.")],
    output: Output,
    references: Annotated[str, typer.Option("--references", help="Folder of clean photographs, by person like PHOTOS.")],
    faces: Annotated[bool, typer.Option("--faces", help="Find the faces in whole photographs (extra `faces`).")] = False,
    as_json: AsJson = False,
) -> int:
    """Damaged photographs and clean references of the same people, as ordinary files, become a manifest."""
    from pipelines import manifests

    report = manifests.restore_manifest(photos, references, faces=faces)
    manifests.write_manifest(report, output)
    return _report(output, report.table.num_rows, report.skipped, "files", as_json)


@app.command("compose")
def compose(
    output: Output,
    subjects: Annotated[str, typer.Option("--subjects", help="List of subjects: phrase, noun, reference_image_uri.")],
    prompts: Annotated[str, typer.Option("--prompts", help="List of prompts with {subject}, or {a} and {b}, where subjects go.")],
    layouts: Annotated[str, typer.Option("--layouts", help="List of layouts: name, slot, x0, y0, x1, y1 as fractions.")],
    seeds: Seeds = None,
    join: Annotated[
        str, typer.Option("--join", help="cross: all ordered choices of subjects; combinations: each once; draw: one a prompt.")
    ] = "cross",
    vocabulary: Model = None,
    as_json: AsJson = False,
) -> int:
    """Subjects, prompts and layouts (CSV, JSON lines, Parquet) are crossed to a manifest. A row's id is made of its content."""
    from orchestration.job import JobFileError
    from pipelines import catalogs

    if join not in ("cross", "combinations", "draw"):
        raise JobFileError(f"--join {join}: choose cross, combinations or draw")
    try:
        catalog = catalogs.compose_manifest(subjects, prompts, layouts, seeds=parse_seeds(seeds), join=join, vocabulary=_words(vocabulary))
    except ValueError as error:
        raise JobFileError(str(error)) from error
    return _written(catalog, output, as_json)


@app.command("edit")
def edit(
    output: Output,
    sources: Annotated[str, typer.Option("--sources", help="List of sources: source_prompt, image_uri or source_seed, name.")],
    edits: Annotated[str, typer.Option("--edits", help="List of edits: edit_prompt (with {source}), or replace and with.")],
    seeds: Seeds = None,
    vocabulary: Model = None,
    as_json: AsJson = False,
) -> int:
    """Sources and edits (CSV, JSON lines, Parquet) are crossed to a manifest. A row's id is made of its content."""
    from orchestration.job import JobFileError
    from pipelines import catalogs

    try:
        catalog = catalogs.edit_manifest(sources, edits, seeds=parse_seeds(seeds), vocabulary=_words(vocabulary))
    except ValueError as error:
        raise JobFileError(str(error)) from error
    return _written(catalog, output, as_json)


@app.command("translate")
def translate(
    output: Annotated[Path, typer.Option("-o", "--output", help="A folder: manifest.parquet, and pairs/ with the pictures.")],
    photos: Annotated[str | None, typer.Argument(help="Folder of photographs that the lab's edits are applied to; none: drawings.")] = None,
    concepts: Annotated[str | None, typer.Option("--concepts", help="A .txt file, a list, lab:300 or lab:held-out.")] = None,
    pairs: Annotated[str | None, typer.Option("--pairs", help="Instead: a folder CONCEPT/input and CONCEPT/target of your own.")] = None,
    pictures: Annotated[int, typer.Option("--pictures", help="Pairs of each concept.")] = 72,
    drawings: Annotated[int, typer.Option("--drawings", help="How many of them are drawn portraits.")] = 36,
    as_json: AsJson = False,
) -> int:
    """Pairs of pictures for every concept become the rows of a translate job, of either mode."""
    from orchestration.job import JobFileError
    from pipelines.pairs import given_pairs, lab_pairs

    if (concepts is None) == (pairs is None):
        raise JobFileError("give either --concepts, for pairs that the lab's edits make, or --pairs, a folder of pairs")
    try:
        if concepts is not None:
            catalog = lab_pairs(photos, concepts, str(output.absolute()), pictures=pictures, drawings=drawings)
        else:
            catalog = given_pairs(str(pairs))
    except ValueError as error:
        raise JobFileError(str(error)) from error
    return _written(catalog, output / "manifest.parquet", as_json)


@app.command("weights")
def weights(
    output: Output,
    concepts: Annotated[str, typer.Option("--concepts", help="A .txt file, a list with a column concept, lab:300 or lab:held-out.")],
    as_json: AsJson = False,
) -> int:
    """Concepts become the rows of a weights job of mode initialize. A row's id is made of its content; what is there twice is named."""
    from orchestration.job import JobFileError
    from pipelines.concept_lists import concept_manifest

    try:
        catalog = concept_manifest(concepts)
    except ValueError as error:
        raise JobFileError(str(error)) from error
    return _written(catalog, output, as_json)


@app.command("identity")
def identity(
    photos: Annotated[str, typer.Argument(help="Folder of photographs; sub-folder or file-name prefix = person.")],
    output: Output,
    as_json: AsJson = False,
) -> int:
    """People's photographs, as ordinary files, become the rows of a weights job of mode identity: a row a person."""
    from pipelines import manifests

    report = manifests.identity_manifest(photos)
    manifests.write_manifest(report, output)
    return _report(output, report.table.num_rows, report.skipped, "files", as_json)


@app.command("personalize")
def personalize(
    output: Output,
    people: People,
    prompts: Annotated[str, typer.Option("--prompts", help="List of prompts: prompt, negative_prompt.")],
    edits: Annotated[
        str | None, typer.Option("--edits", help="List of edits: attribute, strength, start_timestep; lines of one name go together.")
    ] = None,
    images: Annotated[int | None, typer.Option("--images", min=1, max=64, help="Pictures a row.")] = None,
    seeds: Seeds = None,
    as_json: AsJson = False,
) -> int:
    """People, prompts and edits (CSV, JSON lines, Parquet) are crossed to a manifest. A row's id is made of its content."""
    from orchestration.job import JobFileError
    from pipelines.people_lists import people_in, personalize_manifest

    try:
        found, skipped = _people_of_job(people) or people_in(people)
        catalog = personalize_manifest(found, prompts, edits=edits, seeds=parse_seeds(seeds), num_images=images)
    except ValueError as error:
        raise JobFileError(str(error)) from error
    return _written(replace(catalog, skipped=[*skipped, *catalog.skipped]), output, as_json)


@app.command("edit-people")
def edit_people(
    output: Output,
    people: People,
    edits: Annotated[str, typer.Option("--edits", help="List of edits: attribute, strength; lines of one name go together.")],
    as_json: AsJson = False,
) -> int:
    """People and edits are crossed to the rows of a weights job of mode edit. A row's id is made of its content."""
    from orchestration.job import JobFileError
    from pipelines.people_lists import edit_manifest, people_in

    try:
        found, skipped = _people_of_job(people) or people_in(people)
        catalog = edit_manifest(found, edits)
    except ValueError as error:
        raise JobFileError(str(error)) from error
    return _written(replace(catalog, skipped=[*skipped, *catalog.skipped]), output, as_json)


@app.command("sample")
def sample(
    output: Output,
    seeds: Annotated[str, typer.Option("--seeds", help="N for 0 to N-1, or a list such as 7,9: a new person each.")],
    as_json: AsJson = False,
) -> int:
    """Seeds become the rows of a weights job of mode sample: somebody new each."""
    from orchestration.job import JobFileError
    from pipelines.people_lists import sample_manifest

    try:
        catalog = sample_manifest([seed for seed in parse_seeds(seeds) if seed is not None])
    except ValueError as error:
        raise JobFileError(str(error)) from error
    return _written(catalog, output, as_json)


@app.command("invert")
def invert(
    photos: Annotated[str, typer.Argument(help="Folder of photographs, each of one person's face.")],
    output: Output,
    consent: Annotated[str | None, typer.Option("--consent", help="A note that goes with every row, its output and its file.")] = None,
    as_json: AsJson = False,
) -> int:
    """Photographs, one a person, become the rows of a weights job of mode invert."""
    from orchestration.job import JobFileError
    from pipelines.people_lists import invert_manifest

    try:
        catalog = invert_manifest(photos, consent)
    except ValueError as error:
        raise JobFileError(str(error)) from error
    return _written(catalog, output, as_json)


def _people_of_job(place: str) -> Any:
    """The people of a weights job's ok rows, by person or row id, and its failed rows; None where the place is no job."""
    from orchestration.find import find_rows
    from orchestration.folder import JobFolder
    from orchestration.registry import resolve
    from pipelines.people_lists import Person
    from workers.folders import Skipped

    folder = JobFolder(resolve(place, None) if place.startswith("models:/") else place)
    if folder.read_json("job.json") is None:
        return None
    named = ["person_id"] if "person_id" in folder.planned().column_names else []
    rows = find_rows(folder, {}, [*named, "weights_uri"])
    people = [Person(row.get("person_id") or row["row_id"], row["weights_uri"]) for row in rows if row["status"] == "ok"]
    skipped = [Skipped(f"row {row['row_id']}", "failed") for row in rows if row["status"] != "ok"]
    if not folder.finished:
        skipped.append(Skipped(folder.uri, "is not finished; people who are still to come are not among the rows"))
    return people, skipped


def parse_seeds(text: str | None) -> list[int | None]:
    """`3` is 0, 1, 2; `7,9` is itself; None is one row a combination, with a seed from its id. Raises ValueError."""
    if text is None:
        return [None]
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        numbers = []
    if not numbers or (len(numbers) == 1 and "," not in text and numbers[0] < 1):
        raise ValueError(f"--seeds {text}: write how many, such as 2, or which ones, such as 7,9")
    return list(numbers) if "," in text else list(range(numbers[0]))


def _words(model: str | None) -> Any:
    if model is None:
        return None
    from models.catalog import lab_path
    from pipelines.prompts import Vocabulary

    return Vocabulary(Path(model) if Path(model).is_dir() else lab_path(model))


def _written(catalog: Any, output: Path, as_json: bool) -> int:
    from orchestration.job import JobFileError
    from pipelines.manifests import write_table

    if not catalog.table.num_rows:
        lines = "".join(f"\n  {where}: {why}" for where, why in catalog.skipped[:10])
        raise JobFileError(f"no row came out of these lists{':' if lines else ''}{lines}")
    try:
        write_table(catalog.table, str(output))
    except ValueError as error:
        raise JobFileError(str(error)) from error
    return _report(output, catalog.table.num_rows, catalog.skipped, "lines", as_json)


def _report(output: Path, rows: int, skipped: Sequence[Sequence[str]], what: str, as_json: bool) -> int:
    if as_json:
        out.print_json(json.dumps({"manifest": str(output), "rows": rows, "skipped": [list(s) for s in skipped]}))
        return OK
    for where, why in skipped:
        err.print(f"skipped {where}: {why}", markup=False)
    out.print(f"{output}: {rows} rows, {len(skipped)} {what} skipped", markup=False)
    return OK
