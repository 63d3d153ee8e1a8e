"""The command line. What it does is the Python API of its neighbours; nothing but commands prints."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from orchestration.cli_manifest import app as manifest_app
from orchestration.cli_schedule import app as schedule_app
from orchestration.terminal import ERROR, FAILED_ROWS, HELD, INTERRUPTED, OK, USAGE, AsJson, JobFile, Sets, err, out, progress

_GOES_ON = "stopped; the same command goes on where it stopped"
_UsageError: Any = typer.BadParameter.__base__  # click's, or that of typer's own copy of click, as its version has it

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
app.add_typer(manifest_app, name="manifest")
app.add_typer(schedule_app, name="schedule")

Folder = Annotated[str, typer.Argument(metavar="JOB", help="A job folder (path or s3://), as `run` prints it.")]
Engine = Annotated[str | None, typer.Option("--engine", help="ray or inline.")]


def main() -> None:
    """Entry point: maps what went wrong to the exit codes of DESIGN section 4."""
    from orchestration.job import JobFileError
    from orchestration.lease import LeaseHeld
    from orchestration.plan import ManifestRefused
    from orchestration.run import FingerprintMismatch
    from orchestration.schedule.cron import ScheduleError

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # a bar for every part of a model that is loaded, beside the job's own
    try:
        code = app(standalone_mode=False)
        if code == INTERRUPTED:
            err.print(_GOES_ON)
        sys.exit(code if isinstance(code, int) else OK)
    except (JobFileError, ManifestRefused, FingerprintMismatch, ScheduleError) as error:
        err.print(str(error), markup=False)
        sys.exit(USAGE)
    except LeaseHeld as error:
        err.print(str(error), markup=False)
        sys.exit(HELD)
    except (typer.Abort, KeyboardInterrupt):
        err.print(_GOES_ON)
        sys.exit(INTERRUPTED)
    except _UsageError as error:
        error.show()
        sys.exit(USAGE)
    except Exception as error:
        if logging.getLogger().isEnabledFor(logging.DEBUG):
            raise
        err.print(f"{type(error).__name__}: {error}", markup=False)
        sys.exit(ERROR)


@app.callback()
def _options(debug: Annotated[bool, typer.Option("--debug", help="Full logs and tracebacks.")] = False) -> None:
    """calotype restores, personalizes, composes, edits and animates by the million rows, and can prove what it did to every row."""
    if debug:
        logging.getLogger().setLevel(logging.DEBUG)


@app.command()
def init(
    kind: Annotated[str, typer.Argument(help="What the job does, such as restore.")],
    mode: Annotated[str | None, typer.Option("--mode", help="The kind's variant; its first one where none is named.")] = None,
    manifest: Annotated[str | None, typer.Option("--manifest", help="The rows; manifest.parquet where left out.")] = None,
    output: Annotated[Path, typer.Option("-o", "--output")] = Path("job.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> int:
    """Write a commented job file."""
    from orchestration.job import JobFileError
    from pipelines import find_kind

    try:
        found = find_kind(kind, mode)
    except ValueError as error:
        raise JobFileError(str(error)) from error
    if output.exists() and not force:
        raise JobFileError(f"{output} exists; pass --force to write over it")
    content = found.template
    if manifest is not None:
        content = re.sub(r"^manifest: .*$", lambda _: f"manifest: {json.dumps(manifest, ensure_ascii=False)}", content, flags=re.MULTILINE)
    output.write_text(content)
    out.print(f"{output} written; next: calotype check {output}", markup=False)
    return OK


@app.command()
def check(job: JobFile, sets: Sets = None, engine: Engine = None, rows: int = 16, as_json: AsJson = False) -> int:
    """Dry run: schema, missing files, a measured sample; predicts time, replicas and block size. Writes nothing."""
    from orchestration.check import check as run_check

    report = run_check(_load(job, sets, engine), rows)
    if as_json:
        out.print_json(json.dumps(asdict(report)))
    else:
        for line in report.lines():
            out.print(line, markup=False)
    return OK if report.runnable else USAGE


@app.command()
def run(
    job: JobFile,
    sets: Sets = None,
    engine: Engine = None,
    new: Annotated[bool, typer.Option("--new", help="Begin beside an unfinished job of this name that had other settings.")] = False,
    schedule: Annotated[str | None, typer.Option("--schedule", help="The schedule that this run belongs to.")] = None,
    as_json: AsJson = False,
) -> int:
    """Run a job, or go on with it. A finished job is left as it is."""
    from orchestration.run import run as run_job

    spec = _load(job, sets, engine, schedule)
    with progress(spec.name, quiet=as_json) as show:
        summary = run_job(spec, new=new, on_progress=show)
    return _report(summary, as_json)


@app.command()
def retry(
    folder: Folder,
    error_type: Annotated[str | None, typer.Option("--error-type", help="Only rows that failed so.")] = None,
    as_json: AsJson = False,
) -> int:
    """Run the failed rows of a finished job again, as its next generation."""
    from orchestration.run import retry as retry_job

    with progress(_folder(folder).name, quiet=as_json) as show:
        summary = retry_job(_folder(folder), error_type=error_type, on_progress=show)
    return _report(summary, as_json)


@app.command()
def verify(folder: Folder, as_json: AsJson = False) -> int:
    """Check a finished job from its folder alone: nothing lost, nothing twice, nothing changed. Exit code 1 if anything is wrong."""
    from orchestration.finalize import verify as verify_folder

    job = _folder(folder)
    problems = verify_folder(job)
    if as_json:
        out.print_json(json.dumps({"folder": job.uri, "verified": not problems, "problems": problems}))
    elif problems:
        for problem in problems:
            err.print(problem, markup=False)
    else:
        manifest = job.read_json("_manifest.json")
        reused = sum(entry["rows"] for entry in manifest.get("reused", ()))
        besides = f", {reused} reused besides" if reused else ""
        out.print(
            f"verified: {manifest['rows']} rows, {manifest['ok']} ok, {manifest['failed']} failed, nothing lost, nothing twice{besides}"
        )
    return ERROR if problems else OK


@app.command()
def status(folder: Folder, as_json: AsJson = False) -> int:
    """How far a job is, and who runs it."""
    from orchestration.inspect import describe

    facts = describe(_folder(folder))
    if as_json:
        out.print_json(json.dumps(facts))
    else:
        for key, value in facts.items():
            out.print(f"{key:12} {value}", markup=False)
    return OK


@app.command("list")
def list_jobs(output: Annotated[str, typer.Argument(help="The folder that jobs were written to.")], as_json: AsJson = False) -> int:
    """The jobs below an output folder."""
    from orchestration.folder import jobs
    from orchestration.inspect import describe

    found = [describe(folder) for folder in jobs(output)]
    if as_json:
        out.print_json(json.dumps(found))
        return OK
    table = Table("job", "state", "rows", "ok", "failed", "created", box=None)
    for facts in found:
        table.add_row(*(str(facts[k]) for k in ("job", "state", "planned", "ok", "failed", "created")))
    out.print(table)
    return OK


@app.command()
def rows(
    folder: Annotated[str, typer.Argument(help="A job's folder, or models:/FAMILY@ALIAS of the registry.")],
    where: Annotated[list[str] | None, typer.Option("--where", help='column=value, such as concept="warm sepia"; repeatable.')] = None,
    columns: Annotated[str | None, typer.Option("--columns", help="More columns to show, separated by commas.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1)] = None,
    as_json: AsJson = False,
) -> int:
    """Rows of a job by what they hold, and where their files are."""
    from orchestration.find import find_rows
    from orchestration.job import JobFileError
    from orchestration.registry import NotRegistered, resolve

    given = [item.partition("=") for item in where or ()]
    if any(not (found and key) for key, found, _ in given):
        raise _UsageError("--where: write column=value")
    try:
        job = _folder(resolve(folder, None) if folder.startswith("models:/") else folder)
    except NotRegistered as error:
        raise JobFileError(str(error)) from error
    found = find_rows(job, {key: value for key, _, value in given}, columns.split(",") if columns else (), limit)
    if as_json:
        out.print_json(json.dumps(found, default=str))
        return OK
    table = Table(*(list(found[0]) if found else ["row_id"]), box=None)
    for row in found:
        table.add_row(*(str(value) for value in row.values()))
    out.print(table)
    return OK if found else ERROR


@app.command()
def review(
    folder: Folder,
    against: Annotated[
        str | None, typer.Option("--against", help="Another job's folder, or last: its pictures beside these, row by row.")
    ] = None,
) -> int:
    """Write the review page of a job and print where it is."""
    from orchestration.inspect import write_review_again

    other = against if against in (None, "last") else _folder(against).uri
    out.print(write_review_again(_folder(folder), other), markup=False)
    return OK


@app.command()
def models(as_json: AsJson = False) -> int:
    """The models that can stand in a job file."""
    from orchestration.inspect import known_models

    found = known_models()
    if as_json:
        out.print_json(json.dumps(found))
        return OK
    table = Table("model", "method", "size", "notes", box=None)
    for model in found:
        table.add_row(model["model"], model["method"], model["size"], model["notes"])
    out.print(table)
    return OK


@app.command()
def doctor(as_json: AsJson = False) -> int:
    """What this machine has for calotype, and what is missing."""
    from orchestration.inspect import doctor as examine

    facts = examine()
    if as_json:
        out.print_json(json.dumps(facts))
    else:
        for name, (good, text) in facts.items():
            out.print(f"{'ok ' if good else 'no '} {name:14} {text}", markup=False)
    return OK


@app.command()
def prove(
    method: str,
    golden: Annotated[Path | None, typer.Option("--golden", help="Compare with tensors that the authors' code made.")] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the lab proof writes its report.")] = Path("proof"),
    data: Annotated[
        Path | None, typer.Option("--data", envvar="CALOTYPE_DATA", help="Folder of the photographs for the lab proof.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Show that a method equals its authors' mathematics (--golden), or measure its claim in the lab. Exit code 1 if it does not hold."""
    from orchestration.prove import prove_claim, prove_golden

    if golden is None:
        return OK if prove_claim(method, output, data, out.print) else ERROR
    comparisons = prove_golden(method, golden)
    if as_json:
        out.print_json(json.dumps([{**asdict(c), "ok": c.ok} for c in comparisons]))
    else:
        for c in comparisons:
            out.print(f"{'ok  ' if c.ok else 'FAIL'} {c.max_abs:9.2e} (tolerance {c.tolerance:.0e})  {c.name}", markup=False)
        bad = sum(not c.ok for c in comparisons)
        out.print(f"{len(comparisons)} tensors compared, {bad} above tolerance")
    return OK if comparisons and all(c.ok for c in comparisons) else ERROR


@app.command()
def train(
    recipe: str,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Checkpoints and the finished model; training goes on from what is there.")
    ],
    data: Annotated[Path | None, typer.Option("--data", envvar="CALOTYPE_DATA", help="Folder of the training data.")] = None,
    sets: Sets = None,
) -> int:
    """Train a model by its recipe; the same command goes on where it stopped."""
    from orchestration.prove import train_recipe

    logging.getLogger("models").setLevel(logging.INFO)  # steps and losses: a training takes minutes to hours
    train_recipe(recipe, output, data, sets or [], out.print)
    return OK


@app.command()
def world(
    output: Annotated[Path, typer.Option("-o", "--output", help="The picture file to write.")] = Path("world.png"),
    rows: Annotated[int, typer.Option(min=1, max=64)] = 6,
    columns: Annotated[int, typer.Option(min=1, max=64)] = 10,
    first: Annotated[int, typer.Option(min=0, help="Number of the first picture; the same number is always the same picture.")] = 0,
    kind: Annotated[str | None, typer.Option(help="portrait or scene; either when left out.")] = None,
    people: Annotated[
        int | None, typer.Option("--people", min=1, help="Not a sheet: so many people as files in the folder OUTPUT.")
    ] = None,
    pictures: Annotated[int, typer.Option("--pictures", min=1, max=64, help="Pictures of each of them.")] = 8,
) -> int:
    """A contact sheet of the drawn world that the lab's models are trained on, and its captions; or people who do not exist, as files."""
    from models.lab.world_sheet import world_sheet

    if people is not None:
        from models.lab.crowd import PHOTOS, TABLE, write_people

        write_people(output, people, pictures, first=first)
        out.print(f"people    {output / PHOTOS}, a folder each, and what they look like in {output / TABLE}", markup=False)
        return OK

    if kind not in (None, "portrait", "scene"):
        raise _UsageError(f"--kind {kind}: choose portrait or scene")
    captions = world_sheet(output, rows, columns, first, kind)
    for number, caption in enumerate(captions, first):
        out.print(f"{number}  {caption}", markup=False)
    out.print(f"sheet     {output}", markup=False)
    return OK


@app.command()
def demo(folder: Annotated[Path, typer.Argument(help="Where the demo writes.")] = Path("demo")) -> int:
    """A sample archive, restored: photographs and references are drawn, a job runs on Ray, a page is written."""
    from orchestration.demo import demo as run_demo

    with progress("demo", quiet=False) as show:
        summary = run_demo(folder, show, lambda text: out.print(text, markup=False))
    code = _report(summary, False)
    return OK if code == FAILED_ROWS else code  # the sample archive holds a broken picture on purpose


def _load(job: Path, sets: Sequence[str] | None, engine: str | None, schedule: str | None = None) -> Any:
    from orchestration.job import load

    return load(job, sets or [], engine=engine, schedule=schedule)


def _folder(uri: str) -> Any:
    from orchestration.folder import JobFolder
    from orchestration.job import JobFileError
    from workers import storage

    folder = JobFolder(str(storage.local_path(uri)) if storage.scheme(uri) == "file" else uri.rstrip("/"))
    if not folder.exists("job.json") and not folder.exists("plan"):
        raise JobFileError(f"{uri} is no job folder; `calotype list OUTPUT` shows the jobs below an output folder")
    return folder


def _report(summary: Any, as_json: bool) -> int:
    if as_json:
        out.print_json(json.dumps({**asdict(summary), "exit_code": summary.exit_code}))
        return int(summary.exit_code)
    done = f"{summary.ok} ok, {summary.failed} failed of {summary.planned} rows"
    ran = f"{summary.executed} run now in {summary.seconds:.1f} s" if summary.executed else "nothing left to run"
    out.print(f"{done} ({ran})", markup=False)
    if summary.reused:
        out.print(f"reused    {summary.reused} rows of earlier jobs: {summary.folder}/plan/reused.parquet", markup=False)
    if summary.rejected:
        out.print(f"rejected  {summary.rejected} unreadable manifest files: {summary.folder}/plan/rejected.parquet", markup=False)
    out.print(f"job       {summary.folder}", markup=False)
    if summary.review:
        out.print(f"review    {summary.review}", markup=False)
    if summary.tracking:
        out.print(f"mlflow    {summary.tracking}", markup=False)
    return int(summary.exit_code)
