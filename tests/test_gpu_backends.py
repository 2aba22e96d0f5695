"""What can be said of the GPU backends without a GPU: files, rules, plugins' nodes and refusals."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from bundles import write_bundle
from graphs import AFFINE_SITE, CONV, Case, image, model, values

from crelu_deploy import native, op
from crelu_deploy.cli import run
from crelu_deploy.errors import BackendUnavailable, BuildError
from crelu_deploy.lowerings import LOWERINGS, lower
from crelu_deploy.lowerings.plugin import has_plugins, is_plugin
from crelu_deploy.pipeline import build, load, verify
from crelu_deploy.plan import Plan
from crelu_deploy.profiles import Range, parse_range, ranges
from crelu_deploy.rules import choice
from crelu_deploy.runner import Runner, TensorSpec
from crelu_deploy.targets import FUNCTION, GPU, Target

TWO = "[conv] a = Conv(x, w, b) [one] k = crelu_deploy.CReLU<axis=1>(a) z = Neg(k)"
LEAKY = "[site] y = crelu_deploy.CLeakyRelu<axis={axis}, alpha=0.1>(z)"

# --- the lowering plugin ------------------------------------------------------------------------


def test_a_plugin_node_names_the_plugin_and_has_no_function() -> None:
    lowered = lower(model(image(CONV)), "plugin")
    (node,) = [node for node in lowered.model.graph if node.domain == op.DOMAIN]
    assert (node.op_type, {name: a.value for name, a in node.attributes.items()}) == (
        "CReLU",
        {"axis": 1, "plugin_namespace": "crelu_deploy", "plugin_version": "1"},
    )
    assert lowered.model.functions == {}
    assert lowered.applied == {"site": "plugin"}
    assert has_plugins(lowered.model)
    assert not has_plugins(model(image(CONV)))


OTHERS = {
    "another activation": (LEAKY, {}, "the plugin computes CReLU, not CLeakyRelu"),
    "scale and shift": (
        AFFINE_SITE,
        {"s": (12, 1, 1), "t": (12, 1, 1)},
        "the plugin computes CReLU, not AffineCReLU",
    ),
}


@pytest.mark.parametrize(("site", "constants", "reason"), OTHERS.values(), ids=OTHERS)
def test_what_the_plugin_does_not_compute(site, constants, reason):
    lowered = lower(model(image(CONV, **constants), site), "plugin")
    assert lowered.applied == {"site": "primitive"}
    assert lowered.reasons == {"site": reason}
    assert not has_plugins(lowered.model)


@pytest.mark.parametrize("other", LOWERINGS)
def test_no_function_is_left_beside_a_plugin(other):
    lowered = lower(model(image(TWO)), {"one": "plugin", "site": other})
    refused = ("function", "fold", "complement", "split", "pooled")
    expected = "primitive" if other in refused else other
    assert lowered.applied == {"one": "plugin", "site": expected}
    assert lowered.model.functions == {}
    assert sum(map(is_plugin, lowered.model.graph)) == 1
    if other == "function":
        assert "must find no function" in lowered.reasons["site"]


def session(model_: ir.Model, *libraries: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    for library in libraries:
        options.register_custom_ops_library(str(library))
    data = ir.to_proto(model_).SerializeToString()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def test_without_the_library_nothing_runs_in_its_place():
    with pytest.raises(Exception, match="CReLU"):
        session(lower(model(image(CONV)), "plugin").model)


def test_the_custom_op_runs_the_plugins_node():
    try:
        library = native.library("onnxruntime")
    except BackendUnavailable as error:
        pytest.skip(str(error))
    source, x = model(image(CONV)), values("x", (2, 4, 7, 9))
    (got,) = session(lower(source, "plugin").model, library).run(None, {"x": x})
    (want,) = session(lower(source, "primitive").model).run(None, {"x": x})
    np.testing.assert_array_equal(got, want)


# --- targets and rules ----------------------------------------------------------------------------

REFUSED = {
    "ort-cpu:plugin": "ort-cpu reads no plugins; choose another lowering",
    "trt-rtx:plugin": "trt-rtx reads no plugins; choose another lowering",
    "ort-cuda:plugin-aot": "ort-cuda builds nothing that carries a plugin; choose another lowering",
    "ort-cpu:plugin-aot": "ort-cpu builds nothing that carries a plugin; choose another lowering",
    "trt-fp16:function": "trt-fp16 reads no functions; choose another lowering",
    "trt-int8:function": "trt-int8 reads no functions; choose another lowering",
    "ort-cuda-fp16:function": "ort-cuda-fp16 reads no functions; choose another lowering",
    "trt-fp8": "unknown target 'trt-fp8'; did you mean 'trt-fp",
}


@pytest.mark.parametrize(("text", "message"), REFUSED.items(), ids=REFUSED)
def test_targets_that_there_are_not(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Target.parse(text)


@pytest.mark.parametrize("backend", GPU, ids=[backend.name for backend in GPU])
def test_what_a_backend_on_a_gpu_reads(backend):
    read = {name for name in backend.lowerings if Target.parse(f"{backend.name}:{name}")}
    assert ("plugin" in read) == backend.plugins == ("rtx" not in backend.name)
    assert ("plugin-aot" in read) == backend.carries == (backend.module == "tensorrt")
    assert (FUNCTION in read) == (backend.precision == "float32")
    assert backend.typed
    assert backend.symmetric == (backend.precision == "int8")


def test_a_plan_may_name_the_plugin():
    plan = {"backend": "trt-fp16", "how": "rule", "key": {}, "ratios": {}}
    assert Plan.parse({**plan, "choice": {"a": "plugin"}}).choice == {"a": "plugin"}
    with pytest.raises(ValueError, match="unknown lowering 'plug'"):
        Plan.parse({**plan, "choice": {"a": "plug"}})


def chain(channels: int, kernel: int, *, fixed: bool) -> ir.Model:
    """Return one convolution from ``channels`` maps, and its site; batch 1 where fixed."""
    weights = {"w": (6, channels, kernel, kernel), "b": (6,)}
    return model(Case(CONV, (1, channels, 9, 9), weights, fixed=fixed))


SHORT, LONG = (28, 3), (29, 3)
"""28 * 3 * 3 = 252 terms, 29 * 3 * 3 = 261."""


@pytest.mark.parametrize("backend", ["trt-fp16", "trt-rtx", "ort-cuda"])
@pytest.mark.parametrize(
    ("size", "fixed", "expected"),
    [(SHORT, False, "fold"), (LONG, False, "mirror"), (LONG, True, "fold")],
    ids=["short sums", "long sums", "long sums, batch 1"],
)
def test_the_rule_for_a_gpu(backend, size, fixed, expected):
    assert choice(chain(*size, fixed=fixed), backend) == {"site": expected}


# --- shapes of an engine --------------------------------------------------------------------------

SPEC = TensorSpec("x", "float32", ("N", 3, "H", 8))


@pytest.mark.parametrize(
    ("specs", "texts", "expected"),
    [
        ([SPEC], [], "1x3x8x8/2x3x8x8/64x3x8x8"),
        ([TensorSpec("x", "float32", (2, 3, 8, 8))], [], "2x3x8x8/2x3x8x8/2x3x8x8"),
        ([SPEC], ["1x3x8x8/2x3x16x8/4x3x32x8"], "1x3x8x8/2x3x16x8/4x3x32x8"),
        ([SPEC], ["x:1x3x8x8/2x3x16x8/4x3x32x8"], "1x3x8x8/2x3x16x8/4x3x32x8"),
    ],
    ids=["assumed", "fixed", "said", "said by name"],
)
def test_shapes_of_an_engine(specs, texts, expected):
    assert str(ranges(specs, {"x": (2, 3, 8, 8)}, texts)["x"]) == expected


WRONG = {
    "1x3x8x8": "expected MIN/LIKELY/MAX",
    "1/2": "expected MIN/LIKELY/MAX",
    "1x3/2x3/4": "expected MIN/LIKELY/MAX",
    "axb/axb/axb": "expected MIN/LIKELY/MAX",
    "2/1/3": "must be positive and ascend",
    "1/3/2": "must be positive and ascend",
    "0/1/2": "must be positive and ascend",
}


@pytest.mark.parametrize(("text", "message"), WRONG.items(), ids=WRONG)
def test_shapes_that_are_none(text, message):
    with pytest.raises(ValueError, match=message):
        parse_range(text)


UNFIT = {
    "y:1x3x8x8/1x3x8x8/1x3x8x8": "shapes of 'y': the inputs are x",
    "1x4x8x8/1x4x8x8/1x4x8x8": "shapes 1x4x8x8/1x4x8x8/1x4x8x8 do not fit the input x float32",
    "1x3x8/1x3x8/1x3x8": "do not fit the input x float32[N, 3, H, 8]",
}


@pytest.mark.parametrize(("text", "message"), UNFIT.items(), ids=UNFIT)
def test_shapes_that_do_not_fit(text, message):
    with pytest.raises(BuildError, match=re.escape(message)):
        ranges([SPEC], {"x": (2, 3, 8, 8)}, [text])


def test_a_name_is_needed_where_there_are_two_inputs():
    with pytest.raises(BuildError, match="shapes without a name, but the inputs are x, y"):
        ranges([SPEC, TensorSpec("y", "float32", (1,))], {}, ["1/1/1"])


@pytest.mark.parametrize(
    ("shape", "holds"), [((1, 3), True), ((4, 3), True), ((5, 3), False), ((0, 3), False)]
)
def test_a_range_holds(shape, holds):
    assert Range((1, 3), (2, 3), (4, 3)).holds(shape) is holds


# --- without the runtime or the GPU ---------------------------------------------------------------

PROVIDER = "CUDAExecutionProvider"
HAS_TENSORRT = find_spec("tensorrt") is not None
HAS_CUDA = PROVIDER in ort.get_available_providers()
TENSORRT = [backend.name for backend in GPU if backend.module == "tensorrt"]
ORT = [backend.name for backend in GPU if backend.module == "onnxruntime_cuda"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle without targets."""
    return write_bundle(tmp_path_factory.mktemp("gpu") / "bundle").path


def failed(folder: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a verb that fails; return the last line on stderr."""
    assert run([arguments[0], str(folder), *arguments[1:], "-q"]) == 1
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err + captured.out
    return captured.err.splitlines()[-1]


@pytest.mark.skipif(HAS_TENSORRT, reason="TensorRT is installed here")
@pytest.mark.parametrize("name", TENSORRT)
@pytest.mark.parametrize("verb", ["build", "verify", "bench"])
def test_tensorrt_is_named_with_the_command_that_brings_it(name, verb, folder, capsys):
    line = failed(folder, capsys, verb, "-t", name)
    assert f"not here ({name}:auto): {name} needs the package tensorrt, which is not" in line
    assert line.endswith("run: pip install 'crelu-deploy[tensorrt]'")


@pytest.mark.skipif(HAS_CUDA, reason="this ONNX Runtime has the CUDA provider")
@pytest.mark.parametrize("name", ORT)
@pytest.mark.parametrize("verb", ["build", "verify", "bench"])
def test_the_cuda_provider_is_named_with_the_command_that_brings_it(name, verb, folder, capsys):
    line = failed(folder, capsys, verb, "-t", name)
    assert f"({name}:auto): onnxruntime {ort.__version__} has no {PROVIDER}" in line
    assert line.endswith("pip install 'crelu-deploy[ort-cuda]'")
    assert f"{name}:auto" not in json.loads((folder / "manifest.json").read_text())["targets"]


def test_a_session_that_fell_back_to_the_cpu_is_refused():
    from crelu_deploy.backends.onnxruntime_cuda import require_used

    with pytest.raises(BackendUnavailable, match=f"could not load {PROVIDER} and took CPUExec"):
        require_used(session(model(image(CONV))))


def test_without_a_driver_there_is_no_device():
    pytest.importorskip("cuda.bindings", reason="pip install cuda-bindings")
    from crelu_deploy.backends import cuda

    try:
        device = cuda.find_device()
    except BackendUnavailable:
        with pytest.raises(BackendUnavailable, match=r"^no NVIDIA GPU( with a driver)? here"):
            cuda.find_device()
        with pytest.raises(BuildError, match=r"^cudaMalloc: cudaError"):
            cuda.allocate((2, 3), np.dtype(np.float32))
    else:
        assert re.fullmatch(r"SM\d{2,3}", device.capability)


ENGINES = "import tensorrt_rtx; sys.modules['tensorrt'] = tensorrt_rtx"
"""The module of TensorRT-RTX has what ``backends.tensorrt`` uses, up to the driver."""

DEVICE = "cuda.find_device = lambda: cuda.Device('A GPU', 'SM86')"
NO_FILES = "native.search_path = lambda: ()"
UNBUILT = {
    "no driver": (("trt-fp16:mirror", "trt-fp16:plugin-aot"), "", "no NVIDIA GPU"),
    "no library": (("trt-fp16:plugin",), f"{DEVICE}; {NO_FILES}", "libcrelu_tensorrt.so is not"),
    "no PTX": (("trt-fp16:plugin-aot",), f"{DEVICE}; {NO_FILES}", "crelu.ptx is not built; looked"),
    "only the worker misses TensorRT": (
        ("trt-fp16:plugin-aot",),
        f"{DEVICE}; plugin_aot.ptx = str",
        "the ahead-of-time plugin needs the package tensorrt, which is not installed",
    ),
}


@pytest.mark.tensorrt
@pytest.mark.skipif(HAS_TENSORRT, reason="TensorRT is installed here")
@pytest.mark.parametrize(("targets", "before", "said"), UNBUILT.values(), ids=UNBUILT)
def test_builds_of_tensorrt_up_to_the_driver(targets, before, said, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx-cu13")
    pytest.importorskip("cuda.bindings", reason="pip install cuda-bindings")
    path = write_bundle(tmp_path / "bundle").path
    script = f"""import sys; {ENGINES}
from crelu_deploy import native, plugin_aot
from crelu_deploy.backends import cuda
from crelu_deploy.pipeline import build
{before}
for done in build({str(path)!r}, {targets!r}): print(done.error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    if said == "no NVIDIA GPU" and said not in done.stdout:
        pytest.skip("there is a GPU here")
    assert len(lines) == len(targets)
    assert all(said in line for line in lines), lines


@pytest.mark.gpu
@pytest.mark.parametrize("name", [*(b.name for b in GPU), "trt-fp16:plugin", "trt-fp16:plugin-aot"])
def test_every_backend_on_a_gpu(name, tmp_path):
    """What no machine without a GPU can show: engines and sessions agree with the samples."""
    bundle = write_bundle(tmp_path / "bundle")
    (done,) = build(bundle, [name])
    if done.skipped:
        pytest.skip(done.error)
    assert done.error == ""
    (found,) = verify(bundle, [name])
    if found.skipped:
        pytest.skip(found.error)
    assert found.passed, found
    x = bundle.samples[0].inputs["x"]
    with load(bundle, name) as runner:
        assert runner.prepare(x)() > 0
        on_device_as_on_host(runner, x)


def on_device_as_on_host(runner: Runner, x: np.ndarray) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        y = torch.as_tensor(runner(torch.from_numpy(x).cuda())["y"], device="cuda")
        np.testing.assert_array_equal(y.cpu().numpy(), runner(x)["y"])
