from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.reference_cache import ReferenceCache


def test_the_least_recently_used_value_goes_first() -> None:
    cache: ReferenceCache[str] = ReferenceCache(3, size=len)
    for key in ("a", "b", "c"):
        cache.put(key, "x")
    assert cache.get("a") == "x"
    cache.put("d", "x")
    assert [cache.get(key) for key in ("a", "b", "c", "d")] == ["x", None, "x", "x"]
    assert (cache.hits, cache.misses) == (4, 1)


@given(puts=st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 12)), max_size=30))
def test_the_bound_holds_whatever_is_put(puts: list[tuple[str, int]]) -> None:
    cache: ReferenceCache[str] = ReferenceCache(10, size=len)
    for key, size in puts:
        cache.put(key, "x" * size)
        assert cache.bytes <= 10
    assert cache.bytes == sum(len(value) for value in cache._values.values())


def test_a_bound_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="cache_bytes is -1"):
        ReferenceCache(-1, size=len)
