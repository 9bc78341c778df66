"""`just mutants`: changes the pure cores in small ways, one at a time, and counts what their tests notice.

    uv run --group mutation python -m tests.mutation.mutants [FILE…]

Prints the mutants that nobody noticed, as diffs, and a line for each file. Exits with 1 if less than 90 % of a file's
are killed, with 2 if it could not be measured. mutmut makes the mutants and runs them, on a copy in a directory that
goes away. It changes functions only: what stands outside of them, constants and defaults, has tests that say its value.

Some survive because nobody can tell them from the code: a clamp that is a little wider (backoff's exponent), `/` for
`//` inside of `int()`, an early end of a search that would come to the same (SlidingWindow.take), an arm that only the
types ask for (users.address), the epoch of a Memory that has heard nothing.
"""

import argparse
import contextlib
import os
import resource
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

_CHECKER = tuple(f"unit/{path.name}" for path in sorted((ROOT / "tests/unit").glob("test_checker*.py")))
CORES = {
    "user_svc/breaker.py": ("unit/test_breaker.py", "property/test_breaker_machine.py"),
    "user_svc/users.py": ("unit/test_users.py", "property/test_users_property.py"),
    "email_svc/decision.py": ("unit/test_decision.py",),
    "email_svc/policies/backoff.py": ("unit/test_policies.py", "property/test_policies_property.py"),
    "email_svc/policies/downtime.py": ("unit/test_downtime.py",),
    "email_svc/policies/limit.py": ("unit/test_limit.py", "property/test_limit_property.py"),
    "tests/drill/checker.py": _CHECKER,
    "tests/drill/evidence.py": _CHECKER,
    "tests/drill/laws_books.py": _CHECKER,
    "tests/drill/laws_mails.py": _CHECKER,
    "tests/drill/laws_pace.py": _CHECKER,
    "tests/drill/laws_users.py": _CHECKER,
}
"""Each pure core, with the tests that must notice."""

LEAST = 90.0
"""Percent killed, of each file."""
KILLED = ("killed", "timeout")
"""A mutant that never ends would not pass CI either."""
MEMORY_BYTES = 2 << 30
"""A mutant that collects without end meets a MemoryError, before the machine does."""


def configuration(files: list[str]) -> str:
    """mutmut's setup.cfg: what to change, what to run."""
    lists = {
        "source_paths": files,
        "also_copy": ("contracts", "user_svc", "email_svc"),
        "pytest_add_cli_args": ("-p", "tests.mutation.profile", "-p", "no:cacheprovider"),
        "pytest_add_cli_args_test_selection": list(dict.fromkeys(f"tests/{test}" for f in files for test in CORES[f])),
    }
    lines = [f"{name} =\n" + "".join(f"    {value}\n" for value in values) for name, values in lists.items()]
    # The time that the tests take without a mutant, plus 2 s, times 5.
    return "[mutmut]\n" + "".join(lines) + "timeout_constant = 2\ntimeout_multiplier = 5\n"


def statuses(results: str) -> dict[str, str]:
    """Mutant -> status, from what `mutmut results --all true` prints."""
    return dict(line.strip().split(": ", 1) for line in results.splitlines() if "__mutmut_" in line)


def of_file(file: str, found: Mapping[str, str]) -> dict[str, str]:
    """The mutants of one file: `user_svc.breaker.x_first__mutmut_1`, `user_svc.breaker.xǁMemoryǁhear__mutmut_1`."""
    module = file.removesuffix(".py").replace("/", ".")
    return {name: status for name, status in found.items() if name.startswith((f"{module}.x_", f"{module}.xǁ"))}


def share(found: Mapping[str, str]) -> float:
    """Percent killed; 0 if there was nothing to kill."""
    return 100 * sum(status in KILLED for status in found.values()) / len(found) if found else 0.0


def below(files: list[str], found: Mapping[str, str]) -> list[str]:
    """The files of which too few are killed."""
    return [file for file in files if share(of_file(file, found)) < LEAST]


def table(files: list[str], found: Mapping[str, str]) -> str:
    """A line for each file."""
    lines = [f"{'':32} mutants  killed  timeout  survived  percent"]
    for file in files:
        mine = of_file(file, found)
        count = Counter(mine.values())
        survived = len(mine) - sum(count[status] for status in KILLED)
        figures = f"{len(mine):7} {count['killed']:7} {count['timeout']:8} {survived:9} {share(mine):8.1f}"
        lines.append(f"{file:32} {figures}" + (f"  below {LEAST:.0f}" if below([file], found) else ""))
    return "\n".join(lines)


def measured(files: list[str], place: Path) -> dict[str, str]:
    """Runs mutmut in `place` and prints each survivor.

    Raises:
        subprocess.CalledProcessError: mutmut failed, or the tests did without any mutant.
    """
    for name in ("contracts", "user_svc", "email_svc", "tests", "pyproject.toml"):
        (place / name).symlink_to(ROOT / name)
    (place / "setup.cfg").write_text(configuration(files))
    mutmut = Path(sys.executable).with_name("mutmut")

    def said(*args: str) -> str:
        return subprocess.run([mutmut, *args], cwd=place, check=True, stdout=subprocess.PIPE, text=True).stdout

    subprocess.run([mutmut, "run"], cwd=place, check=True, stdout=sys.stderr)
    found = statuses(said("results", "--all", "true"))
    for name, status in found.items():
        if status not in KILLED:
            print(said("show", name))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Change the pure cores in small ways, count what their tests notice.")
    parser.add_argument("files", nargs="*", metavar="FILE", help=f"of {', '.join(CORES)}; none: all")
    files: list[str] = parser.parse_args().files or list(CORES)
    if strangers := [file for file in files if file not in CORES]:
        parser.error(f"{', '.join(strangers)}: expected some of {', '.join(CORES)}")
    os.nice(15)
    with contextlib.suppress(ValueError, OSError):  # not everywhere
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    with tempfile.TemporaryDirectory() as place:
        try:
            found = measured(files, Path(place))
        except (OSError, subprocess.CalledProcessError) as exc:
            parser.exit(2, f"not measured: {exc}\n")
    print(table(files, found))
    sys.exit(bool(below(files, found)))


if __name__ == "__main__":
    main()
