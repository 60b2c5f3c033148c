"""DESIGN 6 and 11: whose a request is, by its bearer token. Pure; no socket.

That every request is asked for it is shown in `tests/frontend/test_auth.py`.
"""

from hashlib import sha256
from pathlib import Path

import pytest

from sessionproxy.config import ConfigError
from sessionproxy.errors import Unauthorized
from sessionproxy.http import Anybody, Certificate, TokenFile, owner_of
from tests.rig.tls import issue

ALICE = "alice-token-0123456789"
BOB = "bob-token-0123456789"


def digest(token: str) -> str:
    return sha256(token.encode()).hexdigest()


def bearer(token: str, scheme: str = "Bearer") -> dict[bytes, bytes]:
    return {b"authorization": f"{scheme} {token}".encode("latin-1")}


class File:
    """A token file, and what is made of it."""

    def __init__(self, path: Path, *lines: str) -> None:
        self.path = path
        self.write(*lines)

    def write(self, *lines: str) -> None:
        self.path.write_text("\n".join(lines))

    def read(self) -> TokenFile:
        return TokenFile(str(self.path))


@pytest.fixture
def file(tmp_path: Path) -> File:
    return File(tmp_path / "tokens", f"alice {digest(ALICE)}", f"bob {digest(BOB)}")


# -- who is let in ---------------------------------------------------------------------------------


def test_a_token_stands_for_its_owner(file: File) -> None:
    """DESIGN 6: the owner is issuer and subject."""
    tokens = file.read()
    assert tokens.admit(bearer(ALICE)).owner == owner_of("static", "alice")
    assert tokens.admit(bearer(BOB)).owner == owner_of("static", "bob")
    assert tokens.admit(bearer(ALICE)) is tokens.admit(bearer(ALICE))


def test_two_owners_are_never_written_alike() -> None:
    """DESIGN 6: `(issuer, subject)`, whatever stands in the two."""
    with pytest.raises(ValueError, match="issuer"):
        owner_of("a b", "c")  # else it would be the owner `b c` of the issuer `a`
    assert owner_of("static", "local") not in ("local", "anonymous", "catalogue")


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_scheme_may_be_written_in_any_case(file: File, scheme: str) -> None:
    """RFC 9110 section 11.1."""
    assert file.read().admit(bearer(ALICE, scheme)).owner.endswith("alice")


@pytest.mark.parametrize(
    "headers",
    [
        bearer(ALICE + "x"),
        bearer(ALICE[:-1]),
        bearer(ALICE.upper()),
        bearer(digest(ALICE)),
        bearer(""),
        bearer(f"{ALICE} {ALICE}"),
        bearer(f"{ALICE}, Bearer {BOB}"),
        bearer(ALICE, "Basic"),
        bearer(ALICE, "BearerX"),
        {b"authorization": b""},
        {b"authorization": ALICE.encode()},
        {b"authorization": b"Bearer"},
        {b"authorization": b"Bearer \xff\x00"},
        {b"proxy-authorization": b"Bearer " + ALICE.encode()},
        {},
    ],
)
def test_anything_else_is_refused(file: File, headers: dict[bytes, bytes]) -> None:
    """DESIGN 11: no or bad credential; the digest, which the file shows, is no credential."""
    with pytest.raises(Unauthorized) as refused:
        file.read().admit(headers)
    assert refused.value.presented == (b"authorization" in headers)


def test_a_name_may_have_several_tokens(file: File) -> None:
    """So that a token can be exchanged while both are good."""
    file.write(f"alice {digest(ALICE)}", f"alice {digest('next')}")
    tokens = file.read()
    old, new = tokens.admit(bearer(ALICE)), tokens.admit(bearer("next"))
    assert old.owner == new.owner
    assert old is not new


def test_without_authentication_everybody_is_one_owner() -> None:
    """DESIGN 2."""
    assert Anybody("local").admit({}).owner == Anybody("local").admit(bearer("x")).owner == "local"


# -- the file --------------------------------------------------------------------------------------


def test_comments_and_blank_lines_mean_nothing(file: File) -> None:
    """`TokenFile`."""
    file.write("# users", "", f"  alice\t{digest(ALICE).upper()}  # laptop", "   ")
    tokens = file.read()
    assert len(tokens) == 1
    assert tokens.admit(bearer(ALICE)).owner.endswith("alice")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("alice", "expected NAME SHA256HEX"),
        (f"alice {digest(ALICE)} x", "expected NAME SHA256HEX"),
        (f"alice {digest(ALICE)[:-1]}", "expected NAME SHA256HEX"),
        (f"alice {ALICE}", "expected NAME SHA256HEX"),
        (f"{digest(ALICE)} alice", "expected NAME SHA256HEX"),
        (f"../etc {digest(ALICE)}", "does not begin with"),
        (f"-x {digest(ALICE)}", "does not begin with"),
        (f"a:b {digest(ALICE)}", "a name has"),
        (f"{'a' * 65} {digest(ALICE)}", "a name has"),
        (f"mallory {digest(BOB)}", "of another name"),
    ],
)
def test_a_wrong_line_is_named_by_file_and_number_and_not_shown(
    file: File, line: str, says: str
) -> None:
    """DESIGN 11: one line naming what is wrong; what stands there may be a token."""
    file.write(f"bob {digest(BOB)}", "", line)
    with pytest.raises(ConfigError) as caught:
        file.read()
    text = str(caught.value)
    assert text.startswith(f"--token-file {file.path}, line 3: ")
    assert says in text
    assert ALICE not in text
    assert "\n" not in text


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """DESIGN 11."""
    with pytest.raises(ConfigError, match=r"^--token-file .*none: No such file"):
        TokenFile(str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"^--token-file .*: Is a directory"):
        TokenFile(str(tmp_path))
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"^--token-file .*: not a text file"):
        TokenFile(str(tmp_path / "bytes"))


# -- rereading -------------------------------------------------------------------------------------


def test_what_left_the_file_is_revoked_and_who_watches_is_told(file: File) -> None:
    """FAULTS, credentials: their end ends long streams too."""
    tokens = file.read()
    alice, bob = tokens.admit(bearer(ALICE)), tokens.admit(bearer(BOB))
    told: list[str] = []
    alice.watch(lambda: told.append("alice"))
    bob.watch(lambda: told.append("bob"))
    file.write(f"bob {digest(BOB)}", f"carol {digest('carol')}")
    tokens.reread()
    assert told == ["alice"]
    assert (alice.revoked, bob.revoked) == (True, False)
    assert tokens.admit(bearer(BOB)) is bob
    assert tokens.admit(bearer("carol")).owner.endswith("carol")
    with pytest.raises(Unauthorized):
        tokens.admit(bearer(ALICE))


def test_a_token_that_changes_its_name_is_another_credential(file: File) -> None:
    """What was let in for the one must not go on for the other."""
    tokens = file.read()
    alice = tokens.admit(bearer(ALICE))
    file.write(f"carol {digest(ALICE)}")
    tokens.reread()
    assert alice.revoked
    assert tokens.admit(bearer(ALICE)).owner.endswith("carol")


def test_who_no_longer_watches_is_not_told(file: File) -> None:
    """A connection that has ended must not be kept by its credential."""
    credential = file.read().admit(bearer(ALICE))
    told: list[str] = []

    def tell() -> None:
        told.append("x")

    credential.watch(tell)
    credential.forget(tell)
    credential.forget(tell)
    assert credential.watched == 0
    credential.revoke()
    assert told == []


@pytest.mark.parametrize("content", ["alice", None])
def test_a_file_that_has_become_wrong_changes_nothing(file: File, content: str | None) -> None:
    """A slip of the editor's must not lock everybody out, nor let anybody in."""
    tokens = file.read()
    alice = tokens.admit(bearer(ALICE))
    if content is None:
        file.path.unlink()
    else:
        file.write(f"carol {digest('carol')}", content)
    with pytest.raises(ConfigError):
        tokens.reread()
    assert tokens.admit(bearer(ALICE)) is alice
    assert not alice.revoked
    with pytest.raises(Unauthorized):
        tokens.admit(bearer("carol"))


def test_an_empty_file_lets_nobody_in(file: File) -> None:
    """The last one can be revoked, too."""
    tokens = file.read()
    alice = tokens.admit(bearer(ALICE))
    file.write("# nobody")
    tokens.reread()
    assert alice.revoked
    assert len(tokens) == 0


# -- certificates ----------------------------------------------------------------------------------


def test_files_that_do_not_make_a_certificate_are_named(tmp_path: Path) -> None:
    """DESIGN 11: one line that names the option and the file."""
    one, two = issue(tmp_path, "one"), issue(tmp_path, "two")
    locked = issue(tmp_path, "locked", password=b"secret")
    junk = tmp_path / "junk.pem"
    junk.write_text("junk")
    missing = tmp_path / "missing.pem"
    wrong = [
        (missing, one.key, f"--tls-cert {missing}: No such file"),
        (one.cert, missing, f"--tls-key {missing}: No such file"),
        (one.cert, two.key, f"--tls-key {two.key}: not the key of --tls-cert {one.cert}"),
        (junk, one.key, f"--tls-cert {junk}: expected a certificate chain"),
        (one.cert, junk, f"--tls-cert {one.cert}: expected a certificate chain"),
        (locked.cert, locked.key, f"--tls-key {locked.key}: the key has a password"),
    ]
    for cert, key, says in wrong:
        with pytest.raises(ConfigError) as caught:
            Certificate(str(cert), str(key))
        assert str(caught.value).startswith(says)
        assert "\n" not in str(caught.value)
