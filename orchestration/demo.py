"""`calotype demo`: a drawn archive, restored with the very commands that an archivist would use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from orchestration.job import load
from orchestration.progress import Point
from orchestration.run import Summary, run
from pipelines import KINDS
from pipelines.manifests import restore_manifest, write_manifest
from pipelines.samples import draw_sample_archive


def demo(folder: Path, on_progress: Callable[[Point], None] | None, say: Callable[[str], None]) -> Summary:
    """Draw a sample archive into `folder`, make its manifest, run the job on Ray. What is there already is kept."""
    archive, manifest, job = folder / "archive", folder / "manifest.parquet", folder / "job.yaml"
    say(f"drawing a sample archive of people who do not exist into {archive}")
    draw_sample_archive(archive)
    photos, references = archive / "photos", archive / "references"
    say(f"$ calotype manifest restore {photos} --references {references} -o {manifest}")
    report = restore_manifest(str(photos), str(references), faces=False)
    write_manifest(report, manifest)
    for path, why in report.skipped:
        say(f"  skipped {path}: {why}")
    job.write_text(KINDS["restore"].template)
    sets = [f"manifest={manifest}", f"output={folder / 'runs'}", "name=demo", "params.identity=lab"]
    say(f"$ calotype run {job} " + " ".join(f"--set {item}" for item in sets))
    return run(load(job, sets), new=True, on_progress=on_progress)
