"""Row safety: one bad row costs one row. Retries, bisection and out-of-memory halving, as functions of plain lists."""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Value = TypeVar("Value")

MAX_ERROR_CHARS = 2000
_UNWRITABLE = (errno.ENOSPC, errno.EROFS, errno.EDQUOT)
_NETWORK = ("ConnectionError", "HTTPClientError", "ClientConnectionError", "ClientPayloadError")  # botocore's and aiohttp's, no OSErrors


@dataclass(frozen=True)
class Failure:
    """Why a row failed."""

    error_type: str
    error: str

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        text = (str(error) or repr(error))[:MAX_ERROR_CHARS]
        return cls(type(error).__name__, text.encode("utf-8", "replace").decode())  # Arrow takes no lone surrogates


@dataclass(frozen=True)
class Outcome:
    """What a stage made of one row: the new columns, or a failure (`stage`: where, if elsewhere). `model_ms`: the row's share of model time."""

    columns: Mapping[str, Any] = field(default_factory=dict)
    failure: Failure | None = None
    stage: str | None = None
    attempts: int = 1
    model_ms: float = 0.0


@dataclass(frozen=True)
class Retry:
    """How often transient errors are tried again: `tries` in all, waiting `wait_s`, then twice as long, …"""

    tries: int = 4
    wait_s: float = 0.2


def is_transient(error: BaseException) -> bool:
    """True for I/O trouble that may pass. A missing file, a refused place or a full disk will not pass by itself."""
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError | FileExistsError):
        return False
    if isinstance(error, OSError) and error.errno in (*_UNWRITABLE, errno.ENAMETOOLONG):
        return False
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    if isinstance(error, OSError) and type(error).__module__ == "builtins":
        return error.errno is not None  # without a number it comes from a decoder, not from the system
    return any(kind.__module__.split(".")[0] in ("botocore", "aiohttp") and kind.__name__ in _NETWORK for kind in type(error).__mro__)


def is_out_of_memory(error: BaseException) -> bool:
    """True for torch's and Python's out-of-memory errors, on any device."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error).lower()


def attempt(function: Callable[[Any], Mapping[str, Any]], row: Any, retry: Retry) -> Outcome:
    """Call a function on one row; transient errors are tried again, everything else fails the row.

    Raises JobStopped where the disk is full or read-only: every later row would fail too, and none is at fault.
    """
    for number in range(1, retry.tries + 1):
        try:
            return Outcome(function(row), attempts=number)
        except JobStopped:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in _UNWRITABLE:
                raise JobStopped(f"the output can't be written ({error}); make room, then run the same command again") from error
            if number == retry.tries or not is_transient(error):
                return Outcome(failure=Failure.of(error), attempts=number)
            time.sleep(retry.wait_s * 2 ** (number - 1))
    raise AssertionError("unreachable")


class JobStopped(RuntimeError):
    """The whole job must stop: not one row's fault (full disk, lost lease). Never turned into a failed row."""


class SafeBatches(Generic[Item, Value]):
    """Runs a model over items so that one bad item costs one item.

    `infer(items) -> values`, same order and length. On an exception the batch is bisected down to the item (k bad items cost O(k log n) calls);
    out of memory halves the batch size and remembers it for later batches, unless it was one item that does not fit even alone.
    """

    def __init__(self, infer: Callable[[Sequence[Item]], Sequence[Value]], limit: int) -> None:
        self.infer, self.limit = infer, limit

    def run(self, items: Sequence[Item]) -> list[tuple[Value | None, Failure | None, int, float]]:
        """(value, failure, attempts, milliseconds) of each item, in order."""
        out: list[tuple[Value | None, Failure | None, int, float]] = [(None, None, 0, 0.0)] * len(items)
        limit_before = self.limit
        pending: list[tuple[int, int, int]] = [(0, len(items), 1)] if items else []  # a stack of [low, high) and the tries so far
        while pending:
            low, high, tries = pending.pop()
            if high - low > self.limit:
                pending += [(at, min(at + self.limit, high), tries) for at in range(low, high, self.limit)][::-1]
                continue
            started = time.perf_counter()
            try:
                values = self.infer(items[low:high])
                if len(values) != high - low:
                    raise AssertionError(f"{high - low} rows went in and {len(values)} came back")
            except JobStopped:
                raise
            except Exception as error:
                if high - low == 1:
                    if is_out_of_memory(error):
                        self.limit = limit_before  # this item's fault; batches without it are as good as before
                        _empty_cache()
                    out[low] = (None, Failure.of(error), tries, (time.perf_counter() - started) * 1e3)
                    continue
                if is_out_of_memory(error):
                    self.limit = max(1, (high - low) // 2)
                    _empty_cache()
                middle = (low + high) // 2
                pending += [(middle, high, tries + 1), (low, middle, tries + 1)]
                continue
            share = (time.perf_counter() - started) * 1e3 / (high - low)
            out[low:high] = [(value, None, tries, share) for value in values]
        return out


def _empty_cache() -> None:
    torch = sys.modules.get("torch")  # workers know no torch; a model that ran out of memory has imported it
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
