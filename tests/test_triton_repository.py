"""A model repository: what is in it, what is refused, and what is never replaced."""

from __future__ import annotations

import json
import socket

import numpy as np
import pytest
from bundles import write_bundle
from serving import put_engine, put_report, put_target, read_config, tree

pytest.importorskip("tritonclient", reason="needs tritonclient: pip install 'crelu-deploy[serve]'")
pytest.importorskip("onnxruntime")

from crelu_deploy import build, load
from crelu_deploy.bundle import SAMPLES
from crelu_deploy.cli import run
from crelu_deploy.errors import BackendUnavailable, UnsupportedModel
from crelu_deploy.runner import TensorSpec
from crelu_deploy.samples import Sample, save_samples
from crelu_deploy.serving import environment
from crelu_deploy.serving.config import model_config, use_onnxruntime
from crelu_deploy.serving.repository import package, write_repository
from crelu_deploy.serving.server import Address, last_error
from crelu_deploy.serving.signature import Signature, preferred_sizes
from crelu_deploy.targets import Target

CPU = Target.parse("ort-cpu")


@pytest.fixture
def made(tmp_path):
    """A bundle called ``net`` with ort-cpu built."""
    bundle = write_bundle(tmp_path / "net.crelu")
    build(bundle, [CPU])
    return bundle


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out" / "models"


@pytest.fixture
def packaged(made, out):
    return package(made, out)


def refused(capsys, *arguments):
    """Run the command line, which must fail with one line, and return it."""
    assert run(arguments) == 1
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if not line.startswith("...")]
    assert len(lines) == 1
    assert "Traceback" not in said.err
    assert said.out == ""
    return lines[0]


@pytest.mark.parametrize(
    ("name", "backend", "parameters"),
    [
        ("net-ort-cpu-auto", "onnxruntime", {"intra_op_thread_count": "0", "execution_mode": "0"}),
        (
            "net-ort-cpu-auto-python",
            "python",
            {"target": "ort-cpu:auto", "FORCE_CPU_ONLY_INPUT_TENSORS": "yes"},
        ),
    ],
)
def test_a_configuration_says_what_the_network_is(packaged, made, name, backend, parameters):
    config = read_config(packaged.path / name)
    assert (config.name, config.backend, config.max_batch_size) == (name, backend, 16)
    (x,), (y,) = config.input, config.output
    assert (x.name, list(x.dims), x.data_type) == ("x", [2, 3, 3], 11)  # 11: TYPE_FP32
    assert (y.name, list(y.dims), y.data_type) == ("y", [8, 3, 3], 11)
    assert list(config.dynamic_batching.preferred_batch_size) == [2, 4, 8, 16]
    assert config.version_policy.latest.num_versions == 1
    (group,) = config.instance_group
    assert (group.count, group.kind) == (1, 2)  # 2: KIND_CPU
    assert {key: value.string_value for key, value in config.parameters.items()} == parameters
    assert [warm.batch_size for warm in config.model_warmup] == [1, 16]
    tensor = config.model_warmup[0].inputs["x"]
    file = packaged.path / name / "warmup" / tensor.input_data_file
    row = np.frombuffer(file.read_bytes(), np.float32).reshape(tuple(tensor.dims))
    np.testing.assert_array_equal(row, made.samples[0].inputs["x"][0])


def test_the_files_are_those_of_the_bundle(packaged, made):
    native = packaged.path / "net-ort-cpu-auto"
    copied = native / "1" / read_config(native).default_model_filename
    assert copied.read_bytes() == made.artifact(CPU).read_bytes()
    folder = packaged.path / "net-ort-cpu-auto-python" / "1" / "bundle"
    x = made.samples[1].inputs
    with load(made, CPU) as here, load(folder, CPU) as there:
        np.testing.assert_array_equal(there(x)["y"], here(x)["y"])
    names = {model.name for model in packaged.models}
    assert {path.name for path in packaged.path.iterdir()} == {*names, "README.md", "crelu.json"}


FIXED = Signature(
    (TensorSpec("x", "int64", (1, 4)), TensorSpec("s", "float32", ())),
    (TensorSpec("y", "bool", ("?", 4)),),
    False,
    {"x": np.zeros((1, 4), np.int64), "s": np.zeros((), np.float32)},
)


def test_without_a_batch_axis_requests_run_one_by_one():
    config = model_config("m", "python", FIXED, sizes=(2, 4), gpu=False)
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert [(list(t.dims), t.data_type) for t in config.input] == [([1, 4], 9), ([], 11)]
    assert [(list(t.dims), t.data_type) for t in config.output] == [([-1, 4], 1)]
    assert [warm.batch_size for warm in config.model_warmup] == [1]


@pytest.mark.parametrize(("instances", "threads"), [(1, "0"), (2, "1")])
def test_several_instances_have_one_thread_each(instances, threads):
    config = model_config("m", "p", FIXED, sizes=(), gpu=False, instances=instances)
    assert [group.count for group in config.instance_group] == [instances]
    use_onnxruntime(config, "model.onnx")
    assert config.parameters["intra_op_thread_count"].string_value == threads


def test_a_type_that_triton_lacks_is_refused():
    odd = Signature((TensorSpec("x", "complex64", ("N",)),), (), True, {"x": np.zeros(1)})
    with pytest.raises(UnsupportedModel, match="no element type complex64"):
        model_config("m", "python", odd, sizes=(), gpu=False)


# milliseconds of one call at each batch size that was timed, largest batch -> sizes
SIZES = {
    "nothing-timed": ({}, 16, (2, 4, 8, 16)),
    "only-one-row": ({1: 2.0}, 8, (2, 4, 8)),
    "no-power": ({}, 12, (2, 4, 8, 12)),
    "one": ({}, 1, ()),
    "each-better": ({1: 2.0, 4: 4.0, 8: 6.0}, 16, (4, 8)),
    "worse-from-8": ({1: 2.0, 4: 4.0, 8: 9.0}, 16, (4,)),
    "never-better": ({1: 1.0, 4: 8.0}, 16, ()),
    "too-large": ({4: 4.0, 32: 8.0}, 16, (4,)),
}


@pytest.mark.parametrize(("timed", "largest", "sizes"), SIZES.values(), ids=SIZES)
def test_batches_are_those_that_the_bench_found_good(made, timed, largest, sizes):
    put_report(made, CPU, timed=timed)
    assert preferred_sizes(made, CPU, largest) == sizes


def test_a_gpu_target_that_was_verified_elsewhere_has_its_options_spelled_out(made, out):
    put_report(made, put_target(made, "ort-cuda:mirror"))
    package(made, out, ["ort-cuda:mirror"])
    config = read_config(out / "net-ort-cuda-mirror")
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "cuda"
    assert dict(accelerator.parameters) == {"use_tf32": "0", "enable_cuda_graph": "0"}
    assert config.parameters["cudnn_conv_algo_search"].string_value == "1"
    assert [(g.kind, list(g.gpus)) for g in config.instance_group] == [(1, [0])]  # KIND_GPU
    assert not config.model_operations.op_library_filename


@pytest.mark.parametrize(
    ("target", "library", "said"),
    [
        ("ort-cuda:plugin", "libcrelu_onnxruntime.so", "change `config.pbtxt` if"),
        ("trt-fp16:plugin", "libcrelu_tensorrt.so", "--backend-config=tensorrt,plugins=/models/"),
    ],
)
def test_a_compiled_library_goes_along(made, out, monkeypatch, tmp_path, target, library, said):
    (tmp_path / library).write_bytes(b"code")
    monkeypatch.setenv("CRELU_LIBRARY_PATH", str(tmp_path))
    parsed = put_target(made, target)
    if target.startswith("trt"):
        put_engine(made, parsed, largest=8)
    write_repository(made, out.parent, [parsed], largest=16, progress=lambda _: None)
    name = f"net-{target.replace(':', '-')}"
    assert (out.parent / name / library).read_bytes() == b"code"
    assert said in (out.parent / "README.md").read_text()
    named = list(read_config(out.parent / name).model_operations.op_library_filename)
    assert named == ([f"/models/{name}/{library}"] if "ort" in target else [])


def test_an_engine_that_carries_its_plugin_needs_no_library(made, out):
    target = put_target(made, "trt-fp16:plugin-aot")
    put_engine(made, target, 8, flags=("VERSION_COMPATIBLE",))
    out.parent.mkdir()
    (model, _) = write_repository(made, out, [target], largest=16, progress=lambda _: None).models
    assert model.library == ""
    text = (out / "README.md").read_text()
    assert "plugins=" not in text
    assert "--backend-config=tensorrt,version-compatible=true" in text


def test_an_engine_has_its_own_largest_batch(made, out):
    target = put_target(made, "trt-fp16:mirror")
    put_engine(made, target, largest=8)
    out.parent.mkdir()
    (model, _) = write_repository(made, out, [target], largest=16, progress=lambda _: None).models
    config = read_config(out / model.name)
    assert (model.batch, model.runtime) == (8, "TensorRT 10.13.3")
    assert (config.backend, config.default_model_filename) == ("tensorrt", "trt-fp16-mirror.engine")
    assert (out / model.name / "1" / "trt-fp16-mirror.engine").read_bytes().startswith(b"an engine")
    assert not config.optimization.cuda.graphs  # the batch varies
    assert "TensorRT 10.13.3" in (out / "README.md").read_text()


def refuse_none(bundle):
    """Change nothing."""


def report_failure(bundle):
    put_report(bundle, put_target(bundle, "ort-cuda:mirror"), passed=False)


def report_another_file(bundle):
    put_report(bundle, put_target(bundle, "ort-cuda:mirror"), sha256="0" * 64)


def report_an_engine(bundle):
    target = put_target(bundle, "trt-fp16:mirror")
    put_engine(bundle, target, largest=8)
    put_report(bundle, target)


def change_a_file(bundle):
    bundle.artifact(CPU).write_bytes(b"changed")


# what is done to the bundle, the target -> what the one line says
REFUSALS = {
    "not-built": (refuse_none, "ort-cpu:fold", "ort-cpu:fold is not built; run: crelu build"),
    "pytorch": (refuse_none, "torch", "torch is PyTorch itself"),
    "gpu-never-verified": (report_failure, "ort-cuda:mirror", "ort-cuda:mirror is not verified"),
    "gpu-file-is-newer": (report_another_file, "ort-cuda:mirror", "is not verified, so it is not"),
    "engine-is-checked-here": (report_an_engine, "trt-fp16:mirror", "trt-fp16:mirror is not veri"),
    "changed-file": (change_a_file, "ort-cpu", "changed since it was written; export it again"),
}


@pytest.mark.parametrize(("prepare", "target", "said"), REFUSALS.values(), ids=REFUSALS)
def test_what_is_not_verified_is_not_packaged(made, out, capsys, prepare, target, said):
    prepare(made)
    line = refused(capsys, "package", str(made.path), "--triton", str(out), "-t", target)
    assert said in line
    assert not out.exists()
    assert not any(out.parent.glob("*"))


def test_a_target_that_differs_from_pytorch_is_not_packaged(made, out, capsys):
    wrong = [Sample(s.inputs, {"y": s.outputs["y"] + 1}) for s in made.samples]
    save_samples(made.path / SAMPLES, tuple(wrong))
    made.record((made.path / SAMPLES,))
    line = refused(capsys, "package", str(made.path), "--triton", str(out))
    assert "ort-cpu:auto is not verified, so it is not packaged" in line
    assert not any(out.parent.glob("*"))


def test_a_repository_is_replaced_by_the_next_one(packaged, made, out):
    served = out / "net-ort-cpu-auto-python" / "1" / "__pycache__"
    served.mkdir()
    (served / "model.cpython-311.pyc").write_bytes(b"left by a server")
    again = package(made, out, largest=4)
    assert [model.batch for model in again.models] == [4, 4]
    assert not served.exists()


def foreign_file(out):
    out.parent.mkdir()
    out.write_text("mine")


def foreign_folder(out):
    out.mkdir(parents=True)
    (out / "thesis.txt").write_text("mine")


def foreign_marker(out):
    foreign_folder(out)
    (out / "crelu.json").write_text(json.dumps({"files": ["thesis.txt"]}))


def own_then_added(out):
    (out / "net-ort-cpu-auto" / "2").mkdir()
    (out / "net-ort-cpu-auto" / "2" / "model.onnx").write_bytes(b"mine")


def own_then_edited(out):
    config = out / "net-ort-cpu-auto" / "config.pbtxt"
    config.write_text(config.read_text().replace("count: 1", "count: 4"))


def own_then_linked(out):
    out.rename(out.with_name("elsewhere"))
    out.symlink_to("elsewhere")


# what is at the destination, whether a repository was written there before -> what is named
FOREIGN = {
    "file": (foreign_file, False, "'models' is not as"),
    "folder": (foreign_folder, False, "'thesis.txt' is not as"),
    "marker": (foreign_marker, False, "'thesis.txt' is not as"),
    "added": (own_then_added, True, "'net-ort-cpu-auto/2/model.onnx' is not as"),
    "edited": (own_then_edited, True, "'net-ort-cpu-auto/config.pbtxt' is not as"),
    "link": (own_then_linked, True, "'models' is not as"),
}


@pytest.mark.parametrize(("prepare", "own", "said"), FOREIGN.values(), ids=FOREIGN)
def test_what_is_not_ours_is_never_replaced(made, out, capsys, prepare, own, said):
    if own:
        package(made, out)
    prepare(out)
    before = tree(out.parent)
    line = refused(capsys, "package", str(made.path), "--triton", str(out))
    assert said in line
    assert "nothing was touched" in line
    assert tree(out.parent) == before


def test_a_failure_half_way_leaves_the_earlier_repository(packaged, made, out, monkeypatch):
    monkeypatch.setattr("crelu_deploy.native.search_path", lambda: (out,))
    target, before = put_target(made, "ort-cuda:plugin"), tree(out)
    with pytest.raises(BackendUnavailable, match=r"onnxruntime\.so is not built"):
        write_repository(made, out, [CPU, target], largest=16, progress=lambda _: None)
    assert tree(out.parent) == {f"models/{name}": data for name, data in before.items()}


def test_the_command_prints_what_it_wrote(made, out, capsys):
    assert run(["package", str(made.path), "--triton", str(out), "--max-batch", "4", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["path"] == str(out)
    assert [(m["name"], m["backend"], m["batch"]) for m in said["models"]] == [
        ("net-ort-cpu-auto", "onnxruntime", 4),
        ("net-ort-cpu-auto-python", "python", 4),
    ]


def test_a_port_in_use_is_said_before_anything_is_done(made, capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        line = refused(capsys, "serve", str(made.path), "--grpc-port", str(port))
    assert f"port {port} on 127.0.0.1 cannot be used" in line
    assert "--grpc-port" in line


ADDRESSES = {
    "same-ports": (Address(http=18000, grpc=18000), "the ports must differ"),
    "not-here": (Address("192.0.2.1"), "port 8000 on 192.0.2.1 cannot be used"),
    "no-host": (Address("no host"), "port 8000 on no host cannot be used"),
}


@pytest.mark.parametrize(("address", "said"), ADDRESSES.values(), ids=ADDRESSES)
def test_an_address_that_cannot_be_listened_on_is_refused(address, said):
    with pytest.raises(BackendUnavailable, match=said):
        address.check()


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        ((), "is no virtual environment; name a folder that"),
        (("lib/python3.11/site-packages",), "holds no Triton server for its Python, tritonserver"),
    ],
)
def test_an_environment_without_a_server_is_refused(tmp_path, capsys, made, folders, said):
    for folder in ("env", *(f"env/{name}" for name in folders)):
        (tmp_path / folder).mkdir(parents=True)
    ports = ("--http-port", "18100", "--grpc-port", "18101", "--metrics-port", "18102")
    env = ("--server-env", str(tmp_path / "env"))
    assert said in refused(capsys, "serve", str(made.path), *ports, *env)


@pytest.mark.slow
def test_an_environment_that_cannot_be_installed_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "SERVER", "crelu-deploy-no-such-package")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(BackendUnavailable, match=r"could be installed: ERROR: .*--server-env"):
        environment.provide(tmp_path / "cache" / "env")
    assert list((tmp_path / "cache").iterdir()) == []


# a server's log -> the message that is worth showing
LOGS = {
    "": "it said nothing of it",
    'E1122 02:09:09.3 66 server.cc:2] "no driver"\n': "no driver",
    "error: creating server: Internal - it broke;\n": "creating server: Internal - it broke",
    'E1 a] "x"\nerror: load: m is at UNAVAILABLE state: Internal: no\n\nAt: y\n': "Internal: no",
}


@pytest.mark.parametrize(("log", "said"), LOGS.items(), ids=range(len(LOGS)))
def test_the_reason_is_found_in_the_log(tmp_path, log, said):
    (tmp_path / "log").write_text(log)
    assert last_error(tmp_path / "log").startswith(said)
