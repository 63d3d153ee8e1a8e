"""The journal of rows in flight: what a dead process leaves behind, and what the next one makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from workers.quarantine import Journal, Suspicion


def journal(folder: Path, driver: str = "now", *, separate: bool = True) -> Journal:
    return Journal(str(folder), driver, "model", separate)


def died_on(folder: Path, *row_ids: str, driver: str = "now", separate: bool = True, reason: str | None = None) -> None:
    """What a process that died on these rows leaves behind."""
    folder.mkdir(exist_ok=True)
    entry = {"ids": row_ids, "driver": driver, "stage": "model", "separate_process": separate, "host": "h", "pid": 1}
    name = folder / f"{len(list(folder.iterdir()))}.json"
    name.write_text(json.dumps(entry if reason is None else {**entry, "reason": reason}))


def test_a_stage_that_answers_or_raises_leaves_no_entry(tmp_path: Path) -> None:
    notes = journal(tmp_path / "j")
    with notes.entry(["a", "b"]):
        assert len(list((tmp_path / "j").iterdir())) == 1
        assert notes.suspicions(["a"]) == {}  # its own entry is no suspicion
        assert set(journal(tmp_path / "j").suspicions(["a", "c"])) == {"a"}
    with pytest.raises(ValueError, match="bad"), notes.entry(["a"]):
        raise ValueError("bad")
    assert list((tmp_path / "j").iterdir()) == []
    assert journal(tmp_path / "nowhere").suspicions(["a"]) == {}


def test_rows_that_died_in_company_run_alone_and_are_not_failed(tmp_path: Path) -> None:
    died_on(tmp_path / "j", "a", "b")
    found = journal(tmp_path / "j").suspicions(["a", "b", "c"])
    assert set(found) == {"a", "b"}
    assert found["a"] == Suspicion(deaths=1, alone=0, stage="model")
    assert found["a"].verdict is None


def test_a_row_that_died_in_company_and_then_alone_is_failed(tmp_path: Path) -> None:
    died_on(tmp_path / "j", "a", "b")
    died_on(tmp_path / "j", "a")
    found = journal(tmp_path / "j").suspicions(["a", "b"])
    verdict = found["a"].verdict
    assert verdict is not None
    assert (verdict.error_type, found["b"].verdict) == ("ProcessDied", None)


def test_a_row_in_the_company_of_killers_twice_still_gets_its_own_try(tmp_path: Path) -> None:
    died_on(tmp_path / "j", "a", "b")
    died_on(tmp_path / "j", "a", "c")
    assert journal(tmp_path / "j").suspicions(["a"])["a"] == Suspicion(deaths=2, alone=0, stage="model")
    assert journal(tmp_path / "j").suspicions(["a"])["a"].verdict is None


@pytest.mark.parametrize(("separate", "failed"), [(True, False), (False, True)])
def test_replicas_that_died_with_their_driver_are_no_fault_of_their_rows(tmp_path: Path, separate: bool, failed: bool) -> None:
    for _ in range(3):
        died_on(tmp_path / "j", "a", driver="an earlier one", separate=separate)
    suspicion = journal(tmp_path / "j").suspicions(["a"])["a"]
    assert (suspicion.verdict is not None) is failed  # on the inline engine the driver is the process that dies


def test_a_row_that_exceeded_its_time_twice_says_so(tmp_path: Path) -> None:
    died_on(tmp_path / "j", "a", "b", reason="timeout")
    died_on(tmp_path / "j", "a", reason="timeout")
    verdict = journal(tmp_path / "j").suspicions(["a"])["a"].verdict
    assert verdict is not None
    assert verdict.error_type == "RowTimeout"
    assert "resources.row_timeout_s" in verdict.error


def test_an_entry_that_is_just_being_removed_is_passed_over(tmp_path: Path) -> None:
    died_on(tmp_path / "j", "a")
    (tmp_path / "j/half.json").write_text("")
    assert set(journal(tmp_path / "j").suspicions(["a"])) == {"a"}


def test_ids_of_any_letters_are_remembered(tmp_path: Path) -> None:
    odd = ["a/b", 'say "x"', "zwei\nZeilen", "写真-1", "{}"]
    died_on(tmp_path / "j", *odd)
    assert set(journal(tmp_path / "j").suspicions(odd)) == set(odd)
