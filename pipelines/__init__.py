"""The kinds of job: a plain dict by name."""

from pipelines.pipeline import Kind
from pipelines.restore import RESTORE

KINDS: dict[str, Kind] = {"restore": RESTORE}
