"""The README says what is so: its settings, recipes and metrics exist, with the defaults it gives."""

import ast
import json
import re
from typing import Any

import msgspec
import prometheus_client
import pytest

import email_svc.metrics  # noqa: F401 - registers its metrics
import user_svc.metrics  # noqa: F401
from contracts.runtime.process import CommonSettings
from contracts.runtime.settings import duration_s, variable_of
from email_svc.settings import Settings as EmailSettings
from tests.support.processes import ROOT
from tests.support.recipes import just, said
from user_svc.settings import Settings as UserSettings

README = (ROOT / "README.md").read_text()
DRY = {
    "check-all": "lint and all tests: it would run this one",
    "test-seq": "all tests",
    "test-cover": "all tests",
    "typecheck": "`just lint` is it and more; CI runs that",
    "lint-seq": "the same checks as `just lint`",
}
"""Recipes that no test can run, and why."""
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


def dump() -> dict[str, Any]:
    """The justfile's recipes as just reads them."""
    found: dict[str, Any] = json.loads(said(just("--dump", "--dump-format", "json")))["recipes"]
    return found


def recipes() -> dict[str, Any]:
    """Those that a user sees."""
    return {name: recipe for name, recipe in dump().items() if not name.startswith("_")}


def run_by_tests() -> tuple[set[str], set[str]]:
    """The recipes that tests run, and those that they only have shown, by the calls of `just` in them."""
    found: tuple[set[str], set[str]] = (set(), set())
    for path in (ROOT / "tests").rglob("test_*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "just":
                words = [word.value for word in call.args if isinstance(word, ast.Constant)]
                name = next((word for word in words if not re.search("^-|=", word)), None)
                assert name or "--dump" in words, f"{path.name}:{call.lineno} does not write the recipe's name out"
                found["--dry-run" in words].add(name or "")
    return found


def test_every_recipe_named_exists() -> None:
    """`just X` in the README is a recipe of the justfile, and every recipe has help."""
    code = re.findall(r"```.*?```|`[^`]+`", README, re.DOTALL)
    named = {name for part in code for name in re.findall(r"\bjust ([a-z][a-z-]*)", part)}
    assert {"up", "quick-start", "secrets", "check-all"} <= named
    assert named <= set(recipes())
    assert [name for name, recipe in recipes().items() if not recipe["doc"]] == []


def test_every_recipe_is_run() -> None:
    """By a test or as a step of CI; the few that are neither are shown by `just --dry-run`, and have a reason."""
    run, shown = run_by_tests()
    run |= set(re.findall(r"^uv run just ([a-z-]+)", (ROOT / ".ci" / "run").read_text(), re.MULTILINE))
    assert set(recipes()) - run == set(DRY)
    assert set(DRY) <= shown


def test_what_goes_one_after_another_leaves_nothing_out() -> None:
    """`just test-seq` has every folder with tests, `just lint-seq` each part of `just lint`."""
    suites = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("test_*.py")}
    assert {dependency["arguments"][0] for dependency in dump()["test-seq"]["dependencies"]} == suites
    parts = ({each["recipe"] for each in dump()[name]["dependencies"]} for name in ("lint-seq", "_lint"))
    assert next(parts) == next(parts)


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
