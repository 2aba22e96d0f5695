"""TensorRT-RTX engines, built without a GPU: what fuses, what is noted, what is refused."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path

import onnx_ir as ir
import pytest
from graphs import ALL, Case, model, run, values
from tables import mostly

from crelu_deploy import native
from crelu_deploy.backends import engines
from crelu_deploy.backends.engines import Note, Recipe, engine_file, note_file
from crelu_deploy.bundle import MODEL, SAMPLES, Bundle, sha256
from crelu_deploy.cli import run as command_line
from crelu_deploy.errors import BackendUnavailable, BuildError, UnsupportedModel
from crelu_deploy.lowerings import lower
from crelu_deploy.manifest import FORMAT
from crelu_deploy.passes import clean
from crelu_deploy.pipeline import bench, build, load, verify
from crelu_deploy.precision import reduce_precision
from crelu_deploy.profiles import Range
from crelu_deploy.quantization import quantize_file
from crelu_deploy.recognition import recognize
from crelu_deploy.results import Build
from crelu_deploy.runner import TensorSpec
from crelu_deploy.samples import Sample, save_samples
from crelu_deploy.sites import find_sites
from crelu_deploy.targets import Options, Target
from crelu_deploy.writing import save_model

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX: pip install tensorrt-rtx-cu13")
pytestmark = pytest.mark.tensorrt

PLAIN = Options()
SITES = 3
BODY = """
[c1] a = Conv<pads=[1,1,1,1]>(x, w1, b1) [s1] k = crelu_deploy.CReLU<axis=1>(a)
[c2] d = Conv<pads=[1,1,1,1]>(k, w2, b2) [s2] l = crelu_deploy.CReLU<axis=1>(d)
[c3] z = Conv<pads=[1,1,1,1]>(l, w3, b3)
"""
END = "[s3] m = crelu_deploy.CReLU<axis={axis}>(z) [c4] y = Conv(m, w4)"
WEIGHTS = {
    "w1": (48, 16, 3, 3),
    "w2": (48, 96, 3, 3),
    "w3": (48, 96, 3, 3),
    "w4": (16, 96, 1, 1),
    **dict.fromkeys(("b1", "b2", "b3"), (48,)),
}
IMAGE = (2, 16, 32, 32)


def network() -> ir.Model:
    """Return a network with three sites between convolutions, dynamic in its batch."""
    small = {name: values(name, shape) * 0.03 for name, shape in WEIGHTS.items()}
    return model(Case(BODY.replace("\n", " "), IMAGE, small), END)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, dict[str, Build]]:
    """A bundle of the network with engines of every form, and how their builds ended."""
    path = tmp_path_factory.mktemp("rtx") / "bundle"
    path.mkdir()
    found = network()
    files = save_model(found, path / MODEL)
    x = values("x", IMAGE)
    save_samples(path / SAMPLES, (Sample({"x": x}, {"y": run(found, x, ALL)[0]}),))
    bundle = Bundle(path, {"format": FORMAT, "files": {}})
    bundle.record(
        (*files, path / SAMPLES),
        source=None,
        inputs=[asdict(TensorSpec("x", "float32", ("N", *IMAGE[1:])))],
        outputs=["y"],
        sites=[asdict(site) for site in find_sites(found)],
        targets={},
    )
    targets = [f"{backend}:{form}" for backend in ("trt-rtx", "trt-rtx-fp16") for form in KERNELS]
    done = build(bundle, [*targets, "trt-rtx", "trt-rtx:function"])
    return bundle, {str(result.target): result for result in done}


KERNELS = {"primitive": 2, "mirror": 1, "fold": 0}
"""Lowering -> pointwise kernels that are left at each site."""


def note_of(bundle: Bundle, target: str) -> Note:
    return Note.read(note_file(engine_file(bundle, Target.parse(target))))


@pytest.mark.parametrize("backend", ["trt-rtx", "trt-rtx-fp16"])
@pytest.mark.parametrize(("form", "kernels"), KERNELS.items(), ids=KERNELS)
def test_pointwise_kernels_of_each_site(made, backend, form, kernels):
    bundle, done = made
    target = f"{backend}:{form}"
    assert done[target].error == ""
    note = note_of(bundle, target)
    assert len(note.pointwise) == kernels * SITES, note.layers
    convolutions = [layer for layer in note.layers if layer["type"] == "correlation"]
    assert len(convolutions) == SITES + 1


def test_auto_folds_short_sums_and_mirrors_the_others(made):
    bundle, done = made
    chosen = dict(done["trt-rtx:auto"].lowerings)
    assert chosen == {"s1": "fold", "s2": "mirror", "s3": "mirror"}
    assert len(note_of(bundle, "trt-rtx:auto").pointwise) == 2


def test_functions_are_read(made):
    bundle, done = made
    assert done["trt-rtx:function"].error == ""
    assert len(note_of(bundle, "trt-rtx:function").pointwise) == SITES


def test_what_is_noted(made):
    bundle, _ = made
    note = note_of(bundle, "trt-rtx:mirror")
    assert (note.runtime, note.version) == ("TensorRT-RTX", trt.__version__)
    assert {"SM80", "SM86", "SM89", "SM120"} <= set(note.devices)
    assert note.ranges == {"x": Range((1, *IMAGE[1:]), IMAGE, (64, *IMAGE[1:]))}
    for file in ("targets/trt-rtx-mirror.engine", "targets/trt-rtx-mirror.engine.json"):
        assert bundle.manifest["files"][file] == sha256(bundle.path / file)
    Bundle.open(bundle.path)


def test_half_precision_makes_a_smaller_engine(made):
    bundle, _ = made
    whole, half = (
        engine_file(bundle, Target.parse(f"{name}:fold")).stat().st_size
        for name in ("trt-rtx", "trt-rtx-fp16")
    )
    assert half < 0.9 * whole


def test_without_a_gpu_it_is_built_and_says_where_it_runs(made):
    pytest.importorskip("cuda.bindings", reason="pip install cuda-bindings")
    bundle, _ = made
    (found,) = verify(bundle, ["trt-rtx:mirror"])
    if found.passed:
        pytest.skip("there is a GPU here, and the engine runs on it")
    assert (found.skipped, found.comparison) == (True, None)
    assert found.error.startswith("built, not run: no NVIDIA GPU")
    assert f"crelu verify {bundle.path.name} -t trt-rtx:mirror" in found.error
    assert f"TensorRT-RTX {trt.__version__}" in found.error
    timed = bench(bundle, ["trt-rtx:mirror"])
    assert [str(row.target) for row in timed.rows] == ["ort-cpu:primitive"]
    with pytest.raises(BackendUnavailable, match="built, not run"):
        load(bundle, "trt-rtx:mirror")


@pytest.mark.torch
def test_deploy_builds_it_and_says_how_to_run_it(digits, tmp_path, capsys):
    pytest.importorskip("torch")
    out = tmp_path / "out"
    arguments = ["-o", str(out), "-t", "trt-rtx", "-t", "ort-cpu", "--budget", "0", "--runs", "3"]
    assert command_line(["deploy", str(digits), *arguments, "--json", "-q"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["build"]["passed"]
    verdicts = {row["target"]: row for row in done["verify"]["targets"]}
    assert verdicts["ort-cpu:auto"]["passed"]
    found = verdicts["trt-rtx:auto"]
    if found["passed"]:
        pytest.skip("there is a GPU here, and the engine runs on it")
    assert found["skipped"]
    assert "crelu verify out -t trt-rtx:auto" in found["worst"]
    assert not {"trt-rtx:auto"} & {row["target"] for row in done["bench"]["rows"]}
    assert command_line(["verify", str(out), "-t", "trt-rtx", "-q"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: 1 of 1 targets not here (trt-rtx:auto): built, not run: ")


def test_the_shapes_can_be_said(made):
    bundle, _ = made
    text = "1x16x32x32/4x16x32x32/8x16x32x32"
    (done,) = build(bundle, ["trt-rtx:mirror"], Options(shapes=(text,)))
    assert done.error == ""
    assert str(note_of(bundle, "trt-rtx:mirror").ranges["x"]) == text
    Bundle.open(bundle.path)
    (refused,) = build(bundle, ["trt-rtx:mirror"], Options(shapes=("z:" + text,)))
    assert refused.error == "shapes of 'z': the inputs are x"
    build(bundle, ["trt-rtx:mirror"])


WITHOUT_DRIVER = {
    "workspace": (Options(workspace=1), "no engine: .* no tactics .* within workspace limit"),
    "refit": (Options(refit=True), "no engine with REFIT: "),
    "version-compatible": (Options(version_compatible=True), "no engine with VERSION_COMPATIBLE: "),
}


@pytest.mark.parametrize(("options", "said"), WITHOUT_DRIVER.values(), ids=WITHOUT_DRIVER)
def test_what_cannot_be_had_is_said_in_a_line(options, said, tmp_path):
    """TensorRT-RTX wants a driver for the one option, and for the other a library."""
    if (options.refit or options.version_compatible) and has_driver():
        pytest.skip("there is a GPU here, and the engine is built")
    with pytest.raises(BuildError, match=f"^TensorRT-RTX refuses it: {said}.*$"):
        built(lower(network(), "mirror").model, tmp_path, options=options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (Options(refit=True), "--refit: TensorRT-RTX can only do so for one device"),
        (Options(version_compatible=True), "--version-compatible: TensorRT-RTX 1.* has no such"),
    ],
)
def test_the_target_has_neither(made, options, said):
    (done,) = build(made[0], ["trt-rtx:mirror"], options)
    assert re.match(said, done.error)
    assert engine_file(made[0], Target.parse("trt-rtx:mirror")).is_file()  # the earlier one stays


def has_driver() -> bool:
    pytest.importorskip("cuda.bindings", reason="pip install cuda-bindings")
    from crelu_deploy.backends import cuda

    try:
        return bool(cuda.find_device())
    except BackendUnavailable:
        return False


def test_a_workspace_can_be_said(made):
    bundle, _ = made
    (done,) = build(bundle, ["trt-rtx:mirror"], Options(workspace=2**30))
    assert done.error == ""


def test_the_progress_is_told(made, tmp_path):
    path = tmp_path / "model.onnx"
    save_model(lower(network(), "mirror").model, path)
    recipe = Recipe("tensorrt_rtx", "TensorRT-RTX", ("SM80",), True)
    shapes = {"x": Range(IMAGE, IMAGE, IMAGE)}
    job = engines.make_job(path, tmp_path / "engine", shapes, recipe, Options())
    told: list[str] = []
    engines.run_worker({**job, "period": 0.0}, told.append)
    shares = [int(text.removesuffix("%")) for text in told]
    assert shares == sorted(shares)
    assert 80 <= shares[-1] <= 100
    assert len(set(shares)) > 10
    told.clear()
    engines.run_worker(job, told.append)
    assert told == []  # it takes less than a period


def test_a_build_shows_which_form_runs(made, capsys):
    bundle, done = made
    for form, kernels in KERNELS.items():
        layers = done[f"trt-rtx:{form}"].layers
        assert layers["correlation"] == SITES + 1
        assert layers.get("pointwise", 0) == kernels * SITES
        assert bundle.manifest["targets"][f"trt-rtx:{form}"]["layers"] == layers
    assert command_line(["build", str(bundle.path), "-t", "trt-rtx:mirror", "-q"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "3 mirror; final layers: 4 correlation, 3 pointwise" in shown
    bundle.reload()


def replaced(bundle: Bundle, file: Path, old: str, new: str) -> Bundle:
    """Return the bundle with a file changed and its hash set right."""
    file.write_text(file.read_text().replace(old, new))
    bundle.record((file,))
    return Bundle.open(bundle.path)


def test_an_engine_of_another_version_is_refused_before_it_is_read(made):
    bundle, _ = made
    file = note_file(engine_file(bundle, Target.parse("trt-rtx:primitive")))
    earlier = file.read_text()
    changed = replaced(bundle, file, trt.__version__, "1.0.0")
    with pytest.raises(BuildError, match=r"built by TensorRT-RTX 1\.0\.0, here is .* run: crelu b"):
        load(changed, "trt-rtx:primitive")
    assert not verify(changed, ["trt-rtx:primitive"])[0].skipped
    file.write_text("{}")
    changed.record((file,))
    with pytest.raises(BuildError, match=r"not the note of an engine .* build again"):
        load(changed, "trt-rtx:primitive")
    file.write_text(earlier)
    changed.record((file,))
    bundle.reload()


def test_a_changed_engine_is_no_part_of_the_bundle(made):
    bundle, _ = made
    file = engine_file(bundle, Target.parse("trt-rtx:fold"))
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    with pytest.raises(UnsupportedModel, match=r"trt-rtx-fold\.engine: changed since"):
        Bundle.open(bundle.path)
    file.write_bytes(content)


def test_an_engine_for_another_gpu_is_refused(made):
    note = note_of(made[0], "trt-rtx:fold")
    note.check(trt.__version__, "SM86", "crelu build b")
    with pytest.raises(
        BuildError, match=r"was built for SM.*, SM.*, this GPU is SM90; run: crelu b"
    ):
        note.check(trt.__version__, "SM90", "crelu build b")


@pytest.mark.parametrize(
    ("flags", "version", "read"),
    [
        ((), "10.12.0.36", True),
        ((), "10.13.0.1", False),
        (("VERSION_COMPATIBLE",), "10.13.0.1", True),
        (("REFIT", "VERSION_COMPATIBLE"), "10.12.1", True),
        (("REFIT",), "10.13.0.1", False),
        (("VERSION_COMPATIBLE",), "10.11.9.1", False),
        (("VERSION_COMPATIBLE",), "11.0.0.1", False),
    ],
)
def test_which_versions_read_an_engine(flags, version, read):
    note = Note("TensorRT", "10.12.0.36", ("A",), {}, (), flags)
    if read:
        assert note.check(version, "A", "again") is None
        return
    with pytest.raises(BuildError, match=rf"built by TensorRT 10\.12\.0\.36, here is {version},"):
        note.check(version, "A", "again")


def built(
    model_: ir.Model | Path, folder: Path, *plugins: Path, options: Options = PLAIN
) -> list[dict[str, str]]:
    """Build an engine of a model by itself, and return its layers."""
    path = model_ if isinstance(model_, Path) else folder / "model.onnx"
    if not isinstance(model_, Path):
        save_model(model_, path)
        graph = model_.graph
    else:
        graph = ir.load(path).graph
    shapes = {}
    for value in graph.inputs:
        dims = [d if isinstance(d, int) else None for d in value.shape or ()]
        sizes = [
            tuple(d or (batch if i == 0 else 128) for i, d in enumerate(dims))
            for batch in (1, 2, 8)
        ]
        shapes[value.name or ""] = Range(*sizes)
    recipe = Recipe("tensorrt_rtx", "TensorRT-RTX", ("SM80", "SM120"), True, plugins)
    job = engines.make_job(path, folder / "engine", shapes, recipe, options)
    layers: list[dict[str, str]] = engines.run_worker(job)["layers"]
    assert (folder / "engine").stat().st_size > 10_000
    return layers


@pytest.mark.parametrize("form", KERNELS)
def test_what_tensorrt_is_to_read_in_bfloat16_and_int8(form, tmp_path):
    lowered = lower(network(), form).model
    layers = built(reduce_precision(lowered, "bfloat16"), tmp_path)
    assert sum(layer["type"] == "correlation" for layer in layers) == SITES + 1
    path = tmp_path / "int8.onnx"
    save_model(lowered, path)
    quantize_file(path, (Sample({"x": values("x", IMAGE)}, {}),), symmetric=True)
    assert "correlation" in {layer["type"] for layer in built(path, tmp_path)}


def test_what_the_parser_refuses_is_said(tmp_path):
    with pytest.raises(BuildError, match=r"refuses it: the parser says: .*Plugin not found"):
        built(lower(network(), "plugin").model, tmp_path)


def test_a_crash_of_the_builder_is_an_error_here(tmp_path):
    """The plugin is registered and found, but TensorRT-RTX has no layer for it."""
    try:
        library = native.library("tensorrt")
    except BackendUnavailable as error:
        pytest.skip(str(error))
    with pytest.raises(BuildError, match=r"^TensorRT-RTX crashed on it \(SIGABRT\): terminate"):
        built(lower(network(), "plugin").model, tmp_path, library)


def test_a_plugin_in_a_plan_is_refused(made):
    bundle, _ = made
    choice = {"s1": "plugin", "s2": "mirror", "s3": "fold"}
    plan = {"backend": "trt-rtx", "how": "rule", "choice": choice, "key": {}, "ratios": {}}
    bundle.record((), plans={"trt-rtx": plan})
    (done,) = build(bundle, ["trt-rtx"])
    bundle.record((), plans={})
    assert done.error == (
        "trt-rtx:auto: TensorRT-RTX has no plugins; choose another lowering for its sites"
    )


# One network of each family; scripts/bench_rtx.py has them all.
FAMILIES = {
    "convpool-c-crelu-9": (1, 3, 32, 32),
    "vgg-crelu-1-3": (1, 3, 32, 32),
    "all-cnn-b-crelu-1-7": (1, 3, 64, 64),
    "faceboxes": (1, 3, 128, 128),
}


@pytest.mark.slow
@pytest.mark.torch
@mostly("name", FAMILIES, fast=["convpool-c-crelu-9"])
def test_every_family_of_networks_builds(name, tmp_path):
    torch = pytest.importorskip("torch")
    from crelu_deploy import export
    from crelu_deploy.models import build as make

    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = FAMILIES[name]
    text = "x".join(map(str, shape))
    bundle = export(make(name).eval(), tmp_path / "b", inputs=[text], samples=1)
    done = build(bundle, ["trt-rtx", "trt-rtx-fp16:mirror"])
    assert [result.error for result in done] == ["", ""]
    assert set(done[1].lowerings.values()) == {"mirror"}
    (found,) = note_of(bundle, "trt-rtx-fp16:mirror").ranges.values()
    assert (found.smallest, found.largest) == (shape, (64, *shape[1:]))


def real(name: str) -> ir.Model:
    """Return a network that somebody trained, with its sites recognised."""
    import test_real_models as trained
    from real_models import real_model

    sources = {
        **{key: lambda key=key: real_model(trained.PLAIN[key]) for key in trained.PLAIN},
        "caffe": trained.caffe,
        "flow": lambda: trained.coupling(1),
    }
    found = sources[name]()
    loaded = ir.load(found) if isinstance(found, Path) else ir.from_proto(found)
    recognize(loaded)
    return clean(loaded)


@pytest.mark.slow
@pytest.mark.torch
@mostly("name", ["3ddfa", "tensorflow", "caffe", "flow"], fast=["flow"])
def test_trained_networks_build(name, tmp_path):
    source = real(name)
    for form in ("mirror", "fold"):
        lowered = lower(source, form).model
        assert built(lowered, tmp_path)
        assert built(reduce_precision(lowered, "float16"), tmp_path)


def test_the_note_is_json_with_the_shapes_as_lists(made):
    bundle, _ = made
    data = json.loads(note_file(engine_file(bundle, Target.parse("trt-rtx:auto"))).read_text())
    assert data["ranges"]["x"]["largest"] == [64, *IMAGE[1:]]
    assert {layer["type"] for layer in data["layers"]} >= {"kgen", "correlation"}
