"""Which backends work on this machine, and the command that mends the others."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from crelu_deploy import op
from crelu_deploy.accuracy import REDUCED, Limits, compare_outputs
from crelu_deploy.bundle import Bundle
from crelu_deploy.errors import BackendUnavailable
from crelu_deploy.pipeline import build, load
from crelu_deploy.probe import write_probe
from crelu_deploy.samples import Sample
from crelu_deploy.targets import BACKENDS, Backend, Options, Target

OK, MISSING, BROKEN = "ok", "missing", "broken"
REFUSES = "cannot run a network of one site"


@dataclass(frozen=True)
class Health:
    """The state of one backend here.

    Attributes:
        backend: Its name.
        state: ``ok``; ``missing``: its runtime or device is not there; ``broken``: it is there and
            fails.
        summary: What it is, or what is wrong.
        version: That of the runtime, where it could be loaded.
        fix: The command that mends it; empty where it works, or where no command can.
    """

    backend: str
    state: str
    summary: str
    version: str = ""
    fix: str = ""

    @property
    def works(self) -> bool:
        """Whether it ran."""
        return self.state == OK


def diagnose() -> tuple[Health, ...]:
    """Load the runtime of every backend, and let it run a network of one site, if it reads ONNX."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = _smallest(Path(folder) / "bundle")
        return tuple(_judge(backend, bundle) for backend in BACKENDS.values())


def _judge(backend: Backend, bundle: Bundle) -> Health:
    mend = f"pip install --force-reinstall 'crelu-deploy[{backend.extra}]'"
    try:
        backend.implementation()
        version = _version(backend)
        if backend.lowered and (wrong := _run(backend, bundle)):
            again = mend if wrong.startswith(REFUSES) else ""  # a wrong number has other causes
            return Health(backend.name, BROKEN, wrong, version, _command(wrong) or again)
    except BackendUnavailable as error:
        reason = _line(error).replace(str(bundle.path), "the bundle")
        return Health(backend.name, MISSING, reason, _version(backend), _command(reason))
    except (ImportError, OSError) as error:  # installed, but a library of its is missing
        return Health(backend.name, BROKEN, f"installed but broken: {_line(error)}", fix=mend)
    return Health(backend.name, OK, backend.summary, version)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _command(reason: str) -> str:
    """Return the command that a message ends with."""
    return reason.partition("; run: ")[2]


def _version(backend: Backend) -> str:
    """Return the version of the runtime, where it has been imported."""
    names = {"pytorch": "torch"}.get(backend.module, backend.module), backend.module.split("_")[0]
    module = next((sys.modules[name] for name in names if name in sys.modules), None)
    return str(getattr(module, "__version__", "")).split("-")[0]


def _run(backend: Backend, bundle: Bundle) -> str:
    """Return what is wrong when the backend runs the smallest network; empty where nothing is.

    Raises:
        BackendUnavailable: A device or a precision is not there.
    """
    target = Target(backend.name, "primitive")
    (built,) = build(bundle, [target], Options(threads=1))
    if built.skipped:
        raise BackendUnavailable(built.error)
    if built.error:
        return " ".join(built.error.split())
    sample = bundle.samples[0]
    allowed = REDUCED.get(backend.precision, Limits()).tolerance
    try:
        with load(bundle, target, threads=1) as runner:
            found = compare_outputs(runner(sample.inputs), sample.outputs, "", allowed)
    except BackendUnavailable:
        raise
    except Exception as error:  # whatever a runtime raises is what is to be reported
        return f"{REFUSES}: {type(error).__name__}: {_line(error)}"
    return "" if found.passed else f"computes something else: {found.worst}"


def _smallest(path: Path) -> Bundle:
    """Write a bundle of a 1x1 convolution to 4 channels and a site behind it."""
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((4, 2, 1, 1), np.float32)
    x = generator.standard_normal((1, 2, 4, 4), np.float32)
    y = op.reference(np.einsum("oi,nihw->nohw", weight[:, :, 0, 0], x))
    return write_probe(path, _network(weight), Sample({"x": x}, {"y": y}))


def _network(weight: op.Array) -> ir.Model:
    """Return the model ``y = crelu(conv(x))``."""
    kind = ir.TensorType(ir.DataType.FLOAT)
    x = ir.val("x", type=kind, shape=ir.Shape([1, 2, 4, 4]))
    w = ir.val("w", const_value=ir.tensor(weight, name="w"))
    conv = ir.node("Conv", [x, w], name="conv")
    site = ir.node("CReLU", [conv.outputs[0]], {"axis": 1}, domain=op.DOMAIN, name="site")
    for node, name, channels in ((conv, "z", 4), (site, "y", 8)):
        value = node.outputs[0]
        value.name, value.type, value.shape = name, kind, ir.Shape([1, channels, 4, 4])
    graph = ir.Graph(
        [x],
        site.outputs,
        nodes=[conv, site],
        initializers=[w],
        opset_imports={"": 17, op.DOMAIN: op.VERSION},
        name="doctor",
    )
    function = op.function("CReLU", 17)
    return ir.Model(graph, ir_version=8, functions=[function])
