"""The compose files as text: hardened, limited, pinned, bound to this machine, and in step with the settings."""

import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from contracts.runtime.lifecycle import serving
from contracts.runtime.process import CommonSettings
from contracts.runtime.settings import duration_s, variable_of
from contracts.topology import TopologySettings
from email_svc import main as email_main
from email_svc.settings import Settings as EmailSettings
from tests.support.processes import NATS_IMAGE, ROOT
from user_svc import app as user_app
from user_svc.settings import Settings as UserSettings

FILES = {name: yaml.safe_load((ROOT / name).read_text()) for name in ("compose.yaml", "deploy/compose.cluster.yaml")}
SERVICES = [(file, name) for file, content in FILES.items() for name in content["services"]]

BY_THE_IMAGE = {"HTTP_HOST"}
NOT_IN_A_CONTAINER = {"EMAIL_TEMPLATES_DIR", "NATS_CREDS", "NATS_TLS_CA", "CRASH_AT"}
"""Paths: whoever wants them mounts the file too, and writes the variable there. And what is for tests alone."""
IN_PRODUCTION = {"ENVIRONMENT", "NATS_DURABILITY", "STREAM_REPLICAS"}
"""One machine for development has one broker, as it comes."""


def service(file: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = FILES[file]["services"][name]
    return found


def one_shot(found: dict[str, Any]) -> bool:
    return bool(found["restart"] == "no")


@pytest.mark.parametrize(("file", "name"), SERVICES)
def test_every_container_is_hardened_and_limited(file: str, name: str) -> None:
    """Read-only, without capabilities or a way to new ones, not root, in bounds of memory, processor and processes."""
    found = service(file, name)
    assert found["read_only"] is True
    assert found["cap_drop"] == ["ALL"]
    assert found["security_opt"] == ["no-new-privileges:true"]
    assert set(found["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}
    assert "privileged" not in found
    if found["user"] == "0:0":  # gives a new volume to its user, and can do nothing else
        assert (one_shot(found), found["cap_add"], found["network_mode"]) == (True, ["CHOWN"], "none")
    else:
        assert re.fullmatch(r"[1-9]\d*:\d+", found["user"])
        assert "cap_add" not in found


@pytest.mark.parametrize(("file", "name"), SERVICES)
def test_every_container_says_how_it_is(file: str, name: str) -> None:
    """What runs on has a health check that is quick at the start; what ends is waited for by somebody."""
    found = service(file, name)
    if one_shot(found):
        waits = [s.get("depends_on", {}).get(name, {}).get("condition") for s in FILES[file]["services"].values()]
        assert "service_completed_successfully" in waits
    else:
        assert found["healthcheck"]["test"][0] == "CMD"
        assert duration_s(found["healthcheck"]["start_interval"]) <= 1


@pytest.mark.parametrize(("file", "name"), SERVICES)
def test_images_are_pinned_and_ports_are_this_machines(file: str, name: str) -> None:
    """A tag with a full version, or our own image; no port that another machine could reach."""
    found = service(file, name)
    assert re.search(r":v?\d+\.\d+\.\d+(-\w+)?$|\bmailflow:local\b", found["image"])
    assert all(port.startswith("127.0.0.1:") for port in found.get("ports", []))


def test_the_tests_broker_is_the_one_that_compose_runs() -> None:
    """Its version, in both files."""
    images = {s["image"] for content in FILES.values() for n, s in content["services"].items() if n.startswith("nats")}
    assert images - {"natsio/prometheus-nats-exporter:0.20.1"} == {NATS_IMAGE}


@pytest.mark.parametrize("file", FILES)
def test_what_is_mounted_exists(file: str) -> None:
    """Files and folders of the repository, and none that a container might write to."""
    volumes = [v.split(":") for s in FILES[file]["services"].values() for v in s.get("volumes", ())]
    mounted = [found for found in volumes if found[0].startswith(".")]
    assert [found for found in mounted if found[2:] != ["ro"]] == []
    sources = [found[0] for found in mounted] + [config["file"] for config in FILES[file]["configs"].values()]
    assert sources
    assert [source for source in sources if not (ROOT / file).parent.joinpath(source).exists()] == []


@pytest.mark.parametrize("file", FILES)
def test_nothing_waits_for_the_gateway(file: str) -> None:
    """A system without it is whole."""
    assert [n for n, s in FILES[file]["services"].items() if "krakend" in s.get("depends_on", {})] == []


@pytest.mark.parametrize("file", FILES)
def test_a_service_has_more_time_to_stop_than_it_takes(file: str) -> None:
    """SIGKILL comes after both listeners and the messages under way had all the time they may take; and process 1 hears
    a SIGTERM at any time."""
    listener_s = inspect.signature(serving).parameters["grace_s"].default
    drains_s = {
        "user-svc": user_app._DRAIN_S + 2 * listener_s,
        "email-svc": email_main._DRAIN_S + listener_s,
    }
    for name, drain_s in drains_s.items():
        assert duration_s(service(file, name)["stop_grace_period"]) >= drain_s + 5
        assert service(file, name)["init"] is True


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    ("name", "kind"), [("user-svc", UserSettings), ("email-svc", EmailSettings), ("provision", TopologySettings)]
)
def test_variables_are_the_settings(file: str, name: str, kind: type[CommonSettings]) -> None:
    """Each variable is a setting of the service, and each setting can be given to it from outside."""
    given = {variable for variable in service(file, name)["environment"] if not variable.startswith("OTEL_")}
    settings = {variable_of(field.name) for field in msgspec.structs.fields(kind)}
    assert given <= settings
    assert settings - given <= BY_THE_IMAGE | NOT_IN_A_CONTAINER | (IN_PRODUCTION if file == "compose.yaml" else set())


def test_the_image_is_made_of_what_the_arguments_say() -> None:
    """Both base images can be replaced, no front end is fetched, and the last stage is not root's."""
    lines = Path(ROOT / "deploy/Dockerfile").read_text().splitlines()
    sources = [line.split()[1] for line in lines if line.startswith("FROM ")]
    assert set(sources) == {"${UV_IMAGE}", "${PYTHON_IMAGE}"}
    assert not any("syntax=" in line for line in lines)
    assert [line for line in lines if line.startswith("USER ")] == ["USER 10001:10001"]


def test_without_docker_it_says_what_to_install() -> None:
    """And that there is another way."""
    command = [sys.executable, "deploy/local/containers.py", "compose", "ps"]
    done = subprocess.run(command, cwd=ROOT, env={"PATH": "/nowhere"}, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Docker Engine 25 or newer with its compose plugin" in done.stderr
    assert "`just up`" in done.stderr
