"""The OpenAPI document: valid, and true of the running service."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openapi_spec_validator import validate

from tests.support.processes import NatsServer, Service, stopping

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_headers_conformance,response_schema_conformance"
)


@pytest.fixture(scope="module")
def service(nats_server: NatsServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """user_svc on the module's broker."""
    env = {"NATS_URL": nats_server.url, "NATS_MONITORING_URL": nats_server.monitoring_url}
    made = Service("user_svc", tmp_path_factory.mktemp("user_svc"), env)
    with stopping(made):
        made.start()
        asyncio.run(made.ready())
        yield made


@pytest.fixture(scope="module")
def document(service: Service) -> dict[str, Any]:
    """As it is served."""
    answer = httpx.get(f"{service.url}/openapi.json")
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()
    return found


def test_the_document_is_valid(document: dict[str, Any]) -> None:
    """By openapi-spec-validator."""
    validate(document)


def test_every_route_is_documented(document: dict[str, Any]) -> None:
    """Those of the design, and no other."""
    found = {f"{method.upper()} {path}" for path, item in document["paths"].items() for method in item}
    assert found == {
        "POST /v1/users",
        "GET /v1/users",
        "GET /v1/users/{user_id}",
        "DELETE /v1/users/{user_id}",
        "GET /v1/users/{user_id}/welcome-email",
        "POST /v1/users/{user_id}/welcome-email",
    }


def test_every_error_is_a_problem(document: dict[str, Any]) -> None:
    """In one shape, with Retry-After where it is sent."""
    for item in document["paths"].values():
        for operation in item.values():
            assert {"500", "503"} <= set(operation["responses"])
            for status, answer in operation["responses"].items():
                assert "X-Request-ID" in answer["headers"]
                assert ("Retry-After" in answer["headers"]) == (status in ("429", "503"))
                if status >= "400":
                    assert list(answer["content"]) == ["application/problem+json"]


def test_schemathesis_finds_nothing(service: Service, tmp_path: Path) -> None:
    """Examples, edge cases, random and stateful requests against the live process, for half a minute."""
    command = [
        str(Path(sys.executable).parent / "schemathesis"),
        "run",
        f"{service.url}/openapi.json",
        f"--checks={CHECKS}",
        "--max-time=20",
        "--max-examples=60",
        "--seed=1",
        "--no-color",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "Traceback" not in service.text()
