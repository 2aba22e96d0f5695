"""The table of planted bugs: each is planted in one place, and has tests that should notice it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from mutants import MUTANTS, Mutant  # noqa: E402


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name[:60])
def test_a_bug_has_one_place_and_tests(mutant: Mutant) -> None:
    text = (ROOT / "crelu_deploy" / mutant.file).read_text(encoding="utf-8")
    assert text.count(mutant.old) == 1
    assert mutant.new != mutant.old
    for name in mutant.tests.split():
        assert (ROOT / "tests" / f"test_{name}.py").is_file()
