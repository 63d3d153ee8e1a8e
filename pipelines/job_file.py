"""How every kind's commented job file ends: where the job runs, and what it is tracked by. None of it decides a result."""

from __future__ import annotations


def running(*, block_rows: str = "auto             # rows committed together", micro_batch: str = "", roots: str = "") -> str:
    """The lines from `engine` on. `micro_batch`: its line, with a comment sign where it is a mere example; `roots`: an example of allowed_roots."""
    lines = [
        "engine: ray                    # or inline: this process, no Ray",
        "resources:                     # none of this changes a result",
        "  replicas: auto",
        f"  block_rows: {block_rows}",
        f"  {micro_batch}",
        "  row_timeout_s: null          # kills a replica that needs longer for a row; null: no limit",
        f"  {f'# allowed_roots: [{roots}]':<29}# manifests may name nothing else" if roots else "",
        "  # price_per_hour: 2.5        # of a replica, for the cost on the review page",
        "",
        "tracking:",
        "  enabled: true                # MLflow: MLFLOW_TRACKING_URI, else a SQLite file",
    ]
    return "\n".join(line for at, line in enumerate(lines) if line.strip() or at == len(lines) - 3) + "\n"
