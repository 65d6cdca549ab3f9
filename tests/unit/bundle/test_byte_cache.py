"""The cache that all caches are made of: bounded in bytes, the least recently used go first."""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from app.bundle.byte_cache import ByteBoundedCache

KEYS = st.sampled_from("abcd")
STEPS = st.one_of(
    st.tuples(st.just("put"), KEYS, st.integers(1, 7)),
    st.tuples(st.just("get"), KEYS, st.just(0)),
    st.tuples(st.just("forget"), KEYS, st.just(0)),
    st.tuples(st.just("clear"), KEYS, st.just(0)),
)


@given(st.lists(STEPS), st.integers(0, 12))
def test_it_holds_what_was_used_last_within_its_bytes(steps: list[tuple[str, str, int]], limit: int) -> None:
    cache: ByteBoundedCache[str, int] = ByteBoundedCache(limit)
    model: OrderedDict[str, int] = OrderedDict()  # key -> size, which is its value as well
    gets = 0
    for step, key, size in steps:
        if step == "put":
            model.pop(key, None)
            cache.put(key, size, size)
            model[key] = size
            if size > limit:
                del model[key]
            while sum(model.values()) > limit:
                model.popitem(last=False)
        elif step == "get":
            gets += 1
            assert cache.get(key) == model.get(key)
            if key in model:
                model.move_to_end(key)
        elif step == "forget":
            cache.forget(key)
            model.pop(key, None)
        else:
            cache.clear()
            model.clear()
        assert {k: cache.peek(k) for k in "abcd"} == {k: model.get(k) for k in "abcd"}
        assert cache.bytes == sum(model.values()) <= limit and len(cache) == len(model)
    assert cache.hits + cache.misses == gets


def test_a_value_that_no_longer_serves_is_a_miss_and_is_not_refreshed() -> None:
    cache: ByteBoundedCache[str, int] = ByteBoundedCache(20)
    cache.put("old", 1, 10)
    cache.put("new", 2, 10)
    assert cache.get("old", lambda value: value > 1) is None
    assert cache.get("new", lambda value: value > 1) == 2
    assert (cache.hits, cache.misses) == (1, 1)
    cache.put("third", 3, 10)
    assert "old" not in cache and "new" in cache


def test_the_bytes_add_up_however_many_threads_use_it() -> None:
    cache: ByteBoundedCache[int, int] = ByteBoundedCache(500)

    def use(seed: int) -> bool:
        rng = np.random.default_rng(seed)
        for key, size in zip(rng.integers(0, 40, 2000).tolist(), rng.integers(1, 60, 2000), strict=True):
            cache.put(key, key, int(size))
            if cache.get(key) not in (key, None):
                return False
        return True

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(use, range(4)))
    assert cache.bytes == sum(size for _, size in cache._entries.values())
    assert 0 < cache.bytes <= 500
