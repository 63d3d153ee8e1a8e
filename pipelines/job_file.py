"""The commented job files that `calotype init` writes: all of what stands in each, but for a kind's own parameters."""

from __future__ import annotations


def job_file(
    about: str,
    params: str,
    *,
    kind: str,
    name: str,
    manifest: str,
    model: str,
    where: str,
    mode: str | None = None,
    mode_is: str = "",
    seed: str = "a row without a seed of its own gets one from its id and this",
    media: str = "pictures",
    block_rows: str = "auto",
    rows_together: str = "rows committed together",
    micro_batch: str | None = None,
    roots: str | None = None,
) -> str:
    """The file of a kind in one mode. `params`, `model` and `micro_batch` are lines with their comments; `mode_is`, `manifest`, `seed`: comments.

    `where`: an example of a column and its values; `media`: what may stand inside the Parquet files; `roots`: an example of allowed_roots, for
    kinds whose rows name files.
    """
    lines = [
        f"# A calotype job: {about}",
        "# calotype check job.yaml    what will happen, measured on a few rows",
        "# calotype run job.yaml      runs it; the same command goes on after an interruption",
        f"kind: {kind}",
        None if mode is None else _said(f"mode: {mode}", mode_is),
        _said(f"name: {name}", "the job folder is <output>/<name>-<fingerprint>"),
        _said("manifest: manifest.parquet", manifest),
        _said("output: runs", "a folder or s3://bucket/prefix"),
        model.strip(),
        _said("seed: 0", seed),
        "",
        "params:",
        params.strip("\n"),
        "",
        _said("# reuse: last", "leave out rows that were ok in the last job of this name under the same settings"),
        _said(f"# where: {{{where}}}", "only these rows"),
        _said("# limit: 100", "only the first rows"),
        _said("# sample: 0.01", "a share of the rows, always the same ones"),
        _said("media: files", f"or columns: {media} inside the Parquet files"),
        _said("on_bad_source: fail", "or skip: run without manifest files that can't be read"),
        "",
        _said("engine: ray", "or inline: this process, no Ray"),
        _said("resources:", "none of this changes a result"),
        "  replicas: auto",
        _said(f"  block_rows: {block_rows}", rows_together),
        None if micro_batch is None else f"  {micro_batch}",
        _said("  row_timeout_s: null", "kills a replica that needs longer for a row; null: no limit"),
        None if roots is None else _said(f"  # allowed_roots: [{roots}]", "manifests may name nothing else"),
        _said("  # price_per_hour: 2.5", "of a replica, for the cost on the review page"),
        "",
        "tracking:",
        _said("  enabled: true", "MLflow: MLFLOW_TRACKING_URI, else a SQLite file"),
    ]
    return "\n".join(line for line in lines if line is not None) + "\n"


def _said(setting: str, comment: str) -> str:
    return f"{setting:<30} # {comment}" if comment else setting
