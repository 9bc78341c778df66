"""The parts of a dashboard, as plain dicts of Grafana's classic JSON.

    row(title, panel, …)   panels side by side      panel = kind(title, description, unit, target, …)

A library for it would be another version to pin, and longer than this. Conventions (tests lint them): each panel says
what it shows and in which unit, rates use $__rate_interval, every selector has job and instance, nothing is editable.
"""

import re
from typing import Any

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
Panel = dict[str, Any]
Target = dict[str, Any]

GREEN, YELLOW, ORANGE, RED, BLUE = "green", "yellow", "orange", "red", "blue"


def target(expr: str, legend: str = "__auto", *, exemplars: bool = False, heatmap: bool = False) -> Target:
    """A query. Each bare `name{labels}` or `name[` gets the variables' selectors; see `_selected`."""
    made: Target = {"datasource": SOURCE, "editorMode": "code", "expr": _selected(expr), "legendFormat": legend}
    made["range"] = True
    if exemplars:
        made["exemplar"] = True
    if heatmap:
        made["format"] = "heatmap"
    return made


_OURS = re.compile(
    r"(?<![:\w])((?:user_service|email_service|jetstream|gnatsd|http|process|python)_\w+|up)\b(\{([^}]*)\})?"
)


def _selected(expr: str) -> str:
    """Every scraped metric is narrowed by the variables. Recorded ones (api:…, mail:…) and ALERTS are the fleet's."""

    def narrow(match: re.Match[str]) -> str:
        own = f", {match[3]}" if match[3] else ""
        return f'{match[1]}{{job=~"$job", instance=~"$instance"{own}}}'

    return _OURS.sub(narrow, expr)


def rate(metric: str, by: str = "") -> str:
    """A counter's rate, summed, by labels."""
    return f"sum{f' by ({by})' if by else ''} (rate({metric}[$__rate_interval]))"


def quantile(q: float, metric: str) -> str:
    """A quantile of a histogram."""
    return f"histogram_quantile({q}, {rate(metric + '_bucket', 'le')})"


def quantiles(metric: str) -> list[Target]:
    """p50, p95 and p99, the last with the exemplars."""
    return [
        target(quantile(0.5, metric), "p50"),
        target(quantile(0.95, metric), "p95"),
        target(quantile(0.99, metric), "p99", exemplars=True),
    ]


def _panel(kind: str, title: str, description: str, unit: str, targets: tuple[Target, ...], width: int) -> Panel:
    return {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
        "options": {},
        "targets": [{**t, "refId": chr(ord("A") + i)} for i, t in enumerate(targets)],
        "gridPos": {"w": width, "h": 8, "x": 0, "y": 0},
    }


def graph(
    title: str, description: str, unit: str, *targets: Target, width: int = 8, stacked: bool = False, minimum: int = 0
) -> Panel:
    """Lines over time."""
    made = _panel("timeseries", title, description, unit, targets, width)
    custom: dict[str, Any] = {"fillOpacity": 40 if stacked else 8, "lineWidth": 1, "showPoints": "never"}
    if stacked:
        custom["stacking"] = {"mode": "normal", "group": "A"}
    made["fieldConfig"]["defaults"] |= {"custom": custom, "min": minimum}
    made["options"] = {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return made


def figure(title: str, description: str, unit: str, query: Target, *steps: tuple[float, str], width: int = 4) -> Panel:
    """One number, green, or of the colour of the highest step that it has reached."""
    made = _panel("stat", title, description, unit, (query,), width)
    thresholds: list[dict[str, Any]] = [{"color": GREEN, "value": None}]
    thresholds += [{"color": color, "value": at} for at, color in steps]
    made["fieldConfig"]["defaults"] |= {"thresholds": {"mode": "absolute", "steps": thresholds}}
    made["options"] = {
        "colorMode": "value",
        "graphMode": "area",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "textMode": "value",
    }
    made["gridPos"]["h"] = 4
    return made


def timeline(title: str, description: str, query: Target, states: dict[int, tuple[str, str]], width: int = 24) -> Panel:
    """Which state when: a number's word and colour."""
    made = _panel("state-timeline", title, description, "none", (query,), width)
    options = {str(n): {"text": text, "color": color, "index": n} for n, (text, color) in states.items()}
    made["fieldConfig"]["defaults"] |= {
        "mappings": [{"type": "value", "options": options}],
        "custom": {"fillOpacity": 80, "lineWidth": 0},
        "color": {"mode": "thresholds"},
    }
    made["options"] = {"mergeValues": True, "showValue": "auto", "rowHeight": 0.8, "legend": {"showLegend": False}}
    made["gridPos"]["h"] = 5
    return made


def heat(title: str, description: str, unit: str, metric: str, width: int = 12) -> Panel:
    """How a histogram's buckets fill over time."""
    query = target(f"sum by (le) (increase({metric}_bucket[$__rate_interval]))", "{{le}}", heatmap=True)
    made = _panel("heatmap", title, description, unit, (query,), width)
    made["options"] = {
        "calculate": False,
        "yAxis": {"unit": unit},
        "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64},
        "cellGap": 1,
        "tooltip": {"mode": "single", "yHistogram": True},
    }
    return made


def row(title: str, *panels: Panel) -> list[Panel]:
    """Panels from left to right, into as many lines of 24 as they need; `y` counts from the row's own top."""
    x = y = height = 0
    for panel in panels:
        place = panel["gridPos"]
        if x + place["w"] > 24:
            x, y, height = 0, y + height, 0
        place["x"], place["y"] = x, y + 1
        x, height = x + place["w"], max(height, place["h"])
    head = {
        "type": "row",
        "title": title,
        "collapsed": False,
        "panels": [],
        "gridPos": {"w": 24, "h": 1, "x": 0, "y": 0},
    }
    return [head, *panels]


def dashboard(uid: str, title: str, description: str, *rows: list[Panel]) -> dict[str, Any]:
    """The whole, with its variables; rows one under the other."""
    panels: list[Panel] = []
    top = 0
    for panels_of_row in rows:
        for panel in panels_of_row:
            panel["gridPos"]["y"] += top
            panels.append({"id": len(panels) + 1, **panel})
        top = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in panels)
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": ["mailflow"],
        "editable": False,
        "graphTooltip": 1,
        "links": [
            {"type": "dashboards", "title": "MailFlow", "tags": ["mailflow"], "asDropdown": True, "keepTime": True}
        ],
        "panels": panels,
        "refresh": "30s",
        "schemaVersion": 39,
        "templating": {"list": _variables()},
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": [_alerts()]},
    }


def _variables() -> list[dict[str, Any]]:
    def labels(name: str, label: str, query: str) -> dict[str, Any]:
        return {
            "type": "query",
            "name": name,
            "label": label,
            "datasource": SOURCE,
            "query": {"query": query, "refId": name},
            "refresh": 2,
            "sort": 1,
            "multi": True,
            "includeAll": True,
            "allValue": ".+",
            "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        }

    source = {"type": "datasource", "name": "datasource", "label": "Data source", "query": "prometheus", "hide": 0}
    source["current"] = {"selected": True, "text": "Prometheus", "value": "prometheus"}
    return [
        source,
        labels("job", "Job", "label_values(up, job)"),
        labels("instance", "Instance", 'label_values(up{job=~"$job"}, instance)'),
    ]


def _alerts() -> dict[str, Any]:
    return {
        "name": "Alerts",
        "datasource": SOURCE,
        "enable": True,
        "expr": 'ALERTS{alertstate="firing", severity!="none"}',
        "iconColor": RED,
        "titleFormat": "{{alertname}}",
        "step": "60s",
    }
