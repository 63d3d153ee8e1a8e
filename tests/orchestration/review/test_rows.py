from __future__ import annotations

from pathlib import Path

import numpy as np

from orchestration.review import rows
from tests.orchestration.review.folders import job_folder, people, retry, row, seal
from workers import ids


def test_a_retried_row_counts_by_its_last_generation(tmp_path: Path) -> None:
    folder = job_folder(tmp_path, people(10, failed=3))
    retry(folder, [row("photo-00008"), row("photo-00009", status="failed", error_type="ProcessDied", error="died")])
    ended = rows.scan(folder, ["identity_similarity"])
    assert len(ended.hashes) == len(np.unique(ended.hashes)) == 10
    assert int(ended.failed.sum()) == 2
    assert [(g.error_type, g.count) for g in ended.failures] == [("ImageBroken", 1), ("ProcessDied", 1)]
    assert sorted(ended.generation.tolist()) == [0] * 8 + [1] * 2


def test_a_block_that_was_never_committed_is_not_read(tmp_path: Path) -> None:
    folder = job_folder(tmp_path, people(4), finished=False)
    path = Path(folder.join("ledger/gen-0/a_000000_000000.parquet"))
    path.rename(path.with_name("a_000000_000000.pending.parquet"))
    assert len(rows.scan(folder, []).hashes) == 0
    assert rows.planned(folder) == 4


def test_a_void_copy_of_a_row_is_not_counted(tmp_path: Path) -> None:
    folder = job_folder(tmp_path, people(4))
    data = folder.files("data", "gen-0")[0]
    copy = data.replace("a_000000", "z_000000")
    Path(folder.join(copy)).write_bytes(Path(folder.join(data)).read_bytes())
    seal(folder, void=[{"path": copy, "row_ids": [f"photo-{i:05}" for i in range(4)]}])
    assert len(rows.scan(folder, []).hashes) == 4


def test_errors_that_differ_in_paths_and_numbers_are_told_once(tmp_path: Path) -> None:
    failed = [row(f"r{i}", status="failed", error_type="ImageBroken", error=f"/photos/{i}.jpg breaks off at byte {i}") for i in range(30)]
    (group,) = rows.scan(job_folder(tmp_path, failed), []).failures
    (pattern,) = group.patterns.values()
    assert pattern.count == 30
    assert pattern.example == "/photos/0.jpg breaks off at byte 0"
    assert len(pattern.row_ids) == 5


def test_a_choice_of_many_rows_keeps_failures_and_both_ends(tmp_path: Path) -> None:
    count, limit = 5000, 400
    numbers = np.random.default_rng(0).permutation(count).astype(np.float32)
    failed = np.zeros(count, bool)
    failed[:50] = True
    numbers[:50] = np.nan
    hashes = ids.hashes([str(i) for i in range(count)])
    ended = rows.Ended([], hashes, failed, np.zeros(count, np.int16), {"s": numbers}, [])
    chosen = rows.choose(ended, "s", limit)
    assert len(chosen) == len(set(chosen.tolist())) == limit
    assert set(range(50)) <= set(chosen.tolist())
    assert np.nanargmin(numbers) in chosen
    assert np.nanargmax(numbers) in chosen
    assert (rows.choose(ended, "s", count) == np.arange(count)).all()


def test_outputs_are_those_of_the_chosen_rows(tmp_path: Path) -> None:
    folder = job_folder(tmp_path, people(20, failed=4))
    ended = rows.scan(folder, [])
    positions = np.array([0, 3, 17, 19])
    found = [one for batch in rows.outputs(folder, ended.files, positions) for one in batch]
    assert (ids.hashes([one["row_id"] for one in found]) == ended.hashes[positions]).all()
    assert [one["status"] == "failed" for one in found] == ended.failed[positions].tolist()
