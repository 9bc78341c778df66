"""Recipes that act on the tree, in a clone of their own: what they build is whole, what destroys asks first."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.processes import Process, free_port
from tests.support.recipes import cloned, just, run, said, unanswered
from tests.support.waiting import eventually

DESTRUCTIVE = {"clean", "clean-all", "clean-tools", "replay", "reset", "docker-clean"}
FAKE_DOCKER = """#!/bin/sh
case "$*" in
  "compose --profile * ps --all --quiet jaeger") echo "$JAEGER" ;;
  "compose up"*) echo "profiles=$COMPOSE_PROFILES: $*" ;;
esac
"""


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This tree as somebody would clone it."""
    return cloned(tmp_path_factory.mktemp("clone") / "mailflow")


def test_what_needs_no_system(clone: Path) -> None:
    """Each recipe that only looks at the tree or builds from it."""
    collect = ("--collect-only", "-q")
    for command, expected in (
        (just("help", tree=clone), "create-user"),
        (just("show-jobs", tree=clone), "jobs="),
        (just("jobs=3", "show-jobs", tree=clone), "jobs=3"),
        (just("versions", tree=clone), "nats-server"),
        (just("build-seq", tree=clone), "email_svc  loads from dist/mailflow-"),
        (just("test-unit", *collect, tree=clone), "tests/property/test_limit_property.py"),
        (just("test-integration", *collect, tree=clone), "tests/integration/test_smtp.py"),
        (just("test-e2e", *collect, tree=clone), "tests/e2e/test_recipes.py"),
        (just("bench", "--help", tree=clone), "--quick"),
        (just("bench-pages", "--help", tree=clone), "--rounds"),
        (just("--dry-run", "check-all", tree=clone), "_check-all"),
        (just("--dry-run", "test-cover", tree=clone), "--cov=email_svc"),
        (just("--dry-run", "test-seq", tree=clone), "workshop.py test"),
        (just("--dry-run", "typecheck", tree=clone), "mypy"),
        (just("--dry-run", "lint-seq", tree=clone), "mypy"),
    ):
        assert expected in said(command)
    assert run(just("build", "nobody", tree=clone)).returncode != 0
    of_email = said(just("test", "email", *collect, tree=clone))
    assert "tests/integration/test_smtp.py" in of_email
    assert "test_user_api.py" not in of_email
    for command in (
        just("fmt", tree=clone),
        just("docs", tree=clone),
        just("accounts", tree=clone),
        just("dashboards", tree=clone),
    ):
        said(command)
    assert subprocess.run(["git", "diff", "--stat"], cwd=clone, capture_output=True, text=True).stdout == ""


def test_what_needs_tools(clone: Path) -> None:
    """`just rules-check` where promtool is; the gateway is given its copy; secrets are made once."""
    assert "run -c " in said(just("gateway", tree=clone), {"KRAKEND_BIN": str(shutil.which("echo"))})
    said(just("secrets", tree=clone))
    made = (clone / "deploy" / ".env").read_text()
    said(just("secrets", tree=clone))
    assert (clone / "deploy" / ".env").read_text() == made
    checked = run(just("rules-check", tree=clone))
    if shutil.which("promtool") is None:
        assert "apt-get install prometheus" in checked.stdout
        pytest.skip("promtool is not installed: apt-get install prometheus")
    assert checked.returncode == 0, checked.stdout
    assert "SUCCESS" in checked.stdout


def test_traces_outlive_a_rebuild(tmp_path: Path) -> None:
    """Where Jaeger is, the services that compose makes anew are told so, unless the user chose the profiles."""
    (tmp_path / "docker").write_text(FAKE_DOCKER)
    (tmp_path / "docker").chmod(0o755)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    with_jaeger = path | {"JAEGER": "4f5e6d"}
    assert "profiles=: compose up --build" in said(just("rebuild"), path | {"JAEGER": ""})
    assert "profiles=monitoring: compose up --build" in said(just("rebuild"), with_jaeger)
    assert "profiles=monitoring: compose up --detach" in said(just("docker-up"), with_jaeger)
    assert "profiles=: compose up --detach" in said(just("docker-up"), with_jaeger | {"COMPOSE_PROFILES": ""})


def test_what_installs_tools(clone: Path) -> None:
    """`just tools` where Go is, and that the recipes find what it installed."""
    if shutil.which("go") is None:
        pytest.skip("Go is not installed: https://go.dev/dl/")
    said(just("tools", tree=clone))
    assert (clone / ".tools" / "bin" / "nats").exists()
    versions = said(just("versions", tree=clone)).splitlines()
    assert "not installed" not in next(line for line in versions if "nats " in line)


def test_what_destroys_asks(clone: Path) -> None:
    """Unanswered, nothing is removed; answered, all of it, and only that."""
    dump = json.loads(said(just("--dump", "--dump-format", "json")))
    asks = {name for name, recipe in dump["recipes"].items() if any("confirm" in a for a in recipe["attributes"])}
    assert asks == DESTRUCTIVE
    said(just("versions", tree=clone))  # makes the environment
    data, tool, built = (clone / folder / "x" for folder in (".mailflow", ".tools/bin", "dist"))

    def there() -> list[bool]:
        return [path.exists() for path in (data, tool, built, clone / ".venv")]

    for recipe, command, left in (
        ("clean", just("clean", tree=clone), [False, True, False, True]),
        ("clean-tools", just("clean-tools", tree=clone), [True, False, True, True]),
        ("clean-all", just("clean-all", tree=clone), [False, False, False, False]),
    ):
        for path in (data, tool, built):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("mine")
        assert run(unanswered(recipe, tree=clone)).returncode != 0
        assert there() == [True] * 4
        said(command)
        assert there() == left
    assert subprocess.run(["git", "status", "--short"], cwd=clone, capture_output=True, text=True).stdout == ""


async def test_dev_starts_anew_when_the_code_changes(clone: Path, tmp_path: Path) -> None:
    """`just dev`: a changed file, and the new code runs."""
    said(just("versions", tree=clone))  # makes the environment
    names = ("NATS_PORT", "NATS_MONITORING_PORT", "INBOX_SMTP_PORT", "INBOX_HTTP_PORT", "HTTP_PORT")
    env = {name: str(free_port()) for name in (*names, "USER_METRICS_PORT", "EMAIL_METRICS_PORT")}
    dev = Process("dev", just("dev", tree=clone), tmp_path, env)
    dev.start()
    try:
        await eventually(lambda: dev.text().count("MailFlow is running") == 1, within_s=90, what="the first start")
        with (clone / "user_svc" / "__init__.py").open("a") as file:
            file.write("# changed\n")
        await eventually(lambda: dev.text().count("MailFlow is running") == 2, within_s=60, what="the second start")
    finally:
        dev.signal(signal.SIGTERM)
        await dev.exit_status(30)
