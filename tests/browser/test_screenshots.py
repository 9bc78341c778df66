"""The pictures of the console can be taken anew, and those in the tree are of all its views."""

import struct
from pathlib import Path

import pytest

from tests.browser.conftest import CHROMIUM
from tests.browser.screenshots import FOLDER, SCHEMES, VIEWS
from tests.support.processes import ROOT
from tests.support.recipes import just, said

_ALL = {f"{view}-{scheme}.png" for view in VIEWS for scheme in SCHEMES}


def _width(picture: Path) -> int:
    """In pixels, by a PNG's first chunk."""
    return int(struct.unpack(">I", picture.read_bytes()[16:20])[0])


def test_all_views_are_taken(tmp_path: Path) -> None:
    """`just screenshots`: each view, light and dark, after a short bad day."""
    if CHROMIUM is None:
        pytest.skip("needs chromium, chromium-browser or google-chrome on the path: apt-get install chromium")
    assert "12 pictures" in said(just("screenshots", str(tmp_path), "--minutes", "0.2"))
    assert {path.name for path in tmp_path.iterdir()} == _ALL
    assert {_width(path) for path in tmp_path.iterdir()} == {1280}


def test_those_in_the_tree_are_all_views() -> None:
    """Each view, light and dark, and the README shows one of them in both."""
    assert {path.name for path in FOLDER.iterdir()} == _ALL
    readme = (ROOT / "README.md").read_text()
    assert all(f"deploy/screenshots/overview-{scheme}.png" in readme for scheme in SCHEMES)
