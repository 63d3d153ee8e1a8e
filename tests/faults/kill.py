"""Starting real drivers and killing them for real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import yaml

from orchestration.folder import JobFolder

ROOT = Path(__file__).parents[2]


def start(folder: Path, content: dict[str, Any], *arguments: str) -> subprocess.Popen[str]:
    """A driver in a process of its own, as a user would start it."""
    job = folder / "job.yaml"
    job.write_text(yaml.safe_dump(content))
    command = [sys.executable, "-m", "tests.faults.driver", "run", str(job), "--json", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(driver: subprocess.Popen[str], code: int, timeout_s: float = 120) -> dict[str, Any]:
    """Wait for a driver; its summary, or its error text under "error"."""
    out, err = driver.communicate(timeout=timeout_s)
    assert driver.returncode == code, f"exit code {driver.returncode}, expected {code}\n{out}\n{err[-3000:]}"
    return json.loads(out) if out.strip() else {"error": err}


def wait_for(condition: Callable[[], bool], driver: subprocess.Popen[str], timeout_s: float = 90) -> None:
    """Until a condition holds; fails when the driver ends first."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert driver.poll() is None, f"the driver ended first: {driver.communicate()}"
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def kill(driver: subprocess.Popen[str]) -> None:
    """kill -9, and read what is left of its pipes."""
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()


def the_folder(output: Path) -> JobFolder | None:
    """The one job folder below an output folder, once its plan stands."""
    found = list(output.glob("*/job.json")) if output.exists() else []
    return JobFolder(str(found[0].parent)) if found else None


def committed(output: Path, generation: int = 0) -> int:
    """Committed blocks so far."""
    folder = the_folder(output)
    return len(folder.ledger_files(generation)) if folder else 0


def replicas(driver: subprocess.Popen[str]) -> list[psutil.Process]:
    """Processes below a driver that hold a model (Ray names them after what they run)."""
    return [p for p in psutil.Process(driver.pid).children(recursive=True) if "MapWorker" in " ".join(p.cmdline())]


def executed(journal: Path) -> list[str]:
    """Ids of every row that a model was given, as often as it was."""
    return [line for file in journal.glob("*") for line in file.read_text().split()]
