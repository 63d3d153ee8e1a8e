"""Row ids in bulk: 64-bit hashes, so that a million ids cost 8 MB. The plan refuses two ids of one hash, so later comparisons are exact."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import quote

import numpy as np
import pandas as pd
import pyarrow as pa

MAX_QUOTED_ID = 240  # bytes of the URL-quoted id: it becomes a file name

Hashes = np.ndarray  # uint64 (N,)


def hashes(row_ids: pa.Array | pa.ChunkedArray | Iterable[str]) -> Hashes:
    """uint64 (N,), one a row id, in order."""
    values = list(row_ids) if not isinstance(row_ids, pa.Array | pa.ChunkedArray) else row_ids.to_pylist()  # pyright: ignore[reportAttributeAccessIssue]
    return pd.util.hash_array(np.array(values, dtype=object), categorize=False) if values else np.array([], np.uint64)


def repeated(values: Hashes) -> Hashes:
    """Sorted values that occur more than once."""
    ordered = np.sort(values)
    return np.unique(ordered[1:][ordered[1:] == ordered[:-1]])


def too_long(row_ids: Iterable[str]) -> list[str]:
    """Ids that can't be file names."""
    return [i for i in row_ids if len(i) > MAX_QUOTED_ID // 12 and len(quote(i, safe="")) > MAX_QUOTED_ID]
