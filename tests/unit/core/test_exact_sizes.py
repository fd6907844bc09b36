from octavo.core.buckets import ExactSizes


def test_each_size_is_its_own_up_to_the_largest() -> None:
    sizes = ExactSizes(most_tokens=100)
    assert sizes.fit(7, 7) == (7, 7) and sizes.fit(100, 3) == (100, 3)
    assert sizes.fit(101, 3) is None
