"""What an engine is given: a generation's plan to run through a pipeline into a folder."""

from __future__ import annotations

from dataclasses import dataclass

from orchestration.folder import JobFolder
from orchestration.job import Resources
from pipelines.pipeline import Pipeline
from workers.guard import Post


@dataclass(frozen=True)
class Assignment:
    """A generation of a job. `driver` is the lease's owner; `replicas` copies of the model share the machine or cluster."""

    folder: JobFolder
    pipeline: Pipeline
    generation: int
    driver: str
    block_rows: int
    replicas: int
    resources: Resources

    def post(self, *, separate_process: bool) -> Post:
        """What a guarded stage needs to know."""
        return Post(
            folder=self.folder.uri,
            driver=self.driver,
            generation=self.generation,
            separate_process=separate_process,
            row_timeout_s=self.resources.row_timeout_s,
        )
