"""Rules, dashboards and runbook: what they name exists, and they keep to their conventions.

The dashboards' rules are those of grafana/dashboard-linter, which cannot be installed in CI.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
import yaml

import email_svc.metrics  # noqa: F401 - registers its metrics
import user_svc.metrics  # noqa: F401
from tests.support.monitoring import ALERTS, DASHBOARDS, RECORDED, expressions, promtool
from tests.support.processes import ROOT

sys.path.append(str(ROOT / "deploy/grafana"))
import dashboards as generator

FOREIGN = re.compile(r"up|ALERTS|vector|(gnatsd|jetstream|http_server|process)_\w+")
"""Names that others expose: Prometheus, the exporter, the gateway, and the operating system (not every one does)."""
WORDS = {"and", "or", "unless", "by", "without", "on", "ignoring", "group_left", "group_right", "bool", "offset"}
RATED = re.compile(r"\b(?:rate|increase|irate)\s*\(\s*([\w:]+)")


def registered() -> dict[str, str]:
    """Sample names of both registries and their types; Python's and the process's own included."""
    found = {}
    for metric in prometheus_client.REGISTRY.collect():
        # A labelled metric has no sample before its first event.
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "info": ["_info"]}
        for suffix in suffixes.get(metric.type, [""]):
            found[metric.name + suffix] = metric.type
    return found


def names(expr: str) -> set[str]:
    """The metrics in an expression."""
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\"[^\"]*\"", "", expr)
    bare = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", "", bare)
    found = set(re.findall(r"(?<![\w:.])([a-zA-Z_][\w:]*)(?!\s*\()(?![\w:])", bare))
    return found - WORDS


def panels() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            if panel["type"] != "row":
                yield f"{path.stem}: {panel['title']}", panel


PANELS = dict(panels())


def test_every_metric_named_exists() -> None:
    """In rules and dashboards: a metric of ours that is registered, a recorded one, or one that others expose."""
    known = registered()
    for where, expr in expressions():
        assert names(expr) or expr == "vector(1)", where
        for name in names(expr):
            assert name in known or name in RECORDED or FOREIGN.fullmatch(name), f"{where}: {name}"


def test_the_names_test_sees_a_stranger() -> None:
    """It reads names out of expressions as they are written here."""
    expr = 'sum by (le, x) (rate(a_total{b="c_d"}[5m])) / ignoring(v) group_left () (e:f:g > 0) and time() - max(h) > 5'
    assert names(expr) == {"a_total", "e:f:g", "h"}


def test_promised_names_are_registered() -> None:
    """The names that are an interface: others have built on them."""
    promised = {
        f"{service}_service_{name}"
        for service in ("user", "email")
        for name in ("requests_total", "errors_total", "request_duration_seconds_bucket")
    } | {
        f"user_service_{name}"
        for name in (
            *(f"circuit_breaker_{n}" for n in ("state", "failures_total", "successes_total", "half_open_requests")),
            *(f"queue_{n}" for n in ("size", "processing", "total", "oldest_age_seconds")),
            "outbox_pending",
            "ledger_gap",
        )
    }
    assert promised <= registered().keys()


def test_promtool_likes_the_metrics() -> None:
    """`promtool check metrics` over both registries: names, units, help."""
    exposed = prometheus_client.generate_latest()
    answer = subprocess.run([promtool(), "check", "metrics"], input=exposed, capture_output=True)
    assert (answer.returncode, answer.stdout.decode(), answer.stderr.decode()) == (0, "", "")


def test_promtool_likes_configuration_and_rules() -> None:
    """`promtool check config`, which reads the rules too."""
    subprocess.run([promtool(), "check", "config", ROOT / "deploy/prometheus/prometheus.yml"], check=True)


def test_promtool_unit_tests_pass() -> None:
    """`promtool test rules`."""
    files = sorted((ROOT / "deploy/prometheus/tests").glob("*.yml"))
    answer = subprocess.run([promtool(), "test", "rules", *files], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout


def test_every_alert_is_tested_and_explained() -> None:
    """Each has a promtool test in which it fires, a severity, and a section of the runbook that its link leads to."""
    tests = "".join(path.read_text() for path in (ROOT / "deploy/prometheus/tests").glob("*.yml"))
    runbook = (ROOT / "deploy/runbook.md").read_text()
    sections = dict(re.findall(r"^## (\w+)\n+(.+?)(?=^## |\Z)", runbook, re.MULTILINE | re.DOTALL))
    assert set(sections) == set(ALERTS)
    for name, rule in ALERTS.items():
        fired = f'alertname="{name}",alertstate="firing",severity=' in tests or re.search(
            rf"alertname: {name}\n\s+exp_alerts:\n\s+- exp_labels", tests
        )
        assert fired, f"{name} has no promtool test"
        assert rule["labels"]["severity"] in ("page", "ticket", "none")
        assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
        assert rule["annotations"]["runbook_url"] == f"deploy/runbook.md#{name.lower()}"
        if name != "Watchdog":
            assert sections[name].startswith(rule["labels"]["severity"]), name
            assert "**Look at**" in sections[name], name
            assert "**Do**" in sections[name], name


def test_no_alert_on_depth_alone() -> None:
    """A queue is there to be filled; its age is what somebody feels."""
    depths = {"user_service_queue_size", "user_service_outbox_pending", "user_service_queue_processing"}
    assert not depths & {name for rule in ALERTS.values() for name in names(rule["expr"])}


def test_recipes_that_the_runbook_names_exist() -> None:
    """`just X` in the runbook."""
    named = set(re.findall(r"`just ([a-z][a-z-]*)", (ROOT / "deploy/runbook.md").read_text()))
    recipes = set(re.findall(r"^([a-z][a-z-]*)(?: [^:\n]*)?:", (ROOT / "justfile").read_text(), re.MULTILINE))
    assert named
    assert named <= recipes


# --- the dashboards ------------------------------------------------------------------------------------------------


def test_making_the_dashboards_again_changes_nothing() -> None:
    """The committed JSON is what the script makes, and there is no other."""
    assert {path.name: path.read_text() for path in DASHBOARDS} == generator.rendered()


def test_check_tells_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--check` finds a dashboard that was edited by hand; without it that is written anew, once."""
    monkeypatch.setattr(generator, "OUT", tmp_path)
    assert generator.main([]) == 0
    (tmp_path / "broker.json").write_text("{}")
    assert generator.main(["--check"]) == 1
    capsys.readouterr()
    assert generator.main([]) == 0
    assert capsys.readouterr().out == "wrote broker.json\n"
    assert generator.main([]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda p: p.stem)
def test_dashboard_is_fit_to_be_provisioned(path: Path) -> None:
    """Not editable, a uid of its own, the three variables, panels that do not overlap."""
    board = json.loads(path.read_text())
    assert board["editable"] is False
    assert board["uid"] == f"mailflow-{path.stem}"
    assert "id" not in board
    source, job, instance = board["templating"]["list"]
    assert (source["name"], source["type"], source["query"]) == ("datasource", "datasource", "prometheus")
    for variable, name in ((job, "job"), (instance, "instance")):
        assert (variable["name"], variable["type"], variable["datasource"]["uid"]) == (name, "query", "${datasource}")
        assert (variable["multi"], variable["includeAll"], variable["allValue"]) == (True, True, ".+")
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    cells: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        own = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert place["x"] + place["w"] <= 24
        assert not cells & own, panel["title"]
        cells |= own


@pytest.mark.parametrize("where", PANELS)
def test_panel_keeps_the_rules(where: str) -> None:
    """Title, description, unit, data source; each query narrowed by job and instance; counters only as rates."""
    panel, types = PANELS[where], registered()
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"]["uid"] == "${datasource}"
    assert panel["targets"]
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    for target in panel["targets"]:
        expr = target["expr"]
        assert target["datasource"]["uid"] == "${datasource}"
        assert target["legendFormat"]
        for window in re.findall(r"\[([^\]]*)\]", expr):
            assert window in ("$__rate_interval", "$__range"), expr
        for name in names(expr):
            if name in RECORDED or name == "ALERTS":
                continue
            assert f'{name}{{job=~"$job", instance=~"$instance"' in expr, f"{name} is not narrowed"
            if types.get(name) in ("counter", "histogram"):
                assert name in RATED.findall(expr), f"{name} is a counter"


def test_data_sources_are_fixed() -> None:
    """The uids that dashboards and exemplars lead to, and the names of compose.yaml."""
    sources = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/mailflow.yaml").read_text())[
        "datasources"
    ]
    by_uid = {source["uid"]: source for source in sources}
    assert by_uid.keys() == {"prometheus", "jaeger"}
    assert by_uid["prometheus"]["jsonData"]["exemplarTraceIdDestinations"] == [
        {"name": "trace_id", "datasourceUid": "jaeger"}
    ]
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    for source in sources:
        assert source["url"].removeprefix("http://").partition(":")[0] in compose
    providers = yaml.safe_load((ROOT / "deploy/grafana/provisioning/dashboards/mailflow.yaml").read_text())["providers"]
    assert [p["options"]["path"] for p in providers] == ["/var/lib/grafana/dashboards"]
    assert [(p["disableDeletion"], p["allowUiUpdates"]) for p in providers] == [(True, False)]


def test_scrape_targets_are_services_of_compose() -> None:
    """Names and ports; and the flag that exemplars need."""
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    for job, service in (("user_svc", "user-svc"), ("email_svc", "email-svc")):
        [found] = jobs[job]["dns_sd_configs"]
        assert (found["names"], found["type"]) == ([service], "A")
        assert str(compose[service]["environment"]["METRICS_PORT"]) == str(found["port"])
    assert {t for job in ("krakend", "nats") for t in jobs[job]["static_configs"][0]["targets"]} == {
        "krakend:9091",
        "nats-exporter:7777",
    }
    assert {"krakend", "nats-exporter"} <= compose.keys()
    assert "--enable-feature=exemplar-storage" in compose["prometheus"]["command"]


def test_figures_say_what_they_can() -> None:
    """`just monitor-metrics` shows metrics that exist, and dashes for what no service has shown."""
    import figures  # tests.support.monitoring has put deploy/local on the path

    known = registered()
    for rows in figures.FIGURES.values():
        for _, name, unit in rows:
            assert (f"{name}_bucket" if unit == "mean" else name) in known
    text = 'user_service_circuit_breaker_state 2.0\nemail_service_outcomes_total{state="sent"} 7.0\n'
    shown = "\n".join(figures.shown(figures.parsed(text + 'email_service_outcomes_total{state="dead"} 1.0\n')))
    assert re.search(r"state +open", shown)
    assert re.search(r"ended +8  \(dead 1, sent 7\)", shown)
    assert re.search(r"gap +-", shown)


def test_promtool_is_there_or_said_to_be_missing() -> None:
    """The skip names the package."""
    if shutil.which("promtool") is None:
        with pytest.raises(pytest.skip.Exception, match="apt-get install prometheus"):
            promtool()
    else:
        assert promtool()
