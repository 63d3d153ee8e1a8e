"""Telling somebody that a firing did not end well: a command, a webhook. What goes wrong here is a text, never an exception."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import urllib.error
import urllib.request
from urllib.parse import urlsplit

from orchestration.schedule.cron import ScheduleError
from orchestration.schedule.firing import Firing, Schedule

COMMAND_S = 60.0  # how long a command may take
WEBHOOK_S = 10.0


def wanted(schedule: Schedule) -> bool:
    """True if anybody wants to know."""
    return schedule.on_failure is not None or schedule.webhook is not None


def check(schedule: Schedule) -> None:
    """Raises ScheduleError for hooks that can't be meant."""
    if schedule.on_failure is not None:
        try:
            words = shlex.split(schedule.on_failure)
        except ValueError as error:
            raise ScheduleError(f"--on-failure: {error}") from error
        if not words:
            raise ScheduleError("--on-failure: empty; write a command, such as 'mail -s calotype me@example.org'")
    webhook = schedule.webhook
    if webhook is not None and not webhook.startswith("$") and urlsplit(webhook).scheme not in ("http", "https"):
        raise ScheduleError(
            f"--webhook {webhook}: write an http(s) address, or $NAME of a variable in the daemon's environment that holds it"
        )


def call(schedule: Schedule, firing: Firing) -> str | None:
    """Run a schedule's hooks for a firing, with JSON that describes it. Returns what went wrong, None if nothing did."""
    said = {k: v for k, v in firing.describe().items() if k not in ("hook", "retired")}
    fact = json.dumps({**said, "job_file": schedule.job, "cron": schedule.cron, "timezone": schedule.timezone}).encode()
    problems = []
    if schedule.on_failure is not None:
        problems.append(_command(schedule.on_failure, schedule.directory, fact))
    if schedule.webhook is not None:
        problems.append(_webhook(schedule.webhook, fact))
    return "; ".join(p for p in problems if p is not None) or None


def _command(command: str, directory: str, fact: bytes) -> str | None:
    """Run a command with the JSON on its standard input; no shell unless the command names one."""
    words = shlex.split(command)
    try:
        ended = subprocess.run(
            words, cwd=directory, input=fact, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=COMMAND_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"{words[0]} took longer than {COMMAND_S:.0f} s"
    except OSError as error:
        return f"{words[0]}: {error.strerror or error}"
    if ended.returncode == 0:
        return None
    said = ended.stderr.decode(errors="replace").strip().splitlines()
    return f"{words[0]} ended with {ended.returncode}" + (f": {said[-1]}" if said else "")


def _webhook(webhook: str, fact: bytes) -> str | None:
    """Post the JSON. The address may be a secret and stands in no message; only its host does."""
    address = os.path.expandvars(webhook)
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https"):
        return "the webhook is no http(s) address; is its variable set in the daemon's environment?"
    try:
        request = urllib.request.Request(address, data=fact, headers={"Content-Type": "application/json"}, method="POST")
        with urllib.request.urlopen(request, timeout=WEBHOOK_S):
            return None
    except urllib.error.HTTPError as error:
        return f"{parts.hostname} answered {error.code}"
    except (OSError, ValueError) as error:
        return f"{parts.hostname} could not be reached: {getattr(error, 'reason', type(error).__name__)}"
