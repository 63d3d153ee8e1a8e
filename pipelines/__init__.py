"""The kinds of job: a plain dict by name."""

from pipelines.pipeline import Kind

KINDS: dict[str, Kind] = {}
