"""What stands around every stage of a running job: quarantine, row safety at the border, the contract columns, the driver's lease."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from workers import ids, storage
from workers.quarantine import Journal
from workers.rows import Failure, JobStopped, Outcome
from workers.stage import Stage

CONTRACT = pa.schema(
    [
        ("status", pa.string()),  # "ok" | "failed"
        ("error_type", pa.string()),
        ("error", pa.string()),
        ("stage", pa.string()),  # where it failed
        ("attempts", pa.int32()),
        ("model_ms", pa.float32()),  # the row's share of model time
    ]
)


_MISFITS = (pa.ArrowException, OverflowError, UnicodeError)


class LeaseLost(JobStopped):
    """Another driver has taken over this job; this process must not write to its folder any more."""


@dataclass(frozen=True)
class Post:
    """Where a stage runs: the job folder, the driver it works for, the generation, and limits."""

    folder: str
    driver: str
    generation: int = 0
    separate_process: bool = True
    row_timeout_s: float | None = None


class Guarded:
    """A stage made safe to run by the million rows: `table -> table`, every row back exactly once, in order.

    Rows that failed earlier pass through; rows that killed a process run alone, or no more; whatever a row raises becomes its failure.
    Raises LeaseLost when another driver holds the lease, and what stops a whole job (JobStopped).
    """

    def __init__(self, stage: Stage, post: Post, threads: int | None = None) -> None:
        """Sets the stage up. `threads`: cores that its model may use, where it has a process to itself."""
        if threads is not None:
            os.environ["OMP_NUM_THREADS"] = str(threads)  # before the model's libraries are imported
        self.stage, self.post = stage, post
        entries = storage.join(post.folder, "attempts", f"gen-{post.generation}")
        self._journal = Journal(entries, post.driver, stage.name, post.separate_process)
        self._register()
        stage.setup()
        if stage.facts():
            self._register()

    def __call__(self, table: pa.Table) -> pa.Table:
        self._check_lease()
        table = with_contract(table)
        outcomes: dict[int, Outcome] = {}
        healthy = [index for index, status in enumerate(table["status"].to_pylist()) if status == "ok"]
        row_ids = table["row_id"].to_pylist()
        suspicions = self._journal.suspicions([row_ids[i] for i in healthy])
        company = [i for i in healthy if row_ids[i] not in suspicions]
        groups = [company[at : at + self.stage.micro_batch] for at in range(0, len(company), self.stage.micro_batch)]
        for index in (i for i in healthy if row_ids[i] in suspicions):
            verdict = suspicions[row_ids[index]].verdict
            if verdict is None:
                groups.append([index])
            else:
                suspicion = suspicions[row_ids[index]]
                outcomes[index] = Outcome(failure=verdict, stage=suspicion.stage, attempts=suspicion.deaths)
        for group in groups:
            timeout_s = None if self.post.row_timeout_s is None else self.post.row_timeout_s * len(group)
            with self._journal.entry([row_ids[i] for i in group], timeout_s):
                answers = self.stage.run(table.take(pa.array(group, pa.int64())))
            assert len(answers) == len(group), f"{self.stage.name}: {len(group)} rows went in and {len(answers)} came back"
            outcomes.update(zip(group, answers, strict=True))
        self._check_lease()
        return _merge(table, outcomes, self.stage)

    def _check_lease(self) -> None:
        fs, path = storage.filesystem(storage.join(self.post.folder, "lease.json"))
        try:
            owner = json.loads(fs.cat_file(path))["owner"]
        except FileNotFoundError:
            raise LeaseLost(f"{self.post.folder} has no lease any more; this process stops") from None
        if owner != self.post.driver:
            raise LeaseLost(f"{self.post.folder} is now run by {owner}; this process stops")

    def _register(self) -> None:
        """Leave word which process works for this driver: a job is taken over only when these are gone."""
        process = psutil.Process()
        fact = {"driver": self.post.driver, "host": socket.gethostname(), "pid": os.getpid(), "started": process.create_time()}
        fact["facts"] = self.stage.facts()
        fs, path = storage.filesystem(
            storage.join(self.post.folder, "attempts", "replicas", f"{fact['host']}-{fact['pid']}-{self.stage.name}.json")
        )
        storage.write_atomic(fs, path, json.dumps(fact).encode())


_HERE: dict[tuple[Post, str], Guarded] = {}


def guard_here(table: pa.Table, stage: Stage, post: Post) -> pa.Table:
    """The guarded stage as a function, for stages that run wherever there is room: set up once a process."""
    if (post, stage.name) not in _HERE:
        _HERE[post, stage.name] = Guarded(stage, post)
    return _HERE[post, stage.name](table)


def with_contract(table: pa.Table) -> pa.Table:
    """The table with the contract columns, as rows enter their first stage."""
    for field in CONTRACT:
        if field.name not in table.column_names:
            first: Any = {"status": "ok", "attempts": 0, "model_ms": 0.0}.get(field.name)
            table = table.append_column(field, pa.array([first] * len(table), field.type))
    return table


def _merge(table: pa.Table, outcomes: dict[int, Outcome], stage: Stage) -> pa.Table:
    failures: dict[int, Failure] = {}
    columns: dict[str, list[Any]] = {name: [None] * len(table) for name in stage.adds.names}
    for index, outcome in outcomes.items():
        if outcome.failure is not None:
            failures[index] = outcome.failure
            continue
        missing = set(stage.adds.names) - set(outcome.columns)
        assert not missing, f"{stage.name} promised {missing}"
        for name in stage.adds.names:
            columns[name][index] = outcome.columns[name]
    table = table.drop_columns([c for c in {*stage.drops, *stage.adds.names} if c in table.column_names])
    for field in stage.adds:
        table = table.append_column(field, _column(columns[field.name], field, failures))
    contract = {name: table[name].to_pylist() for name in CONTRACT.names}
    for index, outcome in outcomes.items():
        contract["attempts"][index] = max(contract["attempts"][index], outcome.attempts)
        contract["model_ms"][index] += outcome.model_ms
        if index in failures:
            contract["status"][index], contract["stage"][index] = "failed", outcome.stage or stage.name
            contract["error_type"][index], contract["error"][index] = failures[index].error_type, failures[index].error
    for field in CONTRACT:
        table = table.set_column(table.column_names.index(field.name), field, pa.array(contract[field.name], field.type))
    return table


def _column(values: list[Any], field: pa.Field, failures: dict[int, Failure]) -> pa.Array:
    """A stage's new column. A value that can't stand in it costs its row, not its whole block: it becomes null and one of `failures`."""
    try:
        return pa.array(values, field.type)
    except _MISFITS:
        fitting = list(values)
        for index, value in enumerate(values):
            try:
                pa.array([value], field.type)
            except _MISFITS as error:
                fitting[index], failures[index] = None, Failure.of(error)
        return pa.array(fitting, field.type)


def left(table: pa.Table, done: ids.Hashes) -> pa.Table:
    """The rows whose id's hash is not in `done`."""
    return table.filter(pa.array(~np.isin(ids.hashes(table["row_id"]), done)))


def committed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table as data/ holds it: the schema's columns in its order, null where a failed row has none."""
    table = with_contract(table)
    arrays = [
        table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(len(table), field.type) for field in schema
    ]
    return pa.table(arrays, schema=schema)
