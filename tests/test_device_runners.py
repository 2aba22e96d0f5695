"""The runners of GPU targets, on a device that is the host's memory: ``host_device``."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from bundles import write_bundle
from graphs import values
from host_device import HostRuntime, OnGpu, engines, read

from crelu_deploy.bundle import Bundle
from crelu_deploy.errors import BuildError
from crelu_deploy.latency import Effort
from crelu_deploy.ondevice import DeviceArray
from crelu_deploy.pipeline import build, load
from crelu_deploy.profiles import Range
from crelu_deploy.runner import Runner, TensorSpec
from crelu_deploy.targets import BASELINE, Target
from crelu_deploy.timing import time_runners

pytest.importorskip("cuda.bindings", reason="pip install cuda-bindings")
from crelu_deploy.backends import cuda, cuda_runner
from crelu_deploy.backends.engine_runner import EngineRunner

SHAPE = (2, 3, 3)
RANGE = Range((1, *SHAPE), (1, *SHAPE), (4, *SHAPE))
KINDS = ("engine", "session", "graph")
FIXED = 2
"""The batch of the graph, whose shapes are fixed."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with a file that ONNX Runtime reads."""
    made = write_bundle(tmp_path_factory.mktemp("device") / "bundle")
    assert build(made, ["ort-cpu:primitive"])[0].error == ""
    return made


def opened(
    kind: str, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> tuple[Runner, HostRuntime]:
    """Return a runner of this kind, and its device."""
    # ONNX Runtime computes at once, not on the stream.
    device = HostRuntime(deferred=kind == "engine")
    monkeypatch.setattr(cuda, "runtime", device)
    monkeypatch.setattr(cuda_runner, "DEVICE", "cpu")
    path = bundle.artifact(Target("ort-cpu", "primitive"))
    if kind == "engine":
        return EngineRunner(engines(device), path, bundle, {"x": RANGE}), device
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    if kind == "session":
        session = ort.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
        return cuda_runner.CudaRunner(session, bundle, cuda.Stream()), device
    settings.add_free_dimension_override_by_name("N", FIXED)
    session = ort.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    return cuda_runner.GraphRunner(session, bundle, cuda.Stream()), device


@pytest.fixture(params=KINDS)
def pair(
    request: pytest.FixtureRequest, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> tuple[Runner, HostRuntime]:
    return opened(request.param, bundle, monkeypatch)


def wanted(bundle: Bundle, x: np.ndarray) -> np.ndarray:
    with load(bundle, BASELINE, threads=1) as runner:
        return runner(x)["y"]


def batches(runner: Runner) -> tuple[int, ...]:
    return (FIXED,) if "Graph" in type(runner).__name__ else (2, 3, 3, 1, 2)


def test_arrays_of_the_host_give_arrays_of_the_host(pair, bundle):
    runner, _ = pair
    kept = []
    for i, batch in enumerate(batches(runner) * 2):
        x = values(f"x{i}", (batch, *SHAPE))
        kept.append((runner(x)["y"], wanted(bundle, x)))
    for y, expected in kept:  # no call wrote into what an earlier one returned
        np.testing.assert_array_equal(y, expected)


def test_arrays_on_the_device_are_neither_copied_nor_written_again(pair, bundle):
    runner, device = pair
    kept = []
    for i, batch in enumerate(batches(runner) * 2):
        x = values(f"x{i}", (batch, *SHAPE))
        y = runner(OnGpu(x))["y"]
        assert isinstance(y, DeviceArray)
        kept.append((y, wanted(bundle, x)))
    for y, expected in kept:
        np.testing.assert_array_equal(read(y), expected)
    assert set(device.copies) <= {"in"}
    assert bool(device.copies) == ("Graph" in type(runner).__name__)


def test_both_kinds_of_arrays_in_turn(pair, bundle):
    runner, _ = pair
    for i in range(4):
        x = values(f"x{i}", (FIXED, *SHAPE))
        y = read(runner({"x": OnGpu(x)})["y"]) if i % 2 else runner({"x": x})["y"]
        np.testing.assert_array_equal(y, wanted(bundle, x))


def test_a_prepared_call_copies_nothing_and_tells_the_devices_time(pair):
    runner, device = pair
    call = runner.prepare(values("x", (FIXED, *SHAPE)))
    device.copies.clear()
    told = [call() for _ in range(3)]
    assert device.copies == []
    assert device.queue == []
    assert all(isinstance(ms, float) and ms > 0 for ms in told)


def test_a_prepared_call_keeps_its_inputs(bundle, monkeypatch):
    runner, _ = opened("engine", bundle, monkeypatch)
    x = values("x", (3, *SHAPE))
    call = runner.prepare(x)
    runner(values("other", (1, *SHAPE)))
    call()
    addresses = runner._context.addresses  # type: ignore[attr-defined]
    y = DeviceArray((3, 8, 3, 3), np.dtype(np.float32), addresses["y"], None)
    np.testing.assert_array_equal(read(y), wanted(bundle, x))


def test_memory_is_given_back(bundle, monkeypatch):
    runner, device = opened("engine", bundle, monkeypatch)
    runner(values("x", (2, *SHAPE)))
    assert len(device.memory) == 2
    runner(values("x", (3, *SHAPE)))
    result = runner(OnGpu(values("x", (1, *SHAPE))))
    call = runner.prepare(values("x", (1, *SHAPE)))
    call()
    assert len(device.memory) == 2 + 1 + 2
    del result, call
    runner.close()
    gc.collect()
    assert device.memory == {}


X = values("x", (2, *SHAPE))
REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "type": (X.astype(np.float64), TypeError, "expected float32, got float64"),
    "shape": (X[:, :1].copy(), ValueError, r"expected shape \(N, 2, 3, 3\), got \(2, 1, 3, 3\)"),
    "strides": (X.transpose(0, 1, 3, 2), ValueError, "is not contiguous; pass x.contiguous"),
}


@pytest.mark.parametrize(("array", "error", "said"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_of_a_device(pair, array, error, said):
    runner, device = pair
    with pytest.raises(error, match=f"input 'x'.*{said}"):
        runner(OnGpu(array))
    assert device.queue == []


@pytest.mark.parametrize(
    ("gpu", "said"),
    [(1, "input 'x' is on GPU 1, the target runs on GPU 0"), (-1, "not in the memory of a GPU")],
)
def test_memory_elsewhere_is_refused(pair, gpu, said):
    runner, device = pair
    device.gpus[X.ctypes.data] = gpu
    with pytest.raises(ValueError, match=said):
        runner(OnGpu(X))


def test_a_masked_array_is_refused(pair):
    with pytest.raises(ValueError, match="a masked array is not taken"):
        pair[0](OnGpu(X, mask=OnGpu(X)))


def test_the_writers_stream_is_waited_for(pair):
    runner, device = pair
    runner(OnGpu(X, stream=77))
    assert device.waited[0] == 77
    device.waited.clear()
    runner(OnGpu(X))
    assert 77 not in device.waited


class DlpackOnly:
    """An array on a GPU that only offers DLPack."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0


def test_dlpack_alone_says_how_to_go_on(pair):
    with pytest.raises(TypeError, match=r"a DlpackOnly on a GPU without .* torch\.from_dlpack"):
        pair[0](DlpackOnly())


class Sum(Runner):
    """Adds two inputs where they are."""

    inputs = (TensorSpec("a", "float32", (2,)), TensorSpec("b", "float32", (2,)))
    outputs = ("y",)

    def _run(self, feeds):
        return [feeds["a"] + feeds["b"]]

    def _run_on_device(self, feeds):
        return [feeds["b"]]


def test_inputs_are_all_in_one_place():
    a, b = np.ones(2, np.float32), np.zeros(2, np.float32)
    assert Sum()(a, b)["y"].tolist() == [1, 1]
    assert read(Sum()(OnGpu(a), OnGpu(b))["y"]).tolist() == [0, 0]
    with pytest.raises(TypeError, match="inputs b are on the host, the others on the GPU"):
        Sum()(OnGpu(a), b)  # type: ignore[call-overload]


def test_a_target_on_the_cpu_refuses_a_device(bundle):
    with (
        load(bundle, BASELINE) as runner,
        pytest.raises(TypeError, match=r"inputs on a GPU \(x\), but this target runs on the CPU"),
    ):
        runner(OnGpu(X))


def test_an_extent_outside_the_engines_range(bundle, monkeypatch):
    runner, _ = opened("engine", bundle, monkeypatch)
    x = values("x", (5, *SHAPE))
    for call in (runner, runner.prepare, lambda x: runner(OnGpu(x))):
        with pytest.raises(ValueError, match=r"shape \(5, 2, 3, 3\) is outside 1x2x3x3/"):
            call(x)


def test_an_engine_that_fails_says_so(bundle, monkeypatch):
    runner, _ = opened("engine", bundle, monkeypatch)
    runner._context.fails = True  # type: ignore[attr-defined]
    with pytest.raises(BuildError, match="the engine failed to run"):
        runner(X)


def test_an_engine_that_cannot_be_read(bundle, monkeypatch, tmp_path: Path):
    device = HostRuntime()
    monkeypatch.setattr(cuda, "runtime", device)
    (tmp_path / "e").write_bytes(b"")
    with pytest.raises(BuildError, match="cannot be read on this machine"):
        EngineRunner(engines(device), tmp_path / "e", bundle, {"x": RANGE})


def test_a_session_that_fails_says_so(bundle, monkeypatch):
    runner, _ = opened("session", bundle, monkeypatch)
    graph, _ = opened("graph", bundle, monkeypatch)
    runner._session = graph._session  # type: ignore[attr-defined]
    with pytest.raises(BuildError, match=r"ONNX Runtime failed on it: "):
        runner(values("x", (3, *SHAPE)))


def test_after_close_nothing_runs(pair):
    runner, _ = pair
    runner.close()
    runner.close()
    for call in (runner, runner.prepare):
        with pytest.raises(ValueError, match="the runner is closed"):
            call(X)


@pytest.mark.parametrize("end_to_end", [False, True])
def test_rows_carry_the_devices_time(bundle, monkeypatch, end_to_end):
    runner, device = opened("engine", bundle, monkeypatch)
    gpu = Target("trt-fp32", "mirror")
    effort = Effort(runs=5, warmup=1, seconds=5)
    with load(bundle, BASELINE, threads=1) as base:
        rows, refused = time_runners(
            {BASELINE: base, gpu: runner}, {"x": X}, 2, effort, end_to_end=end_to_end
        )
    assert refused == {}
    times = {row.target: row.latency for row in rows}
    assert times[BASELINE].gpu is None
    assert (times[gpu].gpu is None) == end_to_end
    assert device.copies.count("from") == (7 if end_to_end else 0)
    if not end_to_end:
        assert 0 < times[gpu].gpu < times[gpu].p90
