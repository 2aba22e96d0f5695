"""A runner on a real ONNX Runtime session: what it takes, what it refuses and in which words."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest

from crelu_deploy.backends.onnxruntime import SessionRunner, open_session
from crelu_deploy.errors import BuildError, UnsupportedModel
from crelu_deploy.runner import Runner, TensorSpec
from crelu_deploy.targets import Options

HEAD = '<ir_version: 8, opset_import: ["": 17]>'
TWO = (
    f"{HEAD} g (float[N,3] a, float[N,3] b) => (float[N,3] s, float[N,3] d) "
    "{ s = Add(a, b) d = Sub(a, b) }"
)
A, B = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones((2, 3), np.float32)


def save(path: Path, text: str) -> Path:
    onnx.save(onnx.parser.parse_model(text), path)
    return path


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[SessionRunner]:
    with open_session(save(tmp_path / "two.onnx", TWO), Options(threads=1)) as opened:
        yield opened


def test_inputs_and_outputs_are_described(runner):
    a, b = (TensorSpec(name, "float32", ("N", 3)) for name in "ab")
    assert runner.inputs == (a, b)
    assert str(a) == "a float32[N, 3]"
    assert runner.outputs == ("s", "d")


CALLS = {
    "positional": (A, B),
    "mapping": ({"a": A, "b": B},),
    "mapping-in-another-order": ({"b": B, "a": A},),
    "strided": (np.repeat(A, 2, axis=0)[::2], np.asfortranarray(B)),
}


@pytest.mark.parametrize("arguments", CALLS.values(), ids=CALLS)
def test_call(runner, arguments):
    result = runner(*arguments)
    assert list(result) == ["s", "d"]
    assert np.array_equal(result["s"], A + B)
    assert np.array_equal(result["d"], A - B)
    assert result["s"].dtype == np.float32


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_a_dynamic_axis_takes_any_extent(runner, rows):
    x = np.full((rows, 3), 2, np.float32)
    assert runner(x, x)["s"].shape == (rows, 3)


BOTH = "(a float32[N, 3], b float32[N, 3])"
REFUSED = {
    "none": ((), TypeError, f"expected 2 inputs {BOTH}, got 0"),
    "one": ((A,), TypeError, f"expected 2 inputs {BOTH}, got 1"),
    "three": ((A, B, B), TypeError, f"expected 2 inputs {BOTH}, got 3"),
    "empty-mapping": (({},), TypeError, f"expected the inputs {BOTH[1:-1]}; got none"),
    "missing": (({"a": A},), TypeError, f"expected the inputs {BOTH[1:-1]}; got a"),
    "extra": (({"a": A, "b": B, "c": B},), TypeError, "; got a, b, c"),
    "misspelt": (({"a": A, "B": B},), TypeError, "; got a, B"),
    "float64": (
        (A, B.astype(np.float64)),
        TypeError,
        "input 'b': expected float32, got float64; convert it with .astype('float32')",
    ),
    "integers": ((A.astype(int), B), TypeError, "input 'a': expected float32, got int64"),
    "lists": ((A.tolist(), B), TypeError, "input 'a': expected float32, got float64"),
    "other-byte-order": ((A.astype(">f4"), B), TypeError, "input 'a': expected float32, got >f4"),
    "rank": ((A[0], B), ValueError, "input 'a': expected shape (N, 3), got (3,)"),
    "extent": ((A, B[:, :2]), ValueError, "input 'b': expected shape (N, 3), got (2, 2)"),
    "scalar": ((np.float32(1), B), ValueError, "input 'a': expected shape (N, 3), got ()"),
}


@pytest.mark.parametrize(("arguments", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_wrong_calls(runner, arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        runner(*arguments)


def test_what_only_the_runtime_notices_is_told_in_one_line(runner):
    with pytest.raises(BuildError, match=r"ONNX Runtime failed on it: .*") as caught:
        runner(A, np.ones((5, 3), np.float32))
    assert "\n" not in str(caught.value)
    assert np.array_equal(runner(A, B)["s"], A + B)


def test_a_closed_runner_refuses_calls(runner):
    runner.close()
    with pytest.raises(ValueError, match="the runner is closed: load the artifact again"):
        runner(A, B)
    runner.close()


def test_the_context_manager_closes_and_keeps_errors(tmp_path):
    path = save(tmp_path / "two.onnx", TWO)
    with (
        pytest.raises(TypeError, match="expected 2 inputs"),
        open_session(path, Options(threads=1)) as opened,
    ):
        opened(A)
    with pytest.raises(ValueError, match="closed"):
        opened(A, B)


def test_threads_share_a_runner(runner):
    arrays = [np.full((2, 3), i, np.float32) for i in range(16)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda x: runner(x, B)["s"], arrays))
    assert all(np.array_equal(r, x + B) for r, x in zip(results, arrays, strict=True))


def test_a_runner_that_returns_too_few_outputs_is_a_mistake():
    class Half(Runner):
        inputs = (TensorSpec("x", "float32", (3,)),)
        outputs = ("y", "z")

        def _run(self, feeds):
            return [feeds["x"]]

    with pytest.raises(ValueError, match="shorter"):
        Half()(A[0])


TYPES = {
    "float": "float32",
    "double": "float64",
    "float16": "float16",
    "int64": "int64",
    "int32": "int32",
    "int16": "int16",
    "int8": "int8",
    "uint64": "uint64",
    "uint32": "uint32",
    "uint16": "uint16",
    "uint8": "uint8",
    "bool": "bool",
}


@pytest.mark.parametrize(("kind", "dtype"), TYPES.items(), ids=TYPES)
def test_element_types(tmp_path, kind, dtype):
    text = f"{HEAD} g ({kind}[2] x) => ({kind}[2] y) {{ y = Identity(x) }}"
    x = np.array([0, 1], dtype)
    with open_session(save(tmp_path / "m.onnx", text), Options(threads=1)) as opened:
        assert opened.inputs == (TensorSpec("x", dtype, (2,)),)
        assert np.array_equal(opened(x)["y"], x)
        with pytest.raises(TypeError, match=f"expected {dtype}, got complex64"):
            opened(x.astype(np.complex64))


@pytest.mark.parametrize("optimise", [True, False])
def test_unnamed_dynamic_axes(tmp_path, optimise):
    text = f"{HEAD} g (float[?,3] x) => (float[?,3] y) {{ y = Neg(x) }}"
    path = save(tmp_path / "m.onnx", text)
    with open_session(path, Options(threads=1), optimise=optimise) as opened:
        assert opened.inputs[0].shape == ("?", 3)
        assert np.array_equal(opened(A)["y"], -A)


def test_text_inputs_are_refused(tmp_path):
    text = f"{HEAD} g (string[2] x) => (string[2] y) {{ y = Identity(x) }}"
    with pytest.raises(UnsupportedModel, match=r"input 'x' is a tensor\(string\), which NumPy"):
        open_session(save(tmp_path / "m.onnx", text), Options(threads=1))


UNOPENED = {
    "missing": None,
    "empty": b"",
    "text": b"not a model",
    "unknown-operator": onnx.parser.parse_model(
        f"{HEAD} g (float[2] x) => (float[2] y) {{ y = Sparkle(x) }}"
    ).SerializeToString(),
}


@pytest.mark.parametrize("content", UNOPENED.values(), ids=UNOPENED)
def test_files_that_the_runtime_refuses(tmp_path, content):
    path = tmp_path / "m.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BuildError, match=r"m\.onnx: ONNX Runtime refuses it: .+") as caught:
        open_session(path, Options(threads=1))
    assert "\n" not in str(caught.value)


def test_running_loads_no_pytorch(tmp_path):
    save(tmp_path / "two.onnx", TWO)
    script = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from crelu_deploy.backends.onnxruntime import open_session\n"
        "from crelu_deploy.targets import Options\n"
        "x = np.ones((2, 3), np.float32)\n"
        "with open_session(Path('two.onnx'), Options(threads=1)) as runner:\n"
        "    print(runner(x, x)['s'].sum(), 'torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.stdout.split(), done.stderr) == (["12.0", "False"], "")
