"""Names of what a row leaves behind as a file."""

from __future__ import annotations

import hashlib
from urllib.parse import quote


def artifact_name(row_id: str, extension: str, label: str = "") -> str:
    """Path of a row's artifact relative to the job folder; `extension` without the dot.

    `label` tells several artifacts of a row apart. It follows a comma, which in a quoted id is %2C, so that no other row's file is called so.
    """
    suffix = f",{label}" if label else ""
    return f"artifacts/{hashlib.sha1(row_id.encode()).hexdigest()[:2]}/{quote(row_id, safe='')}{suffix}.{extension}"
