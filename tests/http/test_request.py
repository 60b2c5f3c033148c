"""Reading an ASGI request. Pure but for the body, which comes from a function."""

import pytest

from sessionproxy.core.pauses import Pauses
from sessionproxy.errors import BodyTimeout, BodyTooLarge, ConflictingHeaders
from sessionproxy.http import header_of, media_type, path_within, read_body, read_headers
from sessionproxy.http.request import SINGLE, ASGIMessage


def test_several_lines_of_a_list_are_one_list() -> None:
    """RFC 9110 section 5.3."""
    pairs = [(b"accept", b"a"), (b"x", b"1"), (b"accept", b"b"), (b"accept", b"c")]
    assert read_headers({"headers": pairs}) == {b"accept": b"a, b, c", b"x": b"1"}


@pytest.mark.parametrize("name", sorted(SINGLE))
def test_a_deciding_header_is_never_taken_from_two(name: bytes) -> None:
    """FAULTS, Security: duplicates refused, alike or not."""
    with pytest.raises(ConflictingHeaders):
        read_headers({"headers": [(name, b"a"), (b"x", b""), (name, b"a")]})


def test_a_header_value_is_stripped_and_never_fails_to_decode() -> None:
    """RFC 9110 section 5.5: obs-text may be in it."""
    assert header_of({b"a": b" \xff "}, b"a") == "\xff"
    assert header_of({}, b"a") is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [(b"Application/JSON ; charset=x", b"application/json"), (b"", b""), (b";", b"")],
)
def test_a_media_type_has_no_parameters_and_no_case(value: bytes, expected: bytes) -> None:
    """RFC 9110 section 8.3.1."""
    assert media_type(value) == expected


@pytest.mark.parametrize(
    ("path", "root", "expected"),
    [
        ("/mcp", "", "/mcp"),
        ("/tools/mcp", "/tools", "/mcp"),
        ("/tools", "/tools", "/"),
    ],
)
def test_a_path_is_what_lies_below_the_mount(path: str, root: str, expected: str) -> None:
    """ASGI specification: `path` includes `root_path`."""
    assert path_within({"path": path, "root_path": root}) == expected


class Body:
    """A body in pieces; `leaves`: the client is gone after them."""

    def __init__(self, *pieces: bytes, leaves: bool = False) -> None:
        self._messages: list[ASGIMessage] = [
            {"type": "http.request", "body": piece, "more_body": leaves or piece is not pieces[-1]}
            for piece in pieces
        ]
        if leaves:
            self._messages.append({"type": "http.disconnect"})
        self.read = 0

    async def __call__(self) -> ASGIMessage:
        self.read += 1
        return self._messages.pop(0)


async def test_a_body_in_pieces_is_read_whole() -> None:
    """ASGI specification: `more_body`."""
    assert await read_body(Body(b"a", b"", b"bc"), {}, 3, Pauses()) == b"abc"
    assert await read_body(Body(b"abc"), {}, 3, Pauses()) == b"abc"


@pytest.mark.parametrize("pieces", [(b"abcd",), (b"ab", b"cd"), (b"ab", b"cd", b"ef")])
async def test_a_body_above_the_limit_is_read_no_further(pieces: tuple[bytes, ...]) -> None:
    """FAULTS F48."""
    body = Body(*pieces)
    with pytest.raises(BodyTooLarge):
        await read_body(body, {}, 3, Pauses())
    assert body.read <= 2


async def test_a_body_that_says_it_is_above_the_limit_is_not_read() -> None:
    """FAULTS F48."""
    body = Body(b"a")
    with pytest.raises(BodyTooLarge):
        await read_body(body, {b"content-length": b"4"}, 3, Pauses())
    assert body.read == 0


@pytest.mark.parametrize("pieces", [(), (b"ab",)])
async def test_a_body_whose_client_leaves_is_no_body(pieces: tuple[bytes, ...]) -> None:
    """FAULTS F47: half a message is none."""
    with pytest.raises(BodyTimeout):
        await read_body(Body(*pieces, leaves=True), {}, 10, Pauses())
