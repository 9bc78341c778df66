"""Recipes that act on the tree, in a clone of their own: what they build is whole, what destroys asks first."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import ROOT, Process, free_port
from tests.support.waiting import eventually

JUST = str(Path(sys.executable).parent / "just")
DESTRUCTIVE = {"clean", "clean-all", "clean-tools", "replay", "reset", "docker-clean"}


def just(tree: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A recipe in that tree; nobody answers its questions."""
    outside = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    return subprocess.run(
        [JUST, *arguments],
        cwd=tree,
        env=outside | env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
    )


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This tree as somebody would clone it."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs git and a git checkout")
    tree = tmp_path_factory.mktemp("clone") / "mailflow"
    subprocess.run(["git", "clone", "--quiet", "--depth", "1", f"file://{ROOT}", str(tree)], check=True)
    return tree


def test_what_needs_no_system(clone: Path) -> None:
    """Each recipe that only looks at the tree or builds from it."""
    for arguments, expected in (
        (["help"], "create-user"),
        (["show-jobs"], "jobs="),
        (["jobs=3", "show-jobs"], "jobs=3"),
        (["versions"], "nats-server"),
        (["build-seq"], "email_svc  loads from dist/mailflow-"),
        (["test", "email", "--collect-only", "-q", "tests/unit/test_decision.py"], "tests collected"),
        (["--dry-run", "check-all"], "_check-all"),
        (["test", "user", "--collect-only", "-q"], "tests/integration/test_user_api.py"),
    ):
        done = just(clone, *arguments)
        assert done.returncode == 0, done.stdout
        assert expected in done.stdout
    assert "test_smtp.py" not in just(clone, "test", "user", "--collect-only", "-q").stdout
    assert just(clone, "build", "nobody").returncode != 0
    for recipe in ("fmt", "docs", "accounts", "dashboards"):
        done = just(clone, recipe)
        assert done.returncode == 0, done.stdout
    assert subprocess.run(["git", "diff", "--stat"], cwd=clone, capture_output=True, text=True).stdout == ""


def test_what_needs_tools(clone: Path, tmp_path: Path) -> None:
    """`just rules-check` where promtool is; the gateway is given its copy; secrets are made once."""
    done = just(clone, "gateway", KRAKEND_BIN=str(shutil.which("echo")))
    assert done.returncode == 0, done.stdout
    assert "run -c " in done.stdout
    assert just(clone, "secrets").returncode == 0
    made = (clone / "deploy" / ".env").read_text()
    assert just(clone, "secrets").returncode == 0
    assert (clone / "deploy" / ".env").read_text() == made
    done = just(clone, "rules-check")
    if shutil.which("promtool") is None:
        assert "apt-get install prometheus" in done.stdout
        pytest.skip("promtool is not installed: apt-get install prometheus")
    assert done.returncode == 0, done.stdout
    assert "SUCCESS" in done.stdout


def test_what_installs_tools(clone: Path) -> None:
    """`just tools` where Go is, and that the recipes find what it installed."""
    if shutil.which("go") is None:
        pytest.skip("Go is not installed: https://go.dev/dl/")
    done = just(clone, "tools")
    assert done.returncode == 0, done.stdout
    assert (clone / ".tools" / "bin" / "nats").exists()
    assert "not installed" not in next(line for line in just(clone, "versions").stdout.splitlines() if "nats " in line)


def test_what_destroys_asks(clone: Path) -> None:
    """Unanswered, nothing is removed; answered, all of it, and only that."""
    dump = json.loads(subprocess.run([JUST, "--dump", "--dump-format", "json"], cwd=ROOT, capture_output=True).stdout)
    asks = {name for name, recipe in dump["recipes"].items() if any("confirm" in a for a in recipe["attributes"])}
    assert asks == DESTRUCTIVE & set(dump["recipes"])
    assert just(clone, "versions").returncode == 0
    kept = [clone / ".mailflow" / "x", clone / ".tools" / "bin" / "x", clone / "dist" / "x"]
    for path in kept:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    for recipe in ("clean", "clean-tools", "clean-all"):
        assert just(clone, recipe).returncode != 0
        assert all(path.exists() for path in kept)
    assert just(clone, "--yes", "clean-all").returncode == 0
    assert not any(path.exists() for path in (*kept, clone / ".venv"))
    assert subprocess.run(["git", "status", "--short"], cwd=clone, capture_output=True, text=True).stdout == ""


async def test_dev_starts_anew_when_the_code_changes(clone: Path, tmp_path: Path) -> None:
    """`just dev`: a changed file, and the new code runs."""
    assert just(clone, "versions").returncode == 0  # makes the environment
    names = ("NATS_PORT", "NATS_MONITORING_PORT", "INBOX_SMTP_PORT", "INBOX_HTTP_PORT", "HTTP_PORT")
    env = {name: str(free_port()) for name in (*names, "USER_METRICS_PORT", "EMAIL_METRICS_PORT")}
    dev = Process("dev", [JUST, "--justfile", str(clone / "justfile"), "dev"], tmp_path, env)
    dev.start()
    try:
        await eventually(lambda: dev.text().count("MailFlow is running") == 1, within_s=90, what="the first start")
        with (clone / "user_svc" / "__init__.py").open("a") as file:
            file.write("# changed\n")
        await eventually(lambda: dev.text().count("MailFlow is running") == 2, within_s=60, what="the second start")
    finally:
        dev.signal(signal.SIGTERM)
        await dev.exit_status(30)
