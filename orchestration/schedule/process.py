"""Which process is this? Told apart from later ones of the same number, across reboots, and whatever is done to the clock."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Process:
    """One process that ran once on one machine. `boot` names the run of the machine, `born` the moment since then at which it began."""

    host: str
    boot: str
    pid: int
    born: str

    def __str__(self) -> str:
        return f"{self.host} {self.boot} {self.pid} {self.born}"

    @staticmethod
    def parse(text: str) -> Process:
        host, boot, pid, born = text.split(" ")
        return Process(host, boot, int(pid), born)

    @staticmethod
    def of(pid: int) -> Process:
        """The process that has this number now; one that has just ended is as good as gone."""
        return Process(socket.gethostname(), _boot(), pid, _born(pid) or "gone")

    @property
    def here(self) -> bool:
        """True if it ran on this machine, so that `alive` knows."""
        return self.host == socket.gethostname()

    @property
    def alive(self) -> bool:
        """True if it runs on this machine, and not only as a zombie."""
        return self.here and self.boot == _boot() and _born(self.pid) == self.born


@cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"{psutil.boot_time():.0f}"  # not Linux


def _born(pid: int) -> str | None:
    """When a process began; None for none and for a zombie. On Linux in ticks since boot: what psutil says moves when the clock is set."""
    if os.path.exists("/proc/self/stat"):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in "ZX" else fields[19]
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except psutil.NoSuchProcess:
        return None
