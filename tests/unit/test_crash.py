"""Crash points: each is where its table says, an armed one kills, and nobody pays for one that is not."""

import ast
import subprocess
import sys
import timeit
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from contracts.runtime import crash
from contracts.runtime.settings import SettingsError
from email_svc.crash_points import POINTS as EMAIL
from user_svc.crash_points import POINTS as USER

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    """Nothing dies after a test."""
    yield
    crash.arm(None, (), production=False)


def points_in(folder: Path) -> list[str]:
    """What the calls of `crash.point` in a folder name; a name that is not written out is an empty one."""
    found = []
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("crash.point"):
                name = node.args[0]
                found.append(name.value if isinstance(name, ast.Constant) else "")
    return found


@pytest.mark.parametrize(("service", "table"), [("user_svc", USER), ("email_svc", EMAIL), ("contracts", {})])
def test_table_and_code_have_the_same_points(service: str, table: Mapping[str, str]) -> None:
    """Each point of the table is in the code, in one place, and no other is."""
    assert sorted(points_in(ROOT / service)) == sorted(table)


def test_no_point_has_two_services() -> None:
    """So a name says which process dies."""
    assert not USER.keys() & EMAIL.keys()


@pytest.mark.parametrize(("where", "visits"), [("relay.done", 1), ("relay.done:1", 1), ("relay.done:3", 3)])
def test_armed_point_kills_at_the_nth_visit(where: str, visits: int) -> None:
    """As by kill -9, with what was printed and not flushed; other points are passed."""
    script = f"""
from contracts.runtime import crash
crash.arm({where!r}, ["relay.done", "relay.taken"], production=False)
for n in range(1, 5):
    print("buffered")
    crash.point("relay.taken")
    if n == {visits}:
        import os; os.write(1, b"last words")
    crash.point("relay.done")
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env={}, capture_output=True, text=True)
    assert done.returncode == -9
    assert done.stdout == "last words"
    assert done.stderr == "died at the crash point relay.done\n"


@pytest.mark.parametrize("where", ["relay", "relay.don", "relay.done:0", "relay.done:x", "relay.done:", ":1", "a@b.c"])
def test_unknown_point_is_refused(where: str) -> None:
    """And what there is is listed."""
    with pytest.raises(SettingsError, match=r"CRASH_AT.*\n  relay\.done\n  relay\.taken$"):
        crash.arm(where, ["relay.taken", "relay.done"], production=False)
    crash.point("relay.done")


@pytest.mark.parametrize("service", ["user_svc", "email_svc"])
@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"ENVIRONMENT": "production", "CRASH_AT": "{}"}, "CRASH_AT: not allowed when ENVIRONMENT=production"),
        ({"CRASH_AT": "no.such"}, "CRASH_AT='no.such': expected one of these"),
    ],
)
def test_service_refuses_to_start(service: str, env: dict[str, str], said: str) -> None:
    """In production with any point, and anywhere with one that it does not have: exit status 78."""
    table = USER if service == "user_svc" else EMAIL
    env = {key: value.format(next(iter(table))) for key, value in env.items()}
    secrets = {"ADMIN_TOKEN": "test", "USER_ID_KEY": "sixteen characters"}
    command = [sys.executable, "-m", service]
    done = subprocess.run(command, cwd=ROOT, env=secrets | env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 78
    assert said in done.stderr
    if "ENVIRONMENT" not in env:
        assert all(f"  {name}\n" in done.stderr for name in table)


def test_unarmed_point_costs_nothing() -> None:
    """Some 50 ns; a mail passes ten or so, and takes a millisecond."""
    calls = 20_000
    assert min(timeit.repeat(lambda: crash.point("relay.done"), number=calls, repeat=5)) / calls < 2e-6
