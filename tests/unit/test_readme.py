"""The README says what is so: its settings, recipes and metrics exist, with the defaults it gives."""

import json
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import prometheus_client
import pytest

import email_svc.metrics  # noqa: F401 - registers its metrics
import user_svc.metrics  # noqa: F401
from contracts.runtime.process import CommonSettings
from contracts.runtime.settings import duration_s, variable_of
from email_svc.settings import Settings as EmailSettings
from tests.support.processes import ROOT
from user_svc.settings import Settings as UserSettings

README = (ROOT / "README.md").read_text()
COMMON = {variable_of(field.name) for field in msgspec.structs.fields(CommonSettings)}


def documented(service: str) -> dict[str, str]:
    """Variable and default in one of the README's settings tables."""
    part = README.partition("<!-- settings:")[2].partition("<!-- settings end -->")[0]
    table = part.partition(f"| {service} | default")[2].partition("\n\n")[0]
    rows = {}
    for line in table.splitlines():
        if cells := re.findall(r"^\| (`[A-Z].*?) \| (.*?) \|", line):
            for variable in re.findall(r"`([A-Z_]+)`", cells[0][0]):
                rows[variable] = cells[0][1]
    return rows


@pytest.mark.parametrize(("service", "kind"), [("user_svc", UserSettings), ("email_svc", EmailSettings)])
def test_settings_tables_are_complete_and_right(service: str, kind: type[CommonSettings]) -> None:
    """Every variable is in the table and nothing else is; defaults are the code's."""
    table = documented(service)
    fields = {variable_of(f.name): f for f in msgspec.structs.fields(kind) if variable_of(f.name) not in COMMON}
    assert set(table) == set(fields)
    for variable, field in fields.items():
        said, default = table[variable].replace("\\", ""), field.default
        if field.name.endswith("_s") and isinstance(default, float):
            assert duration_s(said) == default, variable
        elif field.name.endswith("_s"):
            assert tuple(duration_s(part) for part in said.split(",")) == default, variable
        elif default is not None and variable != "USER_ID_KEY":
            assert said == str(default).lower() or said == str(default) or float(said) == default, variable


def test_common_settings_table_is_complete() -> None:
    """The variables of both services."""
    assert set(documented("both")) == COMMON


def test_every_recipe_named_exists() -> None:
    """`just X` in the README is a recipe of the justfile, and every recipe has help."""
    just = Path(sys.executable).parent / "just"
    dump = subprocess.run(
        [just, "--dump", "--dump-format", "json"], cwd=ROOT, capture_output=True, check=True, text=True
    )
    recipes = json.loads(dump.stdout)["recipes"]
    named = set(re.findall(r"(?:^|`|run )just ([a-z][a-z-]*)", README, re.MULTILINE))
    assert named
    assert named <= set(recipes)
    assert [name for name, r in recipes.items() if not r["doc"] and not name.startswith("_")] == []


def test_every_recipe_named_is_run() -> None:
    """Some test calls it by its name; those of the checks themselves are called by CI."""
    tests = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__)]
    called = "\n".join(text for text in tests if "just" in text)
    named = set(re.findall(r"(?:^|`|run )just ([a-z][a-z-]*)", README, re.MULTILINE))
    checks = (ROOT / ".ci" / "run").read_text()
    assert [n for n in sorted(named) if f'"{n}"' not in called and f"just {n}" not in checks] == []


def test_every_metric_named_exists() -> None:
    """The metrics that the README promises are registered."""
    names = {sample.name for metric in prometheus_client.REGISTRY.collect() for sample in (*metric.samples, metric)}
    named = set(re.findall(r"`((?:user|email)_service_[a-z_]+)`", README)) - {"user_service_", "email_service_"}
    assert named
    assert {n.removesuffix("_total") for n in named} <= {n.removesuffix("_total") for n in names}


def test_files_named_exist() -> None:
    """Paths in backticks are there."""
    for path in re.findall(r"`((?:email_svc|user_svc|contracts|deploy|tests)/[\w./]+)`", README):
        assert (ROOT / path).exists() or path == "deploy/.env", path  # which `just secrets` makes


def test_ports_are_those_of_compose() -> None:
    """Each port that compose.yaml publishes is in the table with the variable that moves it, and no other is."""
    rows = re.findall(r"^\| (\d+) \| .*? \| `([A-Z_]+)` \|$", README, re.MULTILINE)
    published = re.findall(r'"127\.0\.0\.1:\$\{([A-Z_]+):-(\d+)\}:\d+"', (ROOT / "compose.yaml").read_text())
    assert len(published) >= 11
    assert sorted(rows) == sorted((number, variable) for variable, number in published)
