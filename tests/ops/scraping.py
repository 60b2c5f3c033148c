"""Reads what `/metrics` shows, as Prometheus would.

Neighbours: `tests.ops.test_metrics`.
"""

from dataclasses import dataclass

import httpx2
from prometheus_client.parser import text_string_to_metric_families

from tests.rig.http import http

Labels = frozenset[tuple[str, str]]


@dataclass
class Samples:
    """One page, parsed."""

    text: str
    values: dict[tuple[str, Labels], float]

    def __call__(self, name: str, **labels: str) -> float:
        """Return the value of one sample of ours; of the one server, if nothing else is said."""
        everything = {name for name, _ in self.values}
        found = f"sessionproxy_{name}"
        assert found in everything, sorted(everything)
        server = {"server": "default"} if self._has_server(found) else {}
        return self.values[found, frozenset({**server, **labels}.items())]

    def get(self, name: str, **labels: str) -> float:
        """Return the value of a sample that there may not be yet; then 0."""
        wanted = frozenset({"server": "default", **labels}.items())
        return self.values.get((f"sessionproxy_{name}", wanted), 0.0)

    def _has_server(self, name: str) -> bool:
        return any(found == name and dict(labels).get("server") for found, labels in self.values)

    def names(self) -> set[str]:
        return {name for name, _ in self.values}

    def labels(self) -> set[str]:
        """All names of labels."""
        return {label for _, labels in self.values for label, _ in labels}


def parsed(response: httpx2.Response) -> Samples:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/plain; version=")
    values = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }
    return Samples(response.text, values)


async def scraped(base: str) -> Samples:
    """Return the page of the proxy at `base`."""
    async with http() as pool:
        return parsed(await pool.get(f"{base}/metrics"))
