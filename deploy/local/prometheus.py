"""`just prometheus`: a Prometheus on this machine that watches `just up`, with the shipped configuration and rules.

Only the targets differ: 127.0.0.1 for the names of compose.yaml, and no job for what does not run here. Its data is in
.mailflow/prometheus. Needs a `prometheus` command (`apt-get install prometheus`, or PROMETHEUS_BIN).
"""

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from tasks import HOST, ROOT, port

SHIPPED = ROOT / "deploy" / "prometheus"


def shipped() -> dict[str, Any]:
    """The shipped prometheus.yml."""
    config: dict[str, Any] = yaml.safe_load((SHIPPED / "prometheus.yml").read_text())
    return config


def retargeted(config: Mapping[str, Any], targets: Mapping[str, Sequence[str]], rules: Path) -> dict[str, Any]:
    """The same configuration with these targets; jobs without any go. `rules` is the folder of the rule files."""
    jobs = [
        {key: value for key, value in job.items() if not key.endswith("_configs")}
        | {"static_configs": [{"targets": list(targets[job["job_name"]])}]}
        for job in config["scrape_configs"]
        if job["job_name"] in targets
    ]
    return {**config, "rule_files": [str(rules / "*.yml")], "scrape_configs": jobs}


def command(binary: str, config: Path, data: Path, port: int) -> list[str]:
    """How Prometheus is started, as in compose.yaml."""
    return [
        binary,
        f"--config.file={config}",
        f"--storage.tsdb.path={data}",
        f"--web.listen-address={HOST}:{port}",
        "--enable-feature=exemplar-storage",
    ]


def main() -> None:
    """Writes the copy and becomes Prometheus."""
    binary = shutil.which(os.environ.get("PROMETHEUS_BIN") or "prometheus")
    if binary is None:
        sys.exit("this needs a `prometheus` command: apt-get install prometheus, or set PROMETHEUS_BIN")
    own = port("PROMETHEUS_PORT", 9090)
    targets = {
        "user_svc": [f"{HOST}:{port('USER_METRICS_PORT', 9101)}"],
        "email_svc": [f"{HOST}:{port('EMAIL_METRICS_PORT', 9102)}"],
        "prometheus": [f"{HOST}:{own}"],
    }
    data = ROOT / os.environ.get("MAILFLOW_DATA", ".mailflow") / "prometheus"
    data.mkdir(parents=True, exist_ok=True)
    config = data / "prometheus.yml"
    config.write_text(yaml.safe_dump(retargeted(shipped(), targets, SHIPPED / "rules"), sort_keys=False))
    print(f"Prometheus: http://{HOST}:{own}/alerts  data in {data}", flush=True)
    run = command(binary, config, data, int(own))
    os.execvp(run[0], run)  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main()
