"""The documentation as a site: it builds without a warning, and says what the code says."""

import inspect
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Final

import pytest

import sessionproxy
from scripts.docs_lib import pages
from sessionproxy import Forwarded, Rules, Server, ToolChange
from sessionproxy.config import Settings
from sessionproxy.core.state import EndReason, StopReason
from tests.rig.proxy import ROOT

DOCS: Final = ROOT / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, as `scripts/docs build` makes it: strictly."""
    to = tmp_path_factory.mktemp("site")
    config = DOCS / "site/mkdocs.yml"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", config, "-d", to],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr
    return to


def test_the_site_builds_without_warnings(site: Path) -> None:
    """Issue 5, shown by 6. A page that is in no menu, and a link or anchor that leads nowhere, are
    warnings (docs/site/mkdocs.yml)."""
    built = {page.relative_to(site).with_suffix("") for page in site.rglob("*.html")}
    written = {page.relative_to(DOCS).with_suffix("") for page in DOCS.rglob("*.md")}
    assert built - {Path("404")} == written


def test_the_site_fetches_nothing_from_elsewhere(site: Path) -> None:
    """It can be read where there is no network, and tells nobody who reads it."""
    fetched = re.compile(r"""(?:src=|<link[^>]*href=|@import |url\()["']?(?:https?:)?//[^"')\s]+""")
    for page in (*site.rglob("*.html"), *site.rglob("*.css"), *site.rglob("*.svg")):
        assert not fetched.search(page.read_text()), page


def test_the_reference_has_every_public_name(site: Path) -> None:
    """A name that is exported has a heading it belongs under, and its docstring on the page."""
    listed = [name for names in pages.PUBLIC.values() for name in names]
    assert len(listed) == len(set(listed))
    assert set(sessionproxy.__all__) <= set(listed), "scripts/docs_lib/pages.py, PUBLIC"
    page = (site / "reference.html").read_text()
    for name in sessionproxy.__all__:
        assert f'id="sessionproxy.{name}"' in page


def test_the_reference_has_what_users_use_and_nothing_else(site: Path) -> None:
    """Fields of the public classes are there; what only other modules of ours use is not."""
    page = (site / "reference.html").read_text()
    shown = set(re.findall(r'id="sessionproxy\.(\w+\.\w+)"', page))
    for kind in (Rules, ToolChange):
        assert {f"{kind.__name__}.{name}" for name in kind.__struct_fields__} <= shown
    assert {f"Server.{field.name}" for field in fields(Server)} <= shown
    assert {f"Forwarded.{name}" for name in Forwarded._fields} <= shown
    assert {f"RequestFailed.{name}" for name in ("code", "message", "data")} <= shown
    assert "ProxyTool.definition" in shown
    internal = {f"{kind}.{name}" for kind, names in pages.INTERNAL.items() for name in names}
    assert not internal & shown
    for kind, names in pages.INTERNAL.items():
        for name in names:
            assert name in page_of(kind), f"scripts/docs_lib/pages.py, INTERNAL: {kind}.{name}"


def page_of(kind: str) -> str:
    """Return what a class and those above it say, to find names that are no more."""
    above = getattr(sessionproxy, kind).__mro__[:-1]
    return "".join(inspect.getsource(one) for one in above if one.__module__.startswith("session"))


@pytest.mark.parametrize("name", pages.PAGES)
def test_a_page_that_is_made_from_the_code_is_not_stale(name: str) -> None:
    """`scripts/docs write` writes it anew."""
    assert (DOCS / name).read_text() == pages.PAGES[name]()


def test_every_setting_says_when_it_bites_and_in_which_unit() -> None:
    """docs/site/settings.toml."""
    prose = pages.prose()
    assert prose.keys() == set(Settings.__struct_fields__)
    for name, known in prose.items():
        assert known.unit, name
        assert len(known.bites.split()) > 5, name
    assert pages.anchors((DOCS / "configuration.md").read_text()) == [*Settings.__struct_fields__]


@pytest.mark.parametrize(("metric", "reasons"), [("stops", StopReason), ("ends", EndReason)])
def test_monitoring_has_every_reason(
    metric: str, reasons: type[StopReason] | type[EndReason]
) -> None:
    """docs/monitoring.md: the labels of `stops_total` and `ends_total`, no more and no fewer."""
    page = (DOCS / "monitoring.md").read_text()
    row = re.search(rf"^\| `{metric}_total` .*\| (.*) \|$", page, flags=re.MULTILINE)
    assert row is not None
    assert set(re.findall(r"`(\w+)`", row[1])) == {reason.value for reason in reasons}


# -- links that mkdocs does not see ----------------------------------------------------------------

LINK: Final = re.compile(r"\]\(([^)\s]+)\)")


def test_every_link_of_the_readme_leads_somewhere() -> None:
    """README.md is no page of the site."""
    links = LINK.findall((ROOT / "README.md").read_text())
    assert links
    for link in links:
        path, _, anchor = link.partition("#")
        assert path.startswith("https://") or (ROOT / path).is_file(), link
        assert not anchor or anchor in _anchors(ROOT / path), link


def _anchors(page: Path) -> set[str]:
    """Return what a link may name in a page, as GitHub and the site make it of headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


# -- from-fastmcp.md -------------------------------------------------------------------------------

OF_FASTMCP: Final = """
fastmcp.server.proxy fastmcp.server.providers.proxy fastmcp.server
default_proxy_roots_handler default_proxy_sampling_handler default_proxy_elicitation_handler
default_proxy_log_handler default_proxy_progress_handler
ProxyManagerMixin
ToolManager ResourceManager PromptManager Tool Resource ResourceTemplate Prompt
ProxyToolManager get_tools list_tools call_tool
ProxyResourceManager get_resources get_resource_templates list_resources list_resource_templates
read_resource
ProxyPromptManager get_prompts list_prompts render_prompt
ProxyTool from_mcp_tool run model_copy get_span_attributes
ProxyResource from_mcp_resource read
ProxyTemplate from_mcp_template create_resource
ProxyPrompt from_mcp_prompt render
ProxyProvider get_tasks task_config.mode="forbidden" add_provider cache_ttl
FastMCPProxy client_factory
ProxyClient default_sampling_handler default_elicitation_handler default_log_handler
default_progress_handler new
StatefulProxyClient new_stateful clear
_proxy_rc_ref request_ctx
create_proxy FastMCP as_proxy Client ClientTransportT
context client mcp_tool mcp_resource mcp_template mcp_prompt arguments uri params key name
messages message response_type progress total transport host port keys prefix
sampling_handler log_handler
RequestContext ClientSession LifespanContextT Context
RootsList SamplingMessage CreateMessageRequestParams CreateMessageResult ElicitRequestParams
ElicitResult LogMessage ToolResult GetPromptResult PromptMessage AnyUrl str bytes
get_tool copy add_tool disable tool mount
mcpServers MCPConfig url default
{prefix}_{tool_name} {prefix}_{prompt_name} protocol://{prefix}/path protocol://{prefix}/...
stdio http sse /sse
""".split()
"""Every class, function, method, parameter and type that the pages on FastMCP's proxy name."""

FEATURES_OF_FASTMCP: Final = (
    "transport bridging",
    "session isolation",
    "shared session",
    "session reuse",
    "feature forwarding",
    "roots, sampling, elicitation, logging, progress",
    "disabling features",
    "multi-server",
    "composition",
    "prefix",
    "mirrored components",
    "component list caching",
    "performance",
    "in-memory",
    "security boundary",
    "authentication",
    "caching",
    "logging",
    "stable endpoint",
    "reference counting",
    "before and after forwarding",
)


@pytest.fixture(scope="module")
def from_fastmcp() -> str:
    return (DOCS / "from-fastmcp.md").read_text()


def test_every_name_of_fastmcps_proxy_is_mapped_to_ours(from_fastmcp: str) -> None:
    """PARITY: each row findable in docs/from-fastmcp.md. Only what stands there as code counts."""
    code = re.findall(r"`([^`\n]+)`", from_fastmcp)
    code += re.findall(r"```python\n(.*?)```", from_fastmcp, flags=re.DOTALL)
    text = " ".join(code)
    there = {name for name in OF_FASTMCP if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text)}
    assert there == set(OF_FASTMCP)


def test_every_feature_of_fastmcps_proxy_is_there(from_fastmcp: str) -> None:
    """The same, of what has no name in the code."""
    assert [one for one in FEATURES_OF_FASTMCP if one not in from_fastmcp.lower()] == []


def test_what_the_page_says_of_ours_is_there(from_fastmcp: str) -> None:
    """Public names of ours, each named at least once."""
    for heading in ("A proxy in Python", "Clients of a backend", "Components"):
        for name in pages.PUBLIC[heading]:
            assert name in from_fastmcp or name in ("ProxyTarget", "Sessions"), name
