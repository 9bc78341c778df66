"""`just gateway`: KrakenD in front of `just up`, with the routes and limits of krakend.json.

    client ─► KrakenD, GATEWAY_PORT 8000 ─► user_svc, HTTP_PORT 8080

krakend.json has the addresses of compose.yaml; a copy of it with local ones is what runs. KrakenD itself is
KRAKEND_BIN, else `krakend` on PATH, else its image, by Docker.
"""

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from passwords import Unusable
from up import HOST, HTTP, ROOT, Port, read_ports, refuse_taken

GATEWAY = Port("GATEWAY_PORT", 8000, "the gateway")
IMAGE = "krakend:2.13.8"
TELEMETRY = "telemetry/opentelemetry"
MISSING = f"""no KrakenD to run. One of these is needed:
  KRAKEND_BIN=/path/to/krakend
  `krakend` on PATH: https://www.krakend.io/docs/overview/installing/
  Docker, for the image {IMAGE}"""


def main(env: Mapping[str, str] = os.environ) -> int:
    """Write the copy and become KrakenD. Returns only when that is not possible: 2."""
    try:
        ports = read_ports(env, (GATEWAY, HTTP))
        refuse_taken({GATEWAY: ports[GATEWAY]})  # KrakenD would exit with status 0
        data = ROOT / env.get("MAILFLOW_DATA", ".mailflow")
        data.mkdir(parents=True, exist_ok=True)
        path = data / "krakend.json"
        program = binary(env)
        # Docker has the host's network on Linux only; elsewhere its machine is a name and the port is published.
        in_vm = program is None and sys.platform != "linux"
        config = local_copy(
            json.loads((ROOT / "krakend.json").read_text()),
            port=ports[GATEWAY],
            user_svc=f"http://{'host.docker.internal' if in_vm else HOST}:{ports[HTTP]}",
            listen_ip="0.0.0.0" if in_vm else HOST,  # noqa: S104 - inside a container; published on loopback
            traces=env.get("OTEL_EXPORTER_OTLP_ENDPOINT", ""),
        )
        path.write_text(json.dumps(config, indent=2))
        if program is not None:
            command = [program, "run", "-c", str(path)]
        elif has_docker():
            command = container(path, published=ports[GATEWAY] if in_vm else None)
        else:
            raise Unusable(MISSING)
    except (Unusable, OSError) as exc:
        print(f"mailflow: {exc}", file=sys.stderr)
        return 2
    print(f"KrakenD: http://{HOST}:{ports[GATEWAY]}/v1/users in front of user_svc at port {ports[HTTP]}", flush=True)
    os.execvp(command[0], command)  # noqa: S606 - what was just chosen
    return 2


def local_copy(
    config: Mapping[str, Any], *, port: int, user_svc: str, listen_ip: str = HOST, traces: str = ""
) -> dict[str, Any]:
    """krakend.json with other addresses, and nothing else changed.

    traces: base URL of an OTLP collector; empty: no telemetry. Never the Prometheus exporter: it would listen on all
    interfaces.
    """
    made = copy.deepcopy(dict(config)) | {"host": [user_svc], "port": port, "listen_ip": listen_ip}
    telemetry = made["extra_config"].pop(TELEMETRY)
    if traces:
        place = urlsplit(traces)
        [exporter] = telemetry["exporters"]["otlp"]
        exporter |= {"host": place.hostname, "port": place.port or 4318}
        telemetry["exporters"] = {"otlp": [exporter]}
        made["extra_config"][TELEMETRY] = telemetry
    return made


def binary(env: Mapping[str, str]) -> str | None:
    """KRAKEND_BIN or what PATH has.

    Raises:
        Unusable: KRAKEND_BIN is not a program.
    """
    named = env.get("KRAKEND_BIN")
    if not named:
        return shutil.which("krakend", path=env.get("PATH"))
    found = shutil.which(named)
    if found is None:
        raise Unusable(f"KRAKEND_BIN={named} is not a program")
    return found


def has_docker() -> bool:
    """Whether a Docker engine answers."""
    try:
        return subprocess.run(["docker", "version"], capture_output=True, timeout=20, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def container(path: Path, *, published: int | None = None, name: str = "mailflow-gateway") -> list[str]:
    """The command that runs the image with this configuration. published: on loopback; None: on the host's network."""
    network = ["--network", "host"] if published is None else ["--publish", f"{HOST}:{published}:{published}"]
    volume = f"{path.resolve()}:/etc/krakend/krakend.json:ro"
    return ["docker", "run", "--rm", "--name", name, *network, "--volume", volume, IMAGE]


if __name__ == "__main__":
    sys.exit(main())
