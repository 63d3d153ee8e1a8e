"""How far a job is, read from its ledger."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pyarrow as pa

from orchestration import ledger
from orchestration.folder import JobFolder
from orchestration.progress import Log, Watch


def commit(folder: JobFolder, ok: int, failed: int = 0) -> None:
    status = ["ok"] * ok + ["failed"] * failed
    ids = [f"{len(folder.ledger_files(0))}-{i}" for i in range(ok + failed)]
    ledger.BlockWriter(folder, 0).commit(pa.table({"row_id": ids, "status": status}))


def test_a_watch_counts_what_is_committed_and_only_this_driver_s_rows_in_its_rate(tmp_path: Path) -> None:
    folder = JobFolder(str(tmp_path))
    commit(folder, 5, 1)
    watch = Watch(folder, 0, 20, time.time() - 2)
    point = watch.look()
    assert (point.planned, point.done, point.ok, point.failed) == (20, 6, 5, 1)
    assert (point.rows_per_s, point.first_block_s) == (0.0, None)
    commit(folder, 2, 2)
    point = watch.look()
    assert (point.done, point.ok, point.failed) == (10, 7, 3)
    assert point.rows_per_s == 4 / point.seconds
    first = point.first_block_s
    assert first is not None
    assert first >= 2
    commit(folder, 1)
    assert watch.look().first_block_s == first


def test_a_watch_knows_when_a_block_was_last_new(tmp_path: Path) -> None:
    folder = JobFolder(str(tmp_path))
    watch = Watch(folder, 0, 4, time.time())
    before = watch.changed
    watch.look()
    assert watch.changed == before
    commit(folder, 1)
    watch.look()
    assert watch.changed > before


def test_pending_blocks_are_not_counted(tmp_path: Path) -> None:
    folder = JobFolder(str(tmp_path))
    commit(folder, 3)
    name = Path(folder.join(folder.ledger_files(0)[0]))
    name.rename(name.with_name(name.name.replace(".parquet", ".pending.parquet")))
    assert Watch(folder, 0, 4, time.time()).look().done == 0


def test_the_log_keeps_a_point_now_and_then_and_the_last_one_and_a_resumed_job_goes_on_in_it(tmp_path: Path) -> None:
    folder = JobFolder(str(tmp_path))
    watch = Watch(folder, 0, 4, time.time())
    log = Log(folder, every_s=1000)
    kept = [log.write(watch.look(), "inline"), log.write(watch.look(), "inline"), log.write(watch.look(), "inline", finished=True)]
    assert kept == [True, False, True]
    assert folder.read_json("progress.json")["finished"] is True
    Log(folder, every_s=1000).write(watch.look(), "ray")
    points = [json.loads(line) for line in Path(folder.uri, "metrics.jsonl").read_text().splitlines()]
    assert len(points) == 3
    assert points[0]["planned"] == 4
