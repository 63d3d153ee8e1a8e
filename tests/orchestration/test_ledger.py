"""Two-phase commits, a block at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestration import ledger
from orchestration.folder import JobFolder, block_name
from workers import ids, storage


def block(*row_ids: str, failed: int = 0) -> pa.Table:
    status = ["failed"] * failed + ["ok"] * (len(row_ids) - failed)
    return pa.table({"row_id": list(row_ids), "product": list(range(len(row_ids))), "status": status})


def planned(place: Path) -> JobFolder:
    """A folder whose generations 0 and 1 are planned."""
    for generation in (0, 1):
        path = place / f"plan/gen-{generation}"
        path.mkdir(parents=True)
        pq.write_table(pa.table({"row_id": ["a", "b", "c"]}), path / "part-00000.parquet")
    return JobFolder(str(place))


def test_a_committed_block_is_read_and_its_failed_rows_lie_apart(tmp_path: Path) -> None:
    folder = planned(tmp_path)
    ledger.BlockWriter(folder, 0).commit(block("a", "b", "c", failed=1))
    assert np.array_equal(np.sort(ledger.committed(folder, 0)), np.sort(ids.hashes(["a", "b", "c"])))
    assert [name.split("/")[2] for name in folder.committed_files(0)] == ["status=failed", "status=ok"]
    assert {block_name(n) for n in folder.committed_files(0)} == {block_name(n) for n in folder.ledger_files(0)}
    assert len(ledger.committed(folder, 1)) == 0


@pytest.mark.parametrize("survives", [0, 1, 2, 3, 4])
def test_a_commit_cut_off_anywhere_leaves_the_block_out_or_in_and_nothing_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survives: int
) -> None:
    folder = planned(tmp_path)
    ledger.BlockWriter(folder, 0).commit(block("a"))
    steps = list[str]()

    def step(name: str) -> None:
        if len(steps) == survives:
            raise KeyboardInterrupt
        steps.append(name)

    write, move = storage.write_atomic, type(folder.fs).mv
    monkeypatch.setattr(storage, "write_atomic", lambda fs, path, data: (step(path), write(fs, path, data)))
    monkeypatch.setattr(type(folder.fs), "mv", lambda fs, a, b: (step(b), move(fs, a, b)))
    if survives < 4:
        with pytest.raises(KeyboardInterrupt):
            ledger.BlockWriter(folder, 0).commit(block("b", "c", failed=1))
    else:
        ledger.BlockWriter(folder, 0).commit(block("b", "c", failed=1))
    whole = ["a"] if survives < 4 else ["a", "b", "c"]
    assert np.array_equal(np.sort(ledger.committed(folder, 0)), np.sort(ids.hashes(whole)))
    assert sorted(folder.results()["row_id"].to_pylist()) == whole
    monkeypatch.undo()
    assert ledger.clear_pending(folder, 0) == (1 if 0 < survives < 4 else 0)
    assert folder.files("data", "gen-0") == folder.committed_files(0)
    assert sorted(folder.results()["row_id"].to_pylist()) == whole


def test_a_block_with_both_ledger_files_keeps_its_data(tmp_path: Path) -> None:
    folder = planned(tmp_path)
    ledger.BlockWriter(folder, 0).commit(block("a", "b"))
    name = folder.ledger_files(0)[0]  # renamed by copy, and not yet deleted
    folder.fs.cp_file(folder.join(name), folder.join(name.replace(".parquet", ".pending.parquet")))
    ledger.clear_pending(folder, 0)
    assert folder.files("ledger") == [name]
    assert sorted(folder.results()["row_id"].to_pylist()) == ["a", "b"]


def test_clearing_one_block_leaves_its_neighbours_and_other_generations_alone(tmp_path: Path) -> None:
    folder = planned(tmp_path)
    first, second = ledger.BlockWriter(folder, 0), ledger.BlockWriter(folder, 1)
    for row_id in ("a", "b"):
        first.commit(block(row_id))
    second.commit(block("c"))
    name = folder.join(folder.ledger_files(0)[0])
    folder.fs.mv(name, name.replace(".parquet", ".pending.parquet"))
    assert ledger.clear_pending(folder, 0) == 1
    assert len(ledger.committed(folder, 0)) == 1
    assert len(folder.files("data", "gen-0")) == 1
    assert len(ledger.committed(folder, 1)) == 1


def test_two_writers_never_share_a_block_name(tmp_path: Path) -> None:
    folder = planned(tmp_path)
    for row_id in ("a", "b"):
        ledger.BlockWriter(folder, 0).commit(block(row_id))
    assert len(folder.ledger_files(0)) == 2


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("ledger/gen-0/u_000001_000000.parquet", "u_000001_000000"),
        ("ledger/gen-0/u_000001_000000.pending.parquet", "u_000001_000000"),
        ("data/gen-0/status=ok/u_000001_000000-0.parquet", "u_000001_000000"),
        ("data/gen-0/status=failed/u-v_000001_000000-12.parquet", "u-v_000001_000000"),
    ],
)
def test_ledger_and_data_files_of_a_block_share_its_name(name: str, block: str) -> None:
    assert block_name(name) == block
