"""One driver's right to a job folder: taken at most once, renewed by a heartbeat, taken over only when its holder is gone or silent."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import psutil

from orchestration.folder import JobFolder
from workers import storage
from workers.guard import LeaseLost

log = logging.getLogger(__name__)


class LeaseHeld(RuntimeError):
    """Another driver runs this job (exit code 75)."""


@dataclass(frozen=True)
class Verdict:
    """Whether a lease may be taken over, and why."""

    free: bool
    why: str


def judge(
    lease: dict[str, Any] | None, replicas: list[dict[str, Any]], now: float, host: str, alive: Callable[[int, float], bool]
) -> Verdict:
    """May this lease be taken over? Free where there is none, its time to live has passed, or its driver and replicas ran here and are gone."""
    if lease is None:
        return Verdict(True, "nobody holds it")
    silent = now - lease["heartbeat"]
    if silent > lease["ttl_s"]:
        return Verdict(True, f"its holder has been silent for {silent:.0f} s")
    if lease["host"] != host:
        return Verdict(False, f"held by process {lease['pid']} on {lease['host']}, last heard {silent:.0f} s ago")
    if alive(lease["pid"], lease["started"]):
        return Verdict(False, f"held by process {lease['pid']} on this machine")
    mine = [r for r in replicas if r["driver"] == lease["owner"]]
    if any(r["host"] != host for r in mine):
        return Verdict(False, f"its driver is gone, but it had replicas elsewhere; it can be taken over in {lease['ttl_s'] - silent:.0f} s")
    left = sorted({r["pid"] for r in mine if alive(r["pid"], r["started"])})  # a process may hold several stages
    if left:
        return Verdict(False, f"its driver is gone, but its replicas {left} still run")
    return Verdict(True, "its driver and replicas are gone")


def process_alive(pid: int, started: float) -> bool:
    """True if this very process, not a later one of the same number, runs on this machine."""
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Lease:
    """Hold the lease of a job folder: `with Lease(folder, ttl_s) as lease`. Raises LeaseHeld when another driver has it.

    A heartbeat thread renews it; once it is lost (taken over, or not renewable for the time to live) `lost` is set and `check()` raises LeaseLost.
    """

    def __init__(self, folder: JobFolder, ttl_s: float, wait_s: float = 20.0) -> None:
        self.folder, self.ttl_s, self.wait_s = folder, ttl_s, wait_s
        self.owner = uuid.uuid4().hex
        self.lost = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Lease:
        deadline = time.time() + self.wait_s
        while True:
            lease = self.folder.read_json("lease.json")
            verdict = judge(lease, self._replicas(), time.time(), socket.gethostname(), process_alive)
            if verdict.free and self._take(lease):
                self._thread.start()
                return self
            waiting_for_replicas = lease is not None and "replicas" in verdict.why and "still run" in verdict.why
            if not waiting_for_replicas or time.time() > deadline:
                raise LeaseHeld(
                    f"{self.folder.uri}: {verdict.why if not verdict.free else 'another driver was faster'}. Wait, or stop it first."
                )
            time.sleep(0.5)  # replicas of a killed driver end within seconds

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join(5)
        current = self.folder.read_json("lease.json")
        if current is not None and current["owner"] == self.owner:
            self.folder.fs.rm_file(self.folder.join("lease.json"))

    def check(self) -> None:
        """Raises LeaseLost once the lease is lost."""
        if self.lost.is_set():
            raise LeaseLost(
                f"{self.folder.uri}: the lease was lost to another driver, or could not be renewed for {self.ttl_s:.0f} s; stopped"
            )

    def _content(self) -> bytes:
        fact = {
            "owner": self.owner,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": psutil.Process().create_time(),
            "heartbeat": time.time(),
            "ttl_s": self.ttl_s,
        }
        return json.dumps(fact).encode()

    def _take(self, old: dict[str, Any] | None) -> bool:
        path = self.folder.join("lease.json")
        if old is None:
            return storage.create_once(self.folder.fs, path, self._content())
        # Two drivers may judge the same old lease free: whoever creates the claim on it may replace it. A claim left by a driver that died
        # before it replaced the lease is passed over once it is older than the time to live.
        for number in range(1000):
            claim = self.folder.join("attempts", f"takeover-{old['owner']}-{number}")
            if storage.create_once(self.folder.fs, claim, str(time.time()).encode()):
                if self.folder.read_json("lease.json") != old:
                    return False  # it was renewed or replaced meanwhile
                storage.write_atomic(self.folder.fs, path, self._content())
                log.info("took over the lease of %s: owner=%s", self.folder.name, old["owner"])
                return True
            if time.time() - float(self.folder.fs.cat_file(claim) or 0) < self.ttl_s:
                return False
        return False

    def _replicas(self) -> list[dict[str, Any]]:
        found = []
        for name in self.folder.files("attempts", "replicas", suffix=".json"):
            fact = self.folder.read_json(name)
            if fact is not None:
                found.append(fact)
        return found

    def _beat(self) -> None:
        renewed = time.time()
        while not self._stop.wait(self.ttl_s / 4):
            try:
                current = self.folder.read_json("lease.json")
                if current is None or current["owner"] != self.owner:
                    self.lost.set()
                    return
                storage.write_atomic(self.folder.fs, self.folder.join("lease.json"), self._content())
                renewed = time.time()
            except OSError as error:
                log.warning("the lease could not be renewed: %s", error)
                if time.time() - renewed > self.ttl_s:
                    self.lost.set()
                    return
