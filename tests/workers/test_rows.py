"""One bad row costs one row: retries, bisection, out of memory."""

from __future__ import annotations

import errno
import math
from collections.abc import Sequence

import aiohttp
import botocore.exceptions
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import UnidentifiedImageError

from workers.rows import Failure, JobStopped, Outcome, Retry, SafeBatches, attempt, is_out_of_memory, is_transient


@given(size=st.integers(0, 60), limit=st.integers(1, 20), data=st.data())
def test_k_bad_items_cost_k_items_and_few_calls(size: int, limit: int, data: st.DataObject) -> None:
    bad = data.draw(st.sets(st.integers(0, size - 1), max_size=4)) if size else set[int]()
    calls = list[int]()

    def infer(items: Sequence[int]) -> list[int]:
        calls.append(len(items))
        if bad.intersection(items):
            raise ValueError(f"{min(bad.intersection(items))} is bad")
        return [10 * item for item in items]

    out = SafeBatches(infer, limit).run(list(range(size)))
    assert [value for value, *_ in out] == [None if i in bad else 10 * i for i in range(size)]
    assert [failure for _, failure, *_ in out] == [Failure("ValueError", f"{i} is bad") if i in bad else None for i in range(size)]
    assert all(attempts >= 1 and ms >= 0 for *_, attempts, ms in out)
    assert max(calls, default=0) <= limit
    assert len(calls) <= math.ceil(size / limit) + len(bad) * 2 * math.ceil(math.log2(limit) + 1)


def test_out_of_memory_halves_the_batch_and_later_batches_begin_there() -> None:
    calls = list[int]()

    def infer(items: Sequence[int]) -> list[int]:
        calls.append(len(items))
        if len(items) > 3:
            raise MemoryError
        return list(items)

    batches = SafeBatches(infer, 8)
    assert [value for value, *_ in batches.run(list(range(8)))] == list(range(8))
    assert calls == [8, 4, 2, 2, 2, 2]
    calls.clear()
    batches.run(list(range(8)))
    assert calls == [2, 2, 2, 2]


def test_an_item_that_fits_not_even_alone_makes_later_batches_no_smaller() -> None:
    calls = list[int]()

    def infer(items: Sequence[int]) -> list[int]:
        calls.append(len(items))
        if 5 in items:
            raise MemoryError("five never fits")
        return list(items)

    batches = SafeBatches(infer, 8)
    assert [value for value, *_ in batches.run(list(range(8)))] == [0, 1, 2, 3, 4, None, 6, 7]
    calls.clear()
    batches.run(list(range(10, 18)))
    assert calls == [8]


def test_a_model_that_returns_too_few_answers_fails_its_rows_and_mixes_none_up() -> None:
    out = SafeBatches(lambda items: [i for i in items if i != 2], 4).run([0, 1, 2, 3])
    assert [value for value, *_ in out] == [0, 1, None, 3]
    assert out[2][1] == Failure("AssertionError", "1 rows went in and 0 came back")


def test_what_stops_a_job_is_no_row_s_failure() -> None:
    def stop(_: object) -> list[int]:
        raise JobStopped("the lease is lost")

    with pytest.raises(JobStopped):
        SafeBatches(stop, 4).run([1, 2])
    with pytest.raises(JobStopped):
        attempt(lambda row: {"x": stop(row)}, 1, Retry(3, 0))


@pytest.mark.parametrize("tries", [1, 2, 4])
def test_transient_trouble_is_tried_again_up_to_the_limit(tries: int) -> None:
    calls = list[int]()

    def read(row: int) -> dict[str, int]:
        calls.append(row)
        if len(calls) < 3:
            raise ConnectionResetError("again")
        return {"x": row}

    outcome = attempt(read, 7, Retry(tries, 0))
    assert len(calls) == min(tries, 3)
    expected = Outcome({"x": 7}, attempts=3) if tries >= 3 else Outcome(failure=Failure("ConnectionResetError", "again"), attempts=tries)
    assert outcome == expected


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_full_disk_stops_the_job_instead_of_failing_row_after_row(number: int) -> None:
    def write(row: int) -> dict[str, int]:
        raise OSError(number, "can't write", "restored.jpg")

    with pytest.raises(JobStopped, match=r"can't be written .*run the same command again"):
        attempt(write, 1, Retry(4, 10))


def test_trouble_that_stays_is_not_tried_again() -> None:
    calls = list[int]()

    def read(row: int) -> dict[str, int]:
        calls.append(row)
        raise FileNotFoundError("a.jpg")

    assert attempt(read, 1, Retry(4, 10)).failure == Failure("FileNotFoundError", "a.jpg")
    assert calls == [1]


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (OSError(5, "input/output error"), True),
        (OSError(16, "slow down"), True),
        (botocore.exceptions.EndpointConnectionError(endpoint_url="s3"), True),
        (botocore.exceptions.ReadTimeoutError(endpoint_url="s3"), True),
        (aiohttp.ServerDisconnectedError(), True),
        (aiohttp.ClientPayloadError(), True),
        (botocore.exceptions.NoCredentialsError(), False),
        (FileNotFoundError(2, "none"), False),
        (PermissionError(13, "no"), False),
        (OSError(28, "no space left"), False),
        (OSError(36, "name too long"), False),
        (OSError("image file is truncated"), False),
        (UnidentifiedImageError("what is this"), False),
        (ValueError("bad"), False),
    ],
)
def test_only_trouble_that_may_pass_is_transient(error: Exception, transient: bool) -> None:
    assert is_transient(error) is transient


def test_out_of_memory_is_recognised_by_name_on_any_device() -> None:
    cuda = type("OutOfMemoryError", (RuntimeError,), {})
    assert is_out_of_memory(cuda("CUDA out of memory"))
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))


@given(text=st.text(max_size=3000))
def test_any_error_text_is_kept_short_and_fits_a_column(text: str) -> None:
    failure = Failure.of(ValueError(text))
    assert failure.error_type == "ValueError"
    assert 0 < len(failure.error) <= 2000
    assert failure.error.encode()
