"""Every dependency has a lowest version, and `.ci/floors.txt` holds exactly those: what `.ci/floors` tests."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
FLOOR = re.compile(r"([A-Za-z0-9-]+)>=([0-9][0-9.a-z]*)")


def requirements() -> dict[str, list[str]]:
    """Section -> requirements, without those on ourselves."""
    sections = {"dependencies": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
    return {section: [line for line in lines if not line.startswith("mla-cli[")] for section, lines in sections.items()}


@pytest.mark.parametrize("section", requirements())
def test_every_dependency_has_a_floor_and_nothing_else(section: str) -> None:
    """A cap would keep a user from another package's newest version."""
    for requirement in requirements()[section]:
        assert FLOOR.fullmatch(requirement), requirement


def test_the_constraints_are_the_floors() -> None:
    wanted: dict[str, str] = {}
    for lines in requirements().values():
        for name, floor in (FLOOR.fullmatch(line).groups() for line in lines):  # type: ignore[union-attr]
            assert wanted.setdefault(name, floor) == floor, f"two floors of {name}"
    lines = (ROOT / ".ci" / "floors.txt").read_text("utf-8").splitlines()
    found = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert found == wanted


def test_what_the_wheel_says_about_itself() -> None:
    assert PROJECT["requires-python"] == ">=3.11"
    assert "Programming Language :: Python :: 3.11" in PROJECT["classifiers"]
    assert PROJECT["scripts"] == {"mla": "mla_cli.cli:main"}
    for pattern in PROJECT["license-files"]:
        assert list(ROOT.glob(pattern)), pattern
    assert not [c for c in PROJECT["classifiers"] if c.startswith("License ::")], "the SPDX expression says it"
