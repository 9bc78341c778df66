"""krakend.json agrees with OpenAPI, settings, compose.yaml and README, and uses nothing of the paid edition."""

import copy
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx
import jsonschema
import pytest
import yaml

from contracts.runtime import lifecycle
from contracts.runtime.settings import duration_s
from tests.support import krakend
from tests.support.answers import Answer, differences
from tests.support.krakend import CONFIG, gateway
from tests.support.processes import ROOT, free_port
from user_svc.app import build_app
from user_svc.edge import Traffic
from user_svc.settings import Settings

APP = build_app(None, None, Traffic(1), None, Settings())  # type: ignore[arg-type] - nothing is asked of them
OPENAPI = APP.openapi()
ENDPOINTS = CONFIG["endpoints"]
IN_ALL_ENDPOINTS = {"traceparent", "tracestate", "X-Request-ID"}
COMMUNITY = {
    "qos/circuit-breaker",
    "qos/ratelimit/router",
    "router",
    "security/cors",
    "security/http",
    "telemetry/logging",
    "telemetry/opentelemetry",
}
"""Namespaces of the community edition that are in use here; one more needs a look at its documentation."""
PAID_ROUTER_KEYS = {"max_payload", "decompress_gzip", "disable_gzip"}


def named(endpoint: dict[str, Any]) -> str:
    return f"{endpoint['method']} {endpoint['endpoint']}"


def operation(endpoint: dict[str, Any]) -> dict[str, Any]:
    """What OpenAPI says about it."""
    found: dict[str, Any] = OPENAPI["paths"][endpoint["endpoint"].replace("{id}", "{user_id}")]
    operation: dict[str, Any] = found[endpoint["method"].lower()]
    return operation


def every(document: Any, key: str) -> Iterator[Any]:
    """All values of a key, however deep."""
    if isinstance(document, dict):
        for name, value in document.items():
            if name == key:
                yield value
            yield from every(value, key)
    elif isinstance(document, list):
        for item in document:
            yield from every(item, key)


def test_routes_are_those_of_openapi() -> None:
    """Each once, and no other: nothing of the admin listeners."""
    routes = [named(endpoint).replace("{id}", "{user_id}") for endpoint in ENDPOINTS]
    documented = {f"{method.upper()} {path}" for path, item in OPENAPI["paths"].items() for method in item}
    assert sorted(routes) == sorted(documented)
    assert all(endpoint["endpoint"].startswith("/v1/") for endpoint in ENDPOINTS)
    assert not re.search(r"\b910[12]\b", json.dumps(CONFIG))


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=named)
def test_an_endpoint_passes_everything_unchanged(endpoint: dict[str, Any]) -> None:
    """no-op on both sides: with json on one of them every status would become 200 or 500. One backend, same path."""
    [backend] = endpoint["backend"]
    assert (endpoint["output_encoding"], backend["encoding"]) == ("no-op", "no-op")
    assert (backend["url_pattern"], backend["method"]) == (endpoint["endpoint"], endpoint["method"])
    assert "host" not in backend
    assert "timeout" not in endpoint


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=named)
def test_an_endpoint_takes_what_openapi_says(endpoint: dict[str, Any]) -> None:
    """Headers and query parameters, by name, and no more: what is not listed does not reach user_svc."""
    documented = operation(endpoint)
    parameters = documented.get("parameters", [])
    headers = IN_ALL_ENDPOINTS | {p["name"] for p in parameters if p["in"] == "header"}
    if "security" in documented:
        headers.add("Authorization")
    if "requestBody" in documented:
        headers.add("Content-Type")
    assert sorted(endpoint["input_headers"]) == sorted(headers)
    query = {p["name"] for p in parameters if p["in"] == "query"}
    assert set(endpoint.get("input_query_strings", [])) == query


def test_user_svc_answers_first() -> None:
    """Its 503 comes before the gateway's 500, its 408 before the gateway stops reading a body."""
    own, timeout = Settings().http_request_timeout_s, duration_s(CONFIG["timeout"])
    assert timeout >= 2 * own
    assert timeout < duration_s(CONFIG["write_timeout"])
    assert own < duration_s(CONFIG["read_timeout"]) < timeout
    assert timeout <= duration_s(CONFIG["max_shutdown_wait_time"])


def test_the_gateway_gives_up_idle_connections_first() -> None:
    """Else it would send a POST into one that user_svc is just closing."""
    [kept] = re.findall(r"timeout_keep_alive=(\d+)", inspect.getsource(lifecycle))
    assert 0 < duration_s(CONFIG["idle_connection_timeout"]) < int(kept)


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=named)
def test_every_endpoint_is_limited_and_guarded(endpoint: dict[str, Any]) -> None:
    """For a client by its address, for all together, and by a breaker that forgives a few clients who hang up."""
    limit = endpoint["extra_config"]["qos/ratelimit/router"]
    assert limit["strategy"] == "ip"
    assert 0 < limit["client_capacity"] < limit["capacity"]
    assert 0 < limit["client_max_rate"] < limit["max_rate"]
    breaker = endpoint["backend"][0]["extra_config"]["qos/circuit-breaker"]
    assert breaker["max_errors"] >= 10
    assert breaker["timeout"] <= 5


def test_the_clients_address_cannot_be_forged() -> None:
    """X-Forwarded-For and X-Real-IP are believed from anyone, unless this is said."""
    router = CONFIG["extra_config"]["router"]
    assert router["forwarded_by_client_ip"] is False
    assert "trusted_proxies" not in router
    assert "remote_ip_headers" not in router


def test_nothing_leaks() -> None:
    """No backend addresses in errors, no query strings in logs or spans, no headers in spans, no debug endpoints."""
    router = CONFIG["extra_config"]["router"]
    assert router["return_error_msg"] is False
    assert router["disable_access_log"] is True
    assert router["hide_version_header"] is True
    layers = CONFIG["extra_config"]["telemetry/opentelemetry"]["layers"]
    assert layers["global"]["disable_traces"] is True
    assert list(every(layers, "report_headers")) == [False] * 3
    assert not {"debug_endpoint", "echo_endpoint"} & set(CONFIG)
    assert not list(every(CONFIG, "return_error_code"))


def test_the_callers_trace_goes_on() -> None:
    """Both switches that would stop the injection of traceparent are off, and every request is sampled."""
    telemetry = CONFIG["extra_config"]["telemetry/opentelemetry"]
    assert telemetry["trace_sample_rate"] == 1
    assert telemetry["layers"]["global"]["disable_propagation"] is False
    assert telemetry["layers"]["backend"]["traces"]["disable_stage"] is False
    [exporter] = telemetry["exporters"]["otlp"]
    assert (exporter["port"], exporter["use_http"], exporter["disable_metrics"]) == (4318, True, True)


def test_only_the_community_edition_is_used() -> None:
    """The paid one's namespaces and router keys are ignored or refused by what we run."""
    used = {name for extra in every(CONFIG, "extra_config") for name in extra if not name.startswith("@")}
    assert used == COMMUNITY
    assert not PAID_ROUTER_KEYS & set(CONFIG["extra_config"]["router"])
    assert not any("*" in endpoint["endpoint"] for endpoint in ENDPOINTS)
    assert CONFIG["version"] == 3


def test_no_list_is_a_wildcard() -> None:
    """Headers, query strings, origins: each by name."""
    for key in ("input_headers", "input_query_strings", "allow_origins", "allow_headers"):
        for listed in every(CONFIG, key):
            assert listed
            assert not any("*" in item for item in listed), key


def test_browsers_may_use_all_of_the_api() -> None:
    """CORS allows the methods and headers that the endpoints take, and shows the headers that they answer with."""
    cors = CONFIG["extra_config"]["security/cors"]
    assert set(cors["allow_methods"]) == {endpoint["method"] for endpoint in ENDPOINTS}
    assert set(cors["allow_headers"]) == {name for endpoint in ENDPOINTS for name in endpoint["input_headers"]}
    answered = {name for responses in every(OPENAPI["paths"], "responses") for name in _header_names(responses)}
    assert set(cors["expose_headers"]) == answered
    assert cors["allow_credentials"] is False


def _header_names(responses: dict[str, Any]) -> set[str]:
    return {name for response in responses.values() for name in response.get("headers", {})}


async def test_its_own_404_and_405_are_user_svcs() -> None:
    """The same type, title and status, so that a client need not know who refused it."""
    bodies = CONFIG["extra_config"]["router"]["error_body"]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=APP), base_url="http://test") as client:
        for status, method, path in (("404", "GET", "/nothing"), ("405", "PUT", "/v1/users")):
            problem = (await client.request(method, path)).json()
            assert bodies[status] == {key: problem[key] for key in ("type", "title", "status")}


@pytest.mark.unavailable_in_ci("krakend")
@pytest.mark.skipif(not os.environ.get("KRAKEND_SCHEMAS"), reason="KRAKEND_SCHEMAS names no folder with its schemas")
def test_it_is_valid_by_krakends_schemas() -> None:
    """By each in the folder: as it is, and as the local copy; a misspelt key would be found."""
    paths = sorted(Path(os.environ["KRAKEND_SCHEMAS"]).glob("*.json"))
    assert paths, "there is none in KRAKEND_SCHEMAS"
    misspelt = copy.deepcopy(CONFIG)
    misspelt["endpoints"][0]["imput_headers"] = []
    for path in paths:
        validator = jsonschema.Draft201909Validator(json.loads(path.read_text()))
        for config in (CONFIG, krakend.local(8080), krakend.local(8080, limits=True, traces="http://127.0.0.1:4318")):
            assert [error.message for error in validator.iter_errors(config)] == [], path.name
        assert not validator.is_valid(misspelt), path.name


# --- the other files -----------------------------------------------------------------------------------------------


def test_compose_runs_it_as_it_is_meant() -> None:
    """The hosts are services of it, only the API's port is published, on loopback, and the image is the tested one."""
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    services = compose["services"]
    service = services["krakend"]
    assert service["image"] == gateway.IMAGE
    [published] = service["ports"]
    assert published == f"127.0.0.1:${{{gateway.GATEWAY.variable}:-{gateway.GATEWAY.default}}}:{CONFIG['port']}"
    assert f"127.0.0.1:{CONFIG['port']}/__health" in str(service["healthcheck"])
    [config] = service["configs"]
    assert config["target"] == "/etc/krakend/krakend.json"
    assert compose["configs"][config["source"]]["file"] == "./krakend.json"
    [host] = CONFIG["host"]
    backend = urlsplit(host)
    environment = services[backend.hostname]["environment"]
    assert environment["HTTP_PORT"] == backend.port
    assert environment["HTTP_REQUEST_TIMEOUT"] is None, "the default, which the gateway's timeouts are measured by"
    [exporter] = CONFIG["extra_config"]["telemetry/opentelemetry"]["exporters"]["otlp"]
    assert exporter["host"] in services


def test_the_readmes_table_has_these_routes() -> None:
    """Method, path and query parameters."""
    text = (ROOT / "README.md").read_text()
    rows = re.findall(r"^\| `(GET|POST|DELETE) (/v1/[^`]*)` \|", text, re.MULTILINE)
    documented = {(method, *_split(target)) for method, target in rows}
    assert documented == {
        (endpoint["method"], endpoint["endpoint"], tuple(endpoint.get("input_query_strings", ())))
        for endpoint in ENDPOINTS
    }


def _split(target: str) -> tuple[str, tuple[str, ...]]:
    path, _, query = target.partition("?")
    return path, tuple(name for name, _ in parse_qsl(query, keep_blank_values=True))


# --- just gateway --------------------------------------------------------------------------------------------------


def changed(before: Any, after: Any, path: str = "") -> set[str]:
    """Where two documents are different."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = before.keys() | after.keys()
        return {found for key in keys for found in changed(before.get(key), after.get(key), f"{path}.{key}")}
    return set() if before == after else {path}


def test_the_local_copy_has_other_addresses_and_nothing_else() -> None:
    """Loopback only. Without a collector there is no telemetry; the metrics exporter would listen on all interfaces."""
    addresses = {".host", ".port", ".listen_ip"}
    plain = gateway.local_copy(CONFIG, port=1, user_svc="http://127.0.0.1:2")
    assert (plain["host"], plain["port"], plain["listen_ip"]) == (["http://127.0.0.1:2"], 1, "127.0.0.1")
    telemetry = ".extra_config.telemetry/opentelemetry"
    assert changed(CONFIG, plain) == addresses | {telemetry}
    traced = gateway.local_copy(CONFIG, port=1, user_svc="http://127.0.0.1:2", traces="http://127.0.0.2:4319/")
    exporters = f"{telemetry}.exporters"
    assert changed(CONFIG, traced) == addresses | {
        f"{exporters}.otlp",
        f"{exporters}.prometheus",
        f"{exporters}.@prometheus",
    }
    [exporter] = traced["extra_config"]["telemetry/opentelemetry"]["exporters"]["otlp"]
    assert (exporter["host"], exporter["port"], exporter["use_http"]) == ("127.0.0.2", 4319, True)
    assert "telemetry/opentelemetry" in CONFIG["extra_config"], "the copy must not change the original"


def run_gateway(**env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "deploy/local/gateway.py"]
    return subprocess.run(command, cwd=ROOT, env={"PATH": "/nowhere"} | env, capture_output=True, text=True, timeout=30)


def test_without_krakend_it_says_what_to_install(tmp_path: Path) -> None:
    """Exit 2, three ways to have one; a KRAKEND_BIN that is none is named."""
    env = {"MAILFLOW_DATA": str(tmp_path), "GATEWAY_PORT": str(free_port())}
    done = run_gateway(**env)
    assert done.returncode == 2
    assert all(word in done.stderr for word in ("KRAKEND_BIN", "PATH", "Docker", gateway.IMAGE))
    done = run_gateway(**env, KRAKEND_BIN="/nowhere/krakend")
    assert (done.returncode, done.stderr) == (2, "mailflow: KRAKEND_BIN=/nowhere/krakend is not a program\n")


def test_it_runs_krakend_on_the_copy(tmp_path: Path) -> None:
    """KRAKEND_BIN gets `run -c` and the copy, with the ports of the environment."""
    port = free_port()
    program = tmp_path / "krakend"
    program.write_text('#!/bin/sh\necho "$1 $2"\n/bin/cat "$3"\n')
    program.chmod(0o755)
    done = run_gateway(MAILFLOW_DATA=str(tmp_path), GATEWAY_PORT=str(port), HTTP_PORT="18080", KRAKEND_BIN=str(program))
    assert done.returncode == 0, done.stderr
    said, command, document = done.stdout.split("\n", 2)
    assert f"http://127.0.0.1:{port}/v1/users" in said
    assert command == "run -c"
    expected = gateway.local_copy(CONFIG, port=port, user_svc="http://127.0.0.1:18080")
    assert json.loads(document) == expected


def test_on_linux_the_container_has_the_hosts_network(tmp_path: Path) -> None:
    """user_svc listens on loopback; elsewhere the port is published there."""
    path = tmp_path / "krakend.json"
    assert "--network host" in " ".join(gateway.container(path))
    assert "--publish 127.0.0.1:8000:8000" in " ".join(gateway.container(path, published=8000))
    assert f"{path}:/etc/krakend/krakend.json:ro" in gateway.container(path)


# --- the comparison of tests/gateway -------------------------------------------------------------------------------

GOOD = Answer(
    202,
    (("content-type", "application/json"), ("content-length", "27"), ("location", "/x")),
    b'{"event_id":"a","n": 1}',
)


def changed_answer(**changes: Any) -> Answer:
    values = {"status": GOOD.status, "headers": GOOD.headers, "body": GOOD.body} | changes
    return Answer(**values)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"status": 200}, "status 202 became 200"),
        ({"headers": GOOD.headers[:2]}, "header location"),
        ({"headers": (*GOOD.headers, ("location", "/x"))}, "header location"),
        ({"headers": (*GOOD.headers, ("server", "gateway"))}, "header server"),
        ({"headers": (("content-type", "text/plain"), *GOOD.headers[1:])}, "header content-type"),
        ({"body": b'{"event_id":"a","n":1}'}, "body"),
        ({"body": b"{}"}, "body"),
        ({"body": b""}, "body"),
        ({"chunked": True}, "chunked"),
    ],
)
def test_a_planted_difference_is_found(changes: dict[str, Any], said: str) -> None:
    """One each of what a gateway can do to an answer."""
    found = differences(GOOD, changed_answer(**changes))
    assert len(found) == 1
    assert said in found[0]


def test_what_may_differ_is_no_difference() -> None:
    """The gateway's own headers, those of the connection, and what is made anew for each request."""
    added = (("X-KrakenD".lower(), "Version undefined"), ("vary", "Origin"), ("date", "now"), ("connection", "close"))
    assert differences(GOOD, changed_answer(headers=(*GOOD.headers, *added))) == []
    anew = changed_answer(body=GOOD.body.replace(b'"a"', b'"b"'))
    assert differences(GOOD, anew, {"event_id"}) == []
    assert differences(GOOD, anew) != []
    assert differences(GOOD, changed_answer(body=b'{"n":1}'), {"event_id"}) != []


def test_the_readme_tells_the_gateways_own_answers() -> None:
    """Port, limit, timeout and breaker as they are configured."""
    part = (ROOT / "README.md").read_text().partition("### Behind the gateway")[2].partition("\n## ")[0]
    part = " ".join(part.split())
    limit = ENDPOINTS[0]["extra_config"]["qos/ratelimit/router"]
    breaker = ENDPOINTS[0]["backend"][0]["extra_config"]["qos/circuit-breaker"]
    assert (limit["every"], CONFIG["max_header_bytes"]) == ("1m", 16 * 1024)
    for said in (
        f"http://127.0.0.1:{CONFIG['port']}>",
        f"registering, {limit['client_max_rate']} a minute",
        f"silent for {duration_s(CONFIG['timeout']):g} s",
        f"after {breaker['max_errors'] + 1} in a row",
        f"for {breaker['timeout']} s",
    ):
        assert said in part, said
