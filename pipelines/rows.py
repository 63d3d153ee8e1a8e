"""What kinds share about a row: why it can't be run, its seed, and the seeds of several pictures of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any


class BadRow(ValueError):
    """A row that can't be run as it stands; says what to change in the manifest or the job."""


def row_seed(row: Mapping[str, Any], job_seed: int) -> int:
    """The row's own seed, else a hash of its id and the job's seed (63 bits)."""
    return int(row["seed"]) if row.get("seed") is not None else hashed_seed(job_seed, row["row_id"])


def candidate_seed(seed: int, number: int) -> int:
    """The seed of a row's picture `number`: the row's own for the first, so that more pictures never change those that were there."""
    return seed if number == 0 else hashed_seed(seed, f"picture {number}")


def hashed_seed(seed: int, key: str) -> int:
    """A seed (63 bits) of a key under another seed."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{key}".encode()).digest()[:8], "big") >> 1
