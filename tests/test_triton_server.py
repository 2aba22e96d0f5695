"""A real Triton server on repositories made here: its answers, its complaints, and its end."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
from bundles import write_bundle
from real_models import real_model
from serving import put_engine, put_report, put_target, read_config

pytest.importorskip("tritonclient", reason="needs tritonclient: pip install 'crelu-deploy[serve]'")
pytest.importorskip("onnxruntime")

import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from crelu_deploy import Bundle, build, load
from crelu_deploy.errors import BuildError, DeployError
from crelu_deploy.serving import environment
from crelu_deploy.serving.repository import package, write_repository
from crelu_deploy.serving.server import Address, serve

pytestmark = pytest.mark.slow

CLIENTS = {"http": tritonclient.http, "grpc": tritonclient.grpc}
MISSING = "unable to find backend library for backend '{}'"


def server_environment() -> environment.Environment:
    """Return the server's environment, or skip the calling test where there is none."""
    folder = Path(os.environ.get(environment.VARIABLE) or environment.default_folder())
    try:
        return environment.find(folder)
    except DeployError as error:
        pytest.skip(f"no Triton server here ({error}); `crelu serve` installs one")


def free_address() -> Address:
    """Return three ports that nothing listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return Address("127.0.0.1", *ports)


def ask(protocol: str, address: Address, model: str, inputs: dict[str, np.ndarray]):
    """Return the outputs that a server gives for one request."""
    module = CLIENTS[protocol]
    port = getattr(address, protocol)
    tensors = []
    for name, array in inputs.items():
        tensor = module.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    with module.InferenceServerClient(f"127.0.0.1:{port}") as client:
        answer = client.infer(model, tensors)
        names = [
            output["name"]
            for output in client.get_model_metadata(model, **as_json(protocol))["outputs"]
        ]
    return {name: answer.as_numpy(name) for name in names}


def as_json(protocol: str) -> dict[str, bool]:
    return {"as_json": True} if protocol == "grpc" else {}


def export_bundle(name: str, folder: Path) -> Path:
    """Export one of the networks that are served here."""
    torch = pytest.importorskip("torch")
    from crelu_deploy import export

    torch.set_num_threads(1)
    if name == "digits":
        examples = Path(__file__).resolve().parent.parent / "examples"
        model, samples = examples / "digits_crelu.pt", examples / "digits_samples.npz"
        return export(model, folder / name, samples=samples).path
    file = real_model("faceboxes-3ddfa/FaceBoxesProd.pth")
    return export(file, folder / name, inputs=["1x3x256x256"], samples=3).path


@pytest.fixture(scope="module", params=[("digits", 1), ("digits", 2), ("faceboxes", 1)], ids=str)
def network(request, tmp_path_factory):
    """A running server on a trained network: the bundle, the model's name, the address."""
    found, (stem, instances) = server_environment(), request.param
    folder = tmp_path_factory.mktemp(stem)
    bundle = export_bundle(stem, folder)
    made, address = package(bundle, folder / "models", instances=instances), free_address()
    name = f"{stem}-ort-cpu-auto-python"
    with serve(made.path, [name], found, address):
        yield bundle, name, address


@pytest.mark.parametrize("protocol", CLIENTS)
def test_answers_are_the_runners_bit_for_bit(network, protocol):
    bundle, name, address = network
    samples = Bundle.open(bundle).samples[:20]
    with load(bundle) as runner:
        for sample in samples:
            wanted, found = runner(sample.inputs), ask(protocol, address, name, sample.inputs)
            assert found.keys() == wanted.keys()
            for output, array in wanted.items():
                np.testing.assert_array_equal(found[output], array)
                assert found[output].dtype == array.dtype


def test_requests_of_many_clients_become_batches(network):
    bundle, name, address = network
    rows = [{n: x[:1] for n, x in s.inputs.items()} for s in Bundle.open(bundle).samples[:3]]
    with load(bundle) as runner:
        wanted = [runner(row) for row in rows]
    jobs = [i % len(rows) for i in range(96)]
    with ThreadPoolExecutor(32) as pool:
        found = list(pool.map(lambda i: ask("grpc", address, name, rows[i]), jobs))
    for i, answer in zip(jobs, found, strict=True):
        for output, array in wanted[i].items():  # the batch may change the order of a sum
            scale = np.abs(array).max()
            np.testing.assert_allclose(answer[output], array, rtol=0, atol=2e-6 * scale)
    text = urlopen(address.urls["metrics"], timeout=10).read().decode()
    count, runs = (counter(text, key, name) for key in ("count", "exec_count"))
    assert count > runs
    assert counter(text, "request_failure", name) == 0


def counter(text: str, key: str, name: str) -> float:
    """Return the sum of one counter of a model in the server's metrics."""
    lines = re.findall(rf'^nv_inference_{key}{{.*model="{name}".*}} (\S+)$', text, re.MULTILINE)
    return sum(map(float, lines))


def test_a_request_that_does_not_fit_is_refused_alone(network):
    bundle, name, address = network
    inputs = Bundle.open(bundle).samples[0].inputs
    for wrong in (lambda x: x[:, :, 1:], lambda x: x.astype(np.float64)):
        with pytest.raises(InferenceServerException, match="expect"):
            ask("http", address, name, {n: wrong(x) for n, x in inputs.items()})
    assert ask("http", address, name, inputs).keys() == set(Bundle.open(bundle).outputs)


@pytest.fixture
def every_kind(tmp_path):
    """A repository with a model for each of the server's backends."""
    bundle = write_bundle(tmp_path / "net")
    build(bundle, ["ort-cpu"])
    targets = [put_target(bundle, t) for t in ("ort-cuda:mirror", "ort-cuda:plugin")]
    engine = put_target(bundle, "trt-fp16:mirror")
    put_engine(bundle, engine, largest=8)
    put_report(bundle, targets[0])
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libcrelu_onnxruntime.so").write_bytes(b"code")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CRELU_LIBRARY_PATH", str(tmp_path / "lib"))
        wanted = [put_target(bundle, "ort-cpu:mirror"), *targets, engine]
        yield write_repository(
            bundle, tmp_path / "models", wanted, largest=16, progress=lambda _: None
        )


def test_all_that_is_wrong_with_native_models_is_the_missing_backend(every_kind):
    address, native = free_address(), [m for m in every_kind.models if m.backend != "python"]
    assert len(native) == 4
    broken = every_kind.path / native[0].name / "config.pbtxt"
    url = f"127.0.0.1:{address.grpc}"
    start = ["net-ort-cpu-mirror-python"]
    with (
        serve(every_kind.path, start, server_environment(), address),
        tritonclient.grpc.InferenceServerClient(url) as client,
    ):
        for model in native:
            with pytest.raises(InferenceServerException) as caught:
                client.load_model(model.name)
            assert MISSING.format(model.backend) in str(caught.value)
            assert str(caught.value).count("is at UNAVAILABLE state") == 1
        # The same server does find fault with a configuration where there is one.
        broken.write_text(broken.read_text().replace("dims: 2", "dims: 0"))
        with pytest.raises(InferenceServerException) as caught:
            client.load_model(native[0].name)
        assert MISSING.format(native[0].backend) not in str(caught.value)


@pytest.fixture
def small(tmp_path):
    """A bundle without PyTorch, its repository and the name of its Python model."""
    bundle = write_bundle(tmp_path / "net")
    build(bundle, ["ort-cpu"])
    return bundle, package(bundle, tmp_path / "models").path, "net-ort-cpu-auto-python"


def change_the_bundle(model: Path) -> None:
    (model / "1" / "bundle" / "targets" / "ort-cpu-auto.onnx").write_bytes(b"changed")


def shorten_the_warmup(model: Path) -> None:
    file = model / "warmup" / read_config(model).model_warmup[0].inputs["x"].input_data_file
    file.write_bytes(file.read_bytes()[:-4])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [(change_the_bundle, "changed since it was written"), (shorten_the_warmup, "warmup")],
)
def test_a_repository_that_was_changed_is_refused_by_the_server(small, spoil, said):
    _, folder, name = small
    spoil(folder / name)
    with (
        pytest.raises(BuildError, match=said) as caught,
        serve(folder, [name], server_environment(), free_address()),
    ):
        pytest.fail("the server took it")
    assert "\n" not in str(caught.value)


@contextmanager
def command(bundle: Path):
    """Start ``crelu serve`` and yield its process and its ready line."""
    found, address = server_environment(), free_address()
    ports = [f"--{kind}-port={getattr(address, kind)}" for kind in ("http", "grpc", "metrics")]
    arguments = ["serve", str(bundle), *ports, f"--server-env={found.folder}", "--json"]
    main = "from crelu_deploy.cli import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", main, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(bundle.parent)},
    ) as process:
        try:
            text = ""
            while not text.endswith("}\n") or text.count("{") > text.count("}"):
                line = process.stdout.readline()
                assert line, process.stderr.read()
                text += line
            yield process, json.loads(text)
        finally:
            process.kill()


def children(parent: int) -> set[int]:
    """Return all processes that a process started, and those that these started."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if int(fields[1]) == parent and fields[0] != "Z":
            found |= {int(status.parent.name), *children(int(status.parent.name))}
    return found


def await_end(processes: set[int]) -> set[int]:
    """Return which of some processes still run after a while."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        processes = {p for p in processes if running(p)}
        if not processes:
            break
        time.sleep(0.1)
    return processes


def running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 0), (signal.SIGKILL, -9)]
)
def test_nothing_is_left_running(small, sent, code):
    bundle = small[0]
    with command(bundle.path) as (process, ready):
        assert ready["ready"]
        assert [model["name"] for model in ready["models"]] == ["net-ort-cpu-auto-python"]
        assert urlopen(f"{ready['http']}/v2/health/ready", timeout=10).status == 200
        started = children(process.pid)
        assert len(started) >= 2  # the server and its stub
        process.send_signal(sent)
        errors = process.communicate(timeout=60)[1]
        assert process.returncode == code
        assert "Traceback" not in errors
        assert await_end(started) == set()


def test_the_server_ends_with_its_block(small):
    _, folder, name = small
    before = children(os.getpid())
    with serve(folder, [name], server_environment(), free_address()) as server:
        started = children(os.getpid()) - before
        assert any("tritonserver" in name_of(process) for process in started)
        files = server.log.parent
    assert not {process for process in started if running(process)}
    assert not files.exists()


def test_a_server_that_dies_is_one_line(small):
    with command(small[0].path) as (process, _):
        (server,) = (p for p in children(process.pid) if "tritonserver" in name_of(p))
        os.kill(server, signal.SIGKILL)
        errors = process.communicate(timeout=60)[1].splitlines()
        assert process.returncode == 1
        assert errors[-1].startswith("error: the Triton server ended with code -9")


def name_of(process: int) -> str:
    return Path(f"/proc/{process}/cmdline").read_text().split("\0")[0]
