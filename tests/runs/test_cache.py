from mergelab.runs.cache import ByteCache


def test_the_least_recently_used_value_leaves_first():
    cache = ByteCache(limit=10, size=len)
    cache.put("a", "x" * 4)
    cache.put("b", "x" * 4)
    assert cache.get("a") == "xxxx"  # now b is the older one
    cache.put("c", "x" * 4)
    assert cache.get("b") is None
    assert cache.get("a") and cache.get("c")


def test_a_value_over_the_limit_is_not_kept_and_pushes_nothing_out():
    cache = ByteCache(limit=10, size=len)
    cache.put("a", "x" * 9)
    cache.put("big", "x" * 11)
    assert cache.get("big") is None
    assert cache.get("a") is not None


def test_replacing_a_value_counts_it_once():
    cache = ByteCache(limit=10, size=len)
    cache.put("a", "x" * 6)
    cache.put("a", "x" * 7)
    assert len(cache) == 1
    cache.put("b", "x" * 3)
    assert len(cache) == 2
