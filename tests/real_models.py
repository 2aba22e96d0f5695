"""Where the trained networks of other people are, which are never part of this repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDER = Path(os.environ.get("CRELU_MODELS", ROOT.parent / "shared" / "models"))


def real_model(relative_path: str) -> Path:
    """Return the path of one file, or skip the calling test where it is absent."""
    path = FOLDER / relative_path
    if not path.exists():
        pytest.skip(f"real model {relative_path} is not here: set CRELU_MODELS to their folder")
    return path
