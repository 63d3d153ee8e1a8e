"""Looking at jobs, models and the machine: what `status`, `list`, `review`, `models` and `doctor` show."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import socket
import sys
import time
from typing import Any

import psutil

from models.catalog import lab_models, read_card
from orchestration.folder import JobFolder, kind_of
from orchestration.job import JobFileError
from orchestration.lease import judge, process_alive
from orchestration.reuse import last
from orchestration.review.page import write_review
from orchestration.run import reopen


def describe(folder: JobFolder) -> dict[str, Any]:
    """A job in a few facts: state (planning | running | stopped | finished), rows, rate, who holds the lease."""
    record, progress, lease = folder.read_json("job.json"), folder.read_json("progress.json") or {}, folder.read_json("lease.json")
    manifest = folder.read_json("_manifest.json") if folder.finished else None
    if lease is not None and judge(lease, [], time.time(), socket.gethostname(), process_alive).free:
        lease = None  # its driver was killed
    facts: dict[str, Any] = {
        "job": folder.name,
        "folder": folder.uri,
        "state": "finished" if manifest else "running" if lease else "stopped" if record else "planning",
        "kind": kind_of(record["spec"]) if record else None,
        "created": record["created"] if record else None,
        "generation": len(record["plans"]) - 1 if record else None,
        "planned": manifest["rows"] if manifest else progress.get("planned"),
        "done": manifest["rows"] if manifest else progress.get("done", 0),
        "ok": manifest["ok"] if manifest else progress.get("ok", 0),
        "failed": manifest["failed"] if manifest else progress.get("failed", 0),
        "reused": record["plans"][0].get("reused", 0) if record else 0,
        "rows_per_s": progress.get("rows_per_s"),
        "engine": progress.get("engine"),
        "driver": f"process {lease['pid']} on {lease['host']}" if lease else None,
    }
    return facts


def write_review_again(folder: JobFolder, against: str | None = None) -> str:
    """Write a job's review page, finished or not; returns where it is.

    `against`: another job's folder, or `last`, the newest finished one of its name before it. Raises JobFileError where there is none.
    """
    job = reopen(folder, folder.read_json("job.json"), strict=False)
    other = None if against is None else last(job.spec, folder, before=folder) if against == "last" else JobFolder(against)
    if against is not None and (other is None or not other.finished):
        raise JobFileError(f"--against {against}: there is no finished job to compare {folder.name} with")
    return write_review(folder, job.pipeline.shown, reader=job.context.reader, against=other)


def known_models() -> list[dict[str, str]]:
    """The lab models that are shipped, with what their cards say, and how a full-size one is named."""
    found = []
    for path in lab_models():
        card = read_card(path)
        size = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
        notes = str(card.facts.get("summary", ""))
        found.append({"model": card.name, "method": card.method, "size": f"{size / 1e6:.1f} MB", "notes": notes})
    found.append(
        {"model": "{method, base, checkpoint}", "method": "instant_restore", "size": "4 GB", "notes": "published weights that you supply"}
    )
    return found


def doctor() -> dict[str, tuple[bool, str]]:
    """Each fact with whether it is as it should be."""
    facts: dict[str, tuple[bool, str]] = {
        "python": (sys.version_info >= (3, 11), sys.version.split()[0]),
        "calotype": (True, importlib.metadata.version("calotype")),
    }
    for package in ("ray", "torch", "diffusers", "transformers", "mlflow", "pyarrow"):
        try:
            facts[package] = (True, importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            facts[package] = (False, "missing; pip install -e .")
    import torch

    from models.attention import resolve_backend

    device = "cuda" if torch.cuda.is_available() else "cpu"
    facts["device"] = (True, torch.cuda.get_device_name() if device == "cuda" else f"cpu, {torch.get_num_threads()} threads")
    facts["attention"] = (True, resolve_backend(torch.device(device), torch.float32))
    facts["extra faces"] = _extra("dlib", "faces", "finds and embeds faces")
    facts["extra gpu"] = _extra("xformers", "gpu", "packed attention on CUDA")
    facts["extra llm"] = _extra("vllm", "llm", "captions and prompts")
    facts["memory"] = (True, f"{_memory_gb():.0f} GB")
    facts["shared memory"] = _space("/dev/shm", 1, "Ray's object store")
    facts["disk here"] = _space(".", 2, "outputs")
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    facts["tracking"] = (True, "a SQLite file beside the jobs" if uri is None else "MLFLOW_TRACKING_URI is set")
    return facts


def _extra(module: str, extra: str, purpose: str) -> tuple[bool, str]:
    found = importlib.util.find_spec(module) is not None
    return found, purpose if found else f"{purpose}; pip install -e '.[{extra}]'"


def _memory_gb() -> float:
    return psutil.virtual_memory().total / 2**30


def _space(path: str, need_gb: float, purpose: str) -> tuple[bool, str]:
    try:
        free = shutil.disk_usage(path).free / 2**30
    except OSError:
        return True, f"no {path} on this system"
    return free >= need_gb, f"{free:.1f} GB free for {purpose}"
