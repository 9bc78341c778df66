"""The recipe that measures the tests of the pure cores: it finds them all, it counts right, and it runs."""

import importlib.util
import re
import subprocess

import pytest

from tests.mutation.mutants import CORES, LEAST, ROOT, below, configuration, of_file, share, statuses, table
from tests.support.recipes import just

RESULTS = """
    user_svc.breaker.x_first__mutmut_1: killed
    user_svc.breaker.x_first__mutmut_2: timeout
    user_svc.breaker.xǁMemoryǁhear__mutmut_1: survived
    user_svc.breaker_guard.x_first__mutmut_1: survived
    user_svc.users.x_name__mutmut_1: no tests
"""


def test_every_pure_core_is_measured_by_tests_that_exist() -> None:
    """The style guide's list of pure modules, and the drill's checker; a new policy or law must not be forgotten."""
    found = {path for where in ("email_svc/policies/[!_]*.py", "tests/drill/laws_*.py") for path in ROOT.glob(where)}
    others = {"user_svc/breaker.py", "user_svc/users.py", "email_svc/decision.py", "tests/drill/checker.py"}
    assert set(CORES) >= {path.relative_to(ROOT).as_posix() for path in found} | others
    named = [ROOT / file for file in CORES] + [ROOT / "tests" / test for tests in CORES.values() for test in tests]
    assert [path for path in named if not path.is_file()] == []


def test_only_what_was_noticed_counts() -> None:
    """A mutant without a test has survived, a file without mutants shows nothing, another module's do not count."""
    found = statuses(RESULTS)
    assert len(found) == 5
    breaker = of_file("user_svc/breaker.py", found)
    assert list(breaker.values()) == ["killed", "timeout", "survived"]
    assert share(breaker) == pytest.approx(66.7, abs=0.1)
    assert share(of_file("user_svc/users.py", found)) == share({}) == 0.0


@pytest.mark.parametrize(("killed", "enough"), [(89, False), (90, True), (100, True)])
def test_less_than_nine_of_ten_are_too_few(killed: int, enough: bool) -> None:
    """Of each file: 90 of 100 are enough."""
    found = {f"user_svc.breaker.x_first__mutmut_{n}": "killed" if n < killed else "survived" for n in range(100)}
    assert LEAST == 90
    assert below(["user_svc/breaker.py"], found) == ([] if enough else ["user_svc/breaker.py"])
    assert table(["user_svc/breaker.py"], found).endswith("below 90") is not enough


def test_a_file_is_tried_with_its_own_tests() -> None:
    """And no others, so that a run is short."""
    said = configuration(["user_svc/users.py"])
    assert re.findall(r"tests/\S+\.py", said) == ["tests/unit/test_users.py", "tests/property/test_users_property.py"]


@pytest.mark.skipif(importlib.util.find_spec("mutmut") is None, reason="needs mutmut: uv sync --group mutation")
def test_the_smallest_core_is_measured() -> None:
    """About twenty mutants, nearly all of them killed."""
    command = just("mutants", "email_svc/policies/backoff.py")
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    line = re.fullmatch(r"email_svc/policies/backoff\.py +(\d+) +(\d+) .*", run.stdout.splitlines()[-1])
    assert line is not None, run.stdout
    assert int(line[1]) >= 15
    assert int(line[2]) >= 14
