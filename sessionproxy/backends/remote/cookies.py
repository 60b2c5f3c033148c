"""The cookies of one session's upstream, sent back as they came.

What needs them is a load balancer, and some quote what they set: aiohttp's own jar parses that and
writes it otherwise. This is the one of httpx2, which is the standard library's; most servers set
none, so it is imported by the first that does. Neighbours: `web`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from yarl import URL

if TYPE_CHECKING:
    import httpx2

MAX_COOKIES: Final = 50
"""With more, all are forgotten."""


class Cookies:
    """Of one session."""

    def __init__(self) -> None:
        self._kept: httpx2.Cookies | None = None

    def __len__(self) -> int:
        return 0 if self._kept is None else len(self._kept.jar)

    def learn(self, url: URL, said: Sequence[str]) -> None:
        """Keep, or forget, what a response to `url` has in its `Set-Cookie` fields (RFC 6265)."""
        import httpx2

        if self._kept is None:
            self._kept = httpx2.Cookies()
        request = httpx2.Request("GET", str(url))
        headers = [("set-cookie", each) for each in said]
        self._kept.extract_cookies(httpx2.Response(200, headers=headers, request=request))
        if len(self) > MAX_COOKIES:
            self._kept = None

    def of(self, url: URL) -> str | None:
        """Return the `Cookie` field for `url`; None: there are none for it."""
        if not len(self) or self._kept is None:
            return None
        import httpx2

        request = httpx2.Request("GET", str(url))
        self._kept.set_cookie_header(request)
        found: str | None = request.headers.get("cookie")
        return found
