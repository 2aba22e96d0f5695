"""Bundles that several test files read; a test that changes one takes its own copy."""

from __future__ import annotations

import copy
import functools
import gc
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before PyTorch: more threads only wait here

import pytest

from crelu_deploy import plan
from crelu_deploy.serving.environment import VARIABLE, default_folder

DIGITS = Path(__file__).resolve().parent.parent / "examples" / "digits_crelu.pt"


def pytest_collection_finish() -> None:
    """Leave what the imports made out of garbage collection, which tests and programs ask for."""
    _keep_translations()
    gc.collect()
    gc.freeze()


def _keep_translations() -> None:
    """Let PyTorch read its translations to ONNX once; each export reads them again otherwise."""
    if "torch" not in sys.modules:
        return
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        read = functools.cache(ONNXRegistry.from_torchlib)
    except (ImportError, AttributeError):  # another version of PyTorch: slower, that is all
        return

    def copied(*opset: int, **named: int) -> ONNXRegistry:
        registry = copy.copy(read(*opset, **named))
        registry.functions = {name: [*found] for name, found in registry.functions.items()}
        return registry

    ONNXRegistry.from_torchlib = staticmethod(copied)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the user's cache, where a calibrated rule may be, out of the tests; not its server."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, os.environ.get(VARIABLE) or str(default_folder()))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(plan, "RACE", 0.0)  # a test that is about a race says how long it is
        yield


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Begin on one thread: what an earlier test set would make small sums wait for each other."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)


@pytest.fixture
def seeded() -> None:
    """Begin with the same weights and inputs of PyTorch's."""
    pytest.importorskip("torch").manual_seed(0)


@pytest.fixture(scope="session", name="digits")
def digits_checkpoint() -> Path:
    """A trained network in a file that names its architecture: 6 sites, input 1x1x28x28."""
    return DIGITS


@pytest.fixture(scope="session")
def shared_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of ``digits`` with ``ort-cpu:auto`` built; to be read only."""
    torch = pytest.importorskip("torch")
    from crelu_deploy import export

    torch.set_num_threads(1)
    return export(DIGITS, tmp_path_factory.mktemp("shared") / "digits.crelu").path


@pytest.fixture
def bundle(shared_bundle: Path, tmp_path: Path) -> Path:
    """A copy of ``shared_bundle`` that the test may change."""
    return Path(shutil.copytree(shared_bundle, tmp_path / "digits.crelu"))
