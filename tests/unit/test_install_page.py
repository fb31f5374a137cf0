"""docs/install.md says what the code reads and makes."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from twinpod.api import names
from twinpod_operator import __main__ as operator
from twinpod_operator import settings

TOP = Path(__file__).resolve().parents[2]
PAGE = (TOP / "docs/install.md").read_text()
MINIMUM = {
    "TWINPOD_ETCD": "etcd:2379",
    **{f"TWINPOD_{process}_IMAGE": "image" for process in ("MASTER", "TRAINER", "INFERENCE")},
}


def read_by_the_operator() -> set[str]:
    sources = [Path(str(module.__file__)).read_text() for module in (settings, operator)]
    return {name for text in sources for name in re.findall(r'"(TWINPOD_[A-Z_]+)"', text)}


def told() -> dict[str, str]:
    """Variable -> default, from the page's table."""
    return dict(re.findall(r"^\| `(TWINPOD_[A-Z_]+)` \| (.*?) \|", PAGE, re.MULTILINE))


def test_the_table_has_every_setting_and_no_other() -> None:
    assert told().keys() == read_by_the_operator()


@pytest.mark.parametrize("name", sorted(told().keys() - MINIMUM.keys()))
def test_a_default_that_stands_in_the_table_is_the_one_that_is_taken(name: str) -> None:
    default = re.match(r"`([^`]+)`", told()[name])
    if default is not None:
        given, left_out = (settings.from_environment(MINIMUM | more) for more in ({name: default[1]}, {}))
        assert replace(given, identity="") == replace(left_out, identity="")


def test_what_holds_an_uninstallation_up_is_named() -> None:
    assert f"`{names.FINALIZER}`" in PAGE
    assert names.LABEL_JOB in PAGE


def test_manifests_that_the_page_names_are_there() -> None:
    assert all((TOP / path).exists() for path in set(re.findall(r"\b(?:manifests|docs)/[a-z-]+(?:\.md)?", PAGE)))


def test_the_readme_leads_to_it() -> None:
    assert "docs/install.md" in (TOP / "README.md").read_text()
