"""What an import costs and leaves out: an application needs neither PyTorch nor the exporter."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bundles import write_bundle
from tables import thorough

from crelu_deploy import build

HEAVY = ("torch", "onnxruntime", "tensorrt", "onnxscript", "rich", "click")
REPORT = f"\nimport json, sys; print(json.dumps([m for m in {HEAVY} if m in sys.modules]))\n"
PUBLIC = ("Bundle", "Options", "Runner", "Target", "bench", "build", "load", "verify")


def fresh(script: str, *arguments: str) -> str:
    """Run a script in a fresh interpreter and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded(script: str, *arguments: str) -> set[str]:
    """Return which of the heavy packages a fresh interpreter has after the script."""
    return set(json.loads(fresh(script + REPORT, *arguments).splitlines()[-1]))


# what an application or a user imports that brings no heavy package
LIGHT = (
    "import crelu_deploy",
    f"from crelu_deploy import {', '.join(PUBLIC)}",
    "from crelu_deploy import optimize",
    "import crelu_deploy.op",
    "import crelu_deploy.pipeline",
    "import crelu_deploy.cli",
)
# what else one imports -> the heavy packages that may come with it
COSTS = {
    "import crelu_deploy.cli.commands": {"rich", "click"},
    "import crelu_deploy.render.stages": {"rich"},
    "import crelu_deploy.backends.onnxruntime": {"onnxruntime"},
    "import torch.nn.modules, crelu_deploy.nn": {"torch"},
}


@pytest.mark.parametrize(("statement", "allowed"), COSTS.items(), ids=COSTS)
def test_what_an_import_loads(statement, allowed):
    if "torch" in allowed:
        pytest.importorskip("torch")
    assert loaded(statement) == allowed


def test_what_is_imported_first_is_light():
    """Each after those before it, in one process."""
    found = [json.loads(line) for line in fresh(REPORT.join(["", *LIGHT]) + REPORT).splitlines()]
    assert found == [[]] * (len(LIGHT) + 1)


@thorough
@pytest.mark.parametrize("statement", LIGHT)
def test_what_is_imported_alone_is_light(statement):
    assert loaded(statement) == set()


def test_the_check_notices_a_heavy_package():
    assert loaded("import rich") == {"rich"}


def test_the_package_is_imported_in_no_time():
    """Beyond what it depends on, best of three."""
    script = (
        "import time, numpy, onnx, onnx_ir\nstart = time.perf_counter()\nimport crelu_deploy\n"
        "print(time.perf_counter() - start)"
    )
    assert min(float(fresh(script)) for _ in range(3)) < 0.3


def test_every_public_name_is_there():
    pytest.importorskip("torch")
    script = "import crelu_deploy as c; print(all(callable(getattr(c, n)) for n in c.__all__))"
    assert fresh(script) == "True\n"


def test_an_unknown_name_is_an_attribute_error():
    script = "import crelu_deploy\ntry: crelu_deploy.sell\nexcept AttributeError as e: print(e)"
    assert fresh(script) == "module 'crelu_deploy' has no attribute 'sell'\n"


APPLICATION = """
import sys
import numpy as np
from crelu_deploy import load

samples = np.load(sys.argv[1] + "/samples.npz")
with load(sys.argv[1], sys.argv[2], threads=1) as runner:
    y = runner(samples["0/input/x"])["y"]
print(np.abs(y - samples["0/output/y"]).max())
"""


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with two targets built."""
    path = write_bundle(tmp_path_factory.mktemp("imports") / "bundle").path
    builds = build(path, ["ort-cpu", "ort-cpu:function"])
    assert not [result.error for result in builds if result.error]
    return path


@pytest.mark.parametrize("target", ["ort-cpu", "ort-cpu:function"])
def test_an_application_loads_the_runtime_alone(ready, target):
    printed = fresh(APPLICATION + REPORT, str(ready), target)
    difference, report = printed.splitlines()
    assert set(json.loads(report)) == {"onnxruntime"}
    assert float(difference) < 1e-6


def test_verifying_and_timing_load_the_runtime_alone(ready):
    script = (
        "import sys\nfrom crelu_deploy import bench, verify\n"
        "from crelu_deploy.latency import Effort\n"
        "assert all(result.passed for result in verify(sys.argv[1]))\n"
        "assert bench(sys.argv[1], effort=Effort(5, 1, 5.0)).rows"
    )
    assert loaded(script, str(ready)) == {"onnxruntime"}


def test_optimizing_loads_the_runtime_alone(ready, tmp_path):
    script = (
        "import sys\nfrom crelu_deploy import optimize\n"
        "done = optimize(sys.argv[1], sys.argv[2], lowering='fold')\n"
        "assert done.compared.searched and done.compared.coverage"
    )
    assert loaded(script, str(ready / "model.onnx"), str(tmp_path / "out.onnx")) == {"onnxruntime"}


def test_running_gives_what_this_process_gets(ready):
    from crelu_deploy import load

    x = np.ones((3, 2, 3, 3), np.float32)
    with load(ready, threads=1) as runner:
        y = runner({"x": x})["y"]
    assert y.shape == (3, 8, 3, 3)
    assert (y >= 0).all()
