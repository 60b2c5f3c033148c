import pytest

from sessionproxy.core.binding import ID_LENGTH, SessionIds, label_of
from sessionproxy.core.ports import Identity

KEY = b"k" * 32
IDS = SessionIds(KEY, epoch=b"boot")
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def authentic(key: str, *, route: str = "shell", owner: str = "alice") -> bool:
    return IDS.authentic(Identity(route, owner, key))


def test_an_id_is_authentic_for_the_route_and_the_owner_it_was_minted_for() -> None:
    """DESIGN 6: authenticated, with a MAC over route and owner."""
    assert authentic(IDS.mint("shell", "alice"))


def test_an_id_is_worth_nothing_to_another_owner() -> None:
    """DESIGN 5.8."""
    assert not authentic(IDS.mint("shell", "alice"), owner="mallory")


def test_an_id_is_worth_nothing_on_another_route() -> None:
    """DESIGN 6: keys are only ever looked up together with route and owner."""
    assert not authentic(IDS.mint("shell", "alice"), route="browser")


def test_where_the_route_ends_and_the_owner_begins_is_covered() -> None:
    """Else owner `b` of route `ab` could use an id of owner `bb` of route `a`."""
    assert not authentic(IDS.mint("ab", "c"), route="a", owner="bc")


def test_an_id_of_another_key_is_not_authentic() -> None:
    """FAULTS F37: another server's id."""
    other = SessionIds(b"x" * 32, epoch=b"boot")
    assert not authentic(other.mint("shell", "alice"))


def test_an_id_of_an_earlier_boot_is_authentic() -> None:
    """FAULTS F25: the MAC is valid; whether the session is still known is the registry's matter."""
    assert authentic(SessionIds(KEY, epoch=b"past").mint("shell", "alice"))


@pytest.mark.parametrize("place", range(ID_LENGTH))
def test_an_id_that_was_altered_anywhere_is_not_authentic(place: int) -> None:
    """FAULTS F37: forged. Every other character at every place, the spare bits of the last too."""
    ids = SessionIds(KEY, epoch=b"boot", random=lambda size: (b"\xfb\xef\xff" * size)[:size])
    key = ids.mint("shell", "alice")
    assert {"-", "_"} <= set(key)
    for other in ALPHABET + "+/=.\n é":
        if other != key[place]:
            assert not authentic(key[:place] + other + key[place + 1 :])


def test_an_id_that_was_cut_or_padded_is_not_authentic() -> None:
    """FAULTS F37: truncated."""
    key = IDS.mint("shell", "alice")
    for length in range(ID_LENGTH):
        assert not authentic(key[:length])
    for more in ("=", "==", "A", " ", "\n", key):
        assert not authentic(key + more)
        assert not authentic(more + key)


def test_an_id_of_another_version_is_not_authentic() -> None:
    """DESIGN 6: versioned. A version 0 with a valid MAC is made by hand."""
    forger = SessionIds(KEY, epoch=b"boot")
    forger._prefix = b"\0" + forger._prefix[1:]  # pyright: ignore[reportPrivateUsage]
    assert not authentic(forger.mint("shell", "alice"))


def test_an_id_is_visible_ascii_and_of_fixed_length() -> None:
    """2025-11-25 basic/transports#session-management: 0x21 to 0x7E."""
    key = IDS.mint("shell", "älice")
    assert len(key) == ID_LENGTH
    assert set(key) <= set(ALPHABET)
    assert authentic(key, owner="älice")


def test_an_id_has_128_random_bits() -> None:
    """DESIGN 6. The random source is asked for 16 bytes for every id."""
    asked: list[int] = []

    def random(size: int) -> bytes:
        asked.append(size)
        return bytes([len(asked)]) * size

    ids = SessionIds(KEY, epoch=b"boot", random=random)
    assert ids.mint("shell", "alice") != ids.mint("shell", "alice")
    assert asked == [16, 16]


def test_ids_minted_by_default_differ() -> None:
    assert len({IDS.mint("shell", "alice") for _ in range(1000)}) == 1000


@pytest.mark.parametrize(
    ("key", "node", "epoch"),
    [(b"short", b"node", b"boot"), (KEY, b"n", b"boot"), (KEY, b"node", b"booted")],
)
def test_a_key_node_or_epoch_of_another_size_is_refused(
    key: bytes, node: bytes, epoch: bytes
) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        SessionIds(key, node=node, epoch=epoch)


def test_a_label_tells_sessions_apart_and_gives_no_id_away() -> None:
    """DESIGN 5.8: ids are in no log line of others."""
    key = IDS.mint("shell", "alice")
    label = label_of(Identity("shell", "alice", key))
    assert label == label_of(Identity("shell", "alice", key))
    assert label != label_of(Identity("shell", "bob", key))
    assert len(label) == 8
    assert label not in key
