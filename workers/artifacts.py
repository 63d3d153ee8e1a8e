"""Names of what a row leaves behind as a file."""

from __future__ import annotations

import hashlib
from urllib.parse import quote


def artifact_name(row_id: str, extension: str) -> str:
    """Path of a row's artifact relative to the job folder; `extension` without the dot."""
    return f"artifacts/{hashlib.sha1(row_id.encode()).hexdigest()[:2]}/{quote(row_id, safe='')}.{extension}"
