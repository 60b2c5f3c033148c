"""`core.byowner`: who gives up what, where there is too much of it (DESIGN 5.3 and 7)."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessionproxy.core.byowner import ByOwner
from sessionproxy.core.ports import Identity


def identity(owner: str, key: str | int) -> Identity:
    return Identity("r", owner, str(key))


def filled(*names: str) -> ByOwner[str]:
    """`a1` is what `a` has under the key `1`."""
    found: ByOwner[str] = ByOwner()
    for name in names:
        found.put(identity(name[0], name[1:]), name)
    return found


def test_what_is_put_is_found_and_what_is_taken_out_is_not() -> None:
    found = filled("a1", "b1", "a2")
    assert (len(found), list(found)) == (3, ["a1", "b1", "a2"])
    assert found.get(identity("b", 1)) == "b1"
    assert found.get(identity("c", 1)) is None
    assert found.pop(identity("a", 1)) == "a1"
    assert found.pop(identity("a", 1)) is None
    assert found.pop(identity("c", 1)) is None
    assert list(found) == ["b1", "a2"]


def test_what_is_put_again_is_the_newest() -> None:
    found = filled("a1", "a2", "a1")
    assert list(found) == ["a2", "a1"]
    assert found.first_to_go() == identity("a", 2)


def test_of_one_owner_the_oldest_goes_first() -> None:
    assert filled("a1", "a2", "a3").first_to_go() == identity("a", 1)


def test_the_owner_with_the_most_pays_though_others_are_older() -> None:
    assert filled("b1", "a1", "a2", "c1").first_to_go() == identity("a", 1)


def test_of_owners_with_as_many_the_one_that_has_had_them_for_the_longest_pays() -> None:
    assert filled("b1", "a1", "c1").first_to_go() == identity("b", 1)


def test_where_there_is_nothing_nothing_goes() -> None:
    found = filled("a1")
    found.pop(identity("a", 1))
    with pytest.raises(KeyError):
        found.first_to_go()


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abc"), st.integers(0, 4))))
def test_whatever_came_and_went_the_first_to_go_is_the_oldest_of_one_who_has_the_most(
    steps: list[tuple[bool, str, int]],
) -> None:
    """Against a list that is looked through as a whole."""
    found: ByOwner[Identity] = ByOwner()
    model: list[Identity] = []
    for puts, owner, key in steps:
        one = identity(owner, key)
        if one in model:
            model.remove(one)
        if puts:
            model.append(one)
            found.put(one, one)
        else:
            found.pop(one)
        assert list(found) == model
        if model:
            first = found.first_to_go()
            counts = Counter(each.owner for each in model)
            assert counts[first.owner] == max(counts.values())
            assert first == next(each for each in model if each.owner == first.owner)
