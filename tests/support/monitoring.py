"""The rules and dashboards as data, and a real Prometheus for tests."""

import json
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.support.processes import ROOT, Process, free_port, http_status
from tests.support.waiting import eventually

sys.path.append(str(ROOT / "deploy/local"))
import prometheus

RULES = sorted((ROOT / "deploy/prometheus/rules").glob("*.yml"))
DASHBOARDS = sorted((ROOT / "deploy/grafana/dashboards").glob("*.json"))
_MISSING = "is not installed: apt-get install prometheus"


def _rules() -> list[dict[str, Any]]:
    return [rule for path in RULES for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


ALERTS = {rule["alert"]: rule for rule in _rules() if "alert" in rule}
RECORDED = {rule["record"]: rule for rule in _rules() if "record" in rule}


def expressions() -> Iterator[tuple[str, str]]:
    """Where, and what: every expression of rules and dashboards."""
    for rule in _rules():
        yield rule.get("alert") or rule["record"], rule["expr"]
    for path in DASHBOARDS:
        board = json.loads(path.read_text())
        for panel in board["panels"]:
            for target in panel.get("targets", []):
                yield f"{path.stem}: {panel['title']} {target['refId']}", target["expr"]


def promtool() -> str:
    """The command; skips without it."""
    found = shutil.which("promtool")
    if found is None:
        pytest.skip(f"promtool {_MISSING}")
    return found


def shortened(text: str, factor: int) -> str:
    """Rules with every duration divided: windows, `for`, and ages compared with minutes (written `10 * 60`)."""
    seconds = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

    def short(match: re.Match[str]) -> str:
        return f"{match[1]}{int(match[2]) * seconds[match[3]] * 1000 // factor}ms"

    text = re.sub(r"(\[|for: )(\d+)([smhd])\b", short, text)
    return re.sub(r"(> \d+) \* 60\b", lambda m: f"{m[1]} * {60 / factor}", text)


class Prometheus(Process):
    """A real one with the shipped configuration: other targets, and time that runs `factor` times as fast."""

    def __init__(self, folder: Path, targets: Mapping[str, Sequence[str]], *, factor: int) -> None:
        binary = shutil.which("prometheus")
        if binary is None:
            pytest.skip(f"prometheus {_MISSING}")
        folder.mkdir(parents=True, exist_ok=True)
        rules = folder / "rules"
        rules.mkdir()
        for path in RULES:
            (rules / path.name).write_text(shortened(path.read_text(), factor))
        self.port = free_port()
        text = shortened((ROOT / "deploy/prometheus/prometheus.yml").read_text(), factor)
        # `scrape_interval: 15s` and its like; a value of its own keeps the shipped file free of what only tests need.
        config = yaml.safe_load(text)
        own = {"prometheus": [f"127.0.0.1:{self.port}"]}
        made = prometheus.retargeted(config, {**targets, **own}, rules)
        made["global"] = dict.fromkeys(config["global"], f"{15000 // factor}ms")
        file = folder / "prometheus.yml"
        file.write_text(yaml.safe_dump(made))
        super().__init__("prometheus", prometheus.command(binary, file, folder / "data", self.port), folder)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def ready(self) -> None:
        await eventually(lambda: http_status(f"{self.url}/-/ready") == 200, within_s=30, what="prometheus ready")

    async def query(self, client: httpx.AsyncClient, expr: str) -> list[dict[str, Any]]:
        """An instant query's result."""
        answer = await client.get(f"{self.url}/api/v1/query", params={"query": expr})
        assert answer.status_code == 200, f"{expr}: {answer.text}"
        found: list[dict[str, Any]] = answer.json()["data"]["result"]
        return found

    async def ever(self, client: httpx.AsyncClient, expr: str, *, start: float, end: float) -> bool:
        """Whether a range query has any value at all that is a number."""
        asked: dict[str, Any] = {"query": expr, "start": start, "end": end, "step": 1}
        answer = await client.get(f"{self.url}/api/v1/query_range", params=asked)
        assert answer.status_code == 200, f"{expr}: {answer.text}"
        return any(v != "NaN" for series in answer.json()["data"]["result"] for _, v in series["values"])

    async def fired(self, client: httpx.AsyncClient, *, within_s: float) -> set[str]:
        """The alerts that fired within the last so many seconds."""
        window = f"[{max(1, int(within_s * 1000))}ms]"
        found = await self.query(client, f'group by (alertname) (max_over_time(ALERTS{{alertstate="firing"}}{window}))')
        return {series["metric"]["alertname"] for series in found}
