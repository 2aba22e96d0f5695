"""The TensorRT plugin without a GPU: TensorRT's own registry, and every format on the host.

The real library is loaded by the registry of TensorRT's dispatch runtime. The emulated one is the
same plugin over the kernel's body on the host, so that ``enqueue`` computes.
"""

from __future__ import annotations

import ctypes
import math
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from kernel_values import KERNEL_TYPES, awkward, check_bits, expected

from crelu_deploy import native
from crelu_deploy.errors import BackendUnavailable

BUILT = Path(__file__).resolve().parent.parent / "build" / "plugins"
POINTER, TEXT, I32, I64 = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32, ctypes.c_int64
NOBODY_KNOWS = -1  # an extent that is known at run time only

TYPES = {"float32": 0, "float16": 1, "int8": 2, "int32": 3, "bool": 4, "bfloat16": 7, "int64": 8}
"""As in TensorRT's ``DataType``."""

FORMATS = {
    "LINEAR": 0,
    "CHW2": 1,
    "HWC8": 2,
    "CHW4": 3,
    "CHW16": 4,
    "CHW32": 5,
    "DHWC8": 6,
    "CDHW32": 7,
    "HWC": 8,
    "DLA_LINEAR": 9,
    "DLA_HWC4": 10,
    "HWC16": 11,
    "DHWC": 12,
}
"""As in TensorRT's ``TensorFormat``."""

SUPPORTED = {
    "float32": ("LINEAR", "HWC", "DHWC", "CHW32"),
    "float16": ("LINEAR", "CHW2", "HWC8", "HWC16", "DHWC8", "CHW32", "CDHW32"),
    "bfloat16": ("LINEAR", "CHW2", "HWC8", "DHWC8"),
    "int8": ("LINEAR", "CHW4", "HWC16", "CHW32", "CDHW32"),
}
PAIRS = [(name, layout) for name, layouts in SUPPORTED.items() for layout in layouts]


def spatial(layout: str) -> int:
    """The number of axes behind the channels."""
    return 3 if "D" in layout else 2


def channels_per_vector(layout: str) -> int:
    """How many channels a format keeps together."""
    return int("".join(filter(str.isdigit, layout)) or 1)


def pack(x: np.ndarray, layout: str) -> np.ndarray:
    """Return the memory that TensorRT gives a tensor of this format."""
    if layout == "LINEAR":
        return np.ascontiguousarray(x)
    channel = x.ndim - spatial(layout) - 1
    if "HWC" in layout:
        return np.ascontiguousarray(np.moveaxis(x, channel, -1))
    vector = channels_per_vector(layout)
    shape = (*x.shape[:channel], x.shape[channel] // vector, vector, *x.shape[channel + 1 :])
    return np.ascontiguousarray(np.moveaxis(x.reshape(shape), channel + 1, -1))


def built(name: str) -> str:
    """Return the path of something that ``make plugins`` builds for these tests."""
    path = BUILT / f"lib{name}.so"
    return str(path) if path.is_file() else pytest.skip(f"{path.name} is not built: make plugins")


@pytest.fixture(scope="module")
def driver() -> ctypes.CDLL:
    """Calls plugins as TensorRT does."""
    library = ctypes.CDLL(built("tensorrt_driver"))
    makers = {
        "creator_of": [TEXT],
        "create": [POINTER, TEXT, I32, I64, I32],
        "create_without_fields": [POINTER],
        "revive": [POINTER, POINTER],
        "clone": [POINTER],
        "attach": [POINTER],
    }
    for name, arguments in makers.items():
        getattr(library, name).restype = POINTER
        getattr(library, name).argtypes = arguments
    library.said.restype = library.timing_cache_id.restype = TEXT
    library.timing_cache_id.argtypes = library.destroy.argtypes = [POINTER]
    library.output_shape.argtypes = [POINTER, I32, POINTER, POINTER]
    library.output_type.argtypes = [POINTER, I32]
    library.supports.argtypes = [POINTER, I32, I32, POINTER, POINTER]
    library.enqueue.argtypes = [POINTER, I32, I32, I32, POINTER, POINTER, POINTER, POINTER]
    return library


@pytest.fixture(scope="module")
def real() -> Path:
    """The installed library."""
    try:
        return native.library("tensorrt")
    except BackendUnavailable as error:
        return pytest.skip(str(error))


@pytest.fixture(scope="module")
def trt(real: Path) -> ModuleType:
    """TensorRT's dispatch runtime, which has loaded the real library into its registry."""
    dispatch = pytest.importorskip(
        "tensorrt_dispatch_bindings",
        reason="no TensorRT registry: pip install --no-deps tensorrt-dispatch-cu13-libs "
        "tensorrt-dispatch-cu13-bindings",
    )
    assert dispatch.get_plugin_registry().load_library(str(real)) is not None
    return dispatch


@pytest.fixture(scope="module")
def installed(driver: ctypes.CDLL, real: Path) -> int:
    """The creator in the installed library."""
    creator = driver.creator_of(bytes(real))
    assert creator, driver.said()
    return creator


@pytest.fixture(scope="module")
def emulated(driver: ctypes.CDLL) -> int:
    """The creator of the plugin that computes on the host."""
    creator = driver.creator_of(built("crelu_tensorrt_emulated").encode())
    assert creator, driver.said()
    return creator


@pytest.fixture(scope="module", params=["installed", "emulated"])
def creator(request: pytest.FixtureRequest) -> int:
    """Each of the two creators."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def on_axis_1(driver: ctypes.CDLL, creator: int) -> Iterator[int]:
    """A plugin that doubles axis 1."""
    plugin = make(driver, creator, 1)
    yield plugin
    driver.destroy(plugin)


def make(driver: ctypes.CDLL, creator: int, axis: int, *, field_type: int = 32) -> int:
    """Return a plugin; the driver destroys none."""
    plugin = driver.create(creator, b"axis", field_type, axis, 1)
    assert plugin, driver.said()
    return plugin


def output_shape(driver: ctypes.CDLL, plugin: int, dims: Sequence[int]) -> list[int] | None:
    """Return the shape that the plugin declares, None where it refuses."""
    out = (I64 * len(dims))()
    made = driver.output_shape(plugin, len(dims), (I64 * len(dims))(*dims), out)
    return list(out) if made else None


def supports(
    driver: ctypes.CDLL, plugin: int, dims: Sequence[int], io: Sequence[int], *, pos: int = 0
) -> bool:
    """Ask for one combination; ``io`` is type and format of the input, then of the output."""
    shape = (I64 * len(dims))(*dims)
    return bool(driver.supports(plugin, pos, len(dims), shape, (I32 * 4)(*io)))


def enqueue(
    driver: ctypes.CDLL,
    plugin: int,
    x: np.ndarray,
    layout: str = "LINEAR",
    *,
    axis: int = 1,
    scales: tuple[float, float] = (1, 1),
) -> tuple[int, np.ndarray]:
    """Return the status, and the output's memory."""
    memory = pack(x, layout)
    y = np.zeros_like(pack(np.concatenate([x, x], axis), layout))
    dims, pair = (I64 * x.ndim)(*x.shape), (ctypes.c_float * 2)(*scales)
    kind = TYPES[x.dtype.name]
    place = memory.ctypes.data, y.ctypes.data
    return driver.enqueue(plugin, kind, FORMATS[layout], x.ndim, dims, pair, *place), y


def test_the_library_needs_no_tensorrt_and_exports_two_names(real: Path) -> None:
    readelf, nm = (shutil.which(tool) or pytest.skip(f"no {tool}") for tool in ("readelf", "nm"))
    needed = subprocess.check_output([readelf, "-d", real], text=True)
    assert re.findall(r"NEEDED.*\[(.*)\]", needed)
    assert "nvinfer" not in needed
    assert "cuda" not in needed
    names = subprocess.check_output([nm, "-D", "--defined-only", real], text=True)
    assert set(re.findall(r" T (\w+)", names)) == {"getCreators", "setLoggerFinder"}


@pytest.fixture(scope="module")
def found(trt: ModuleType) -> Any:
    """The creator as Python's registry gives it."""
    return trt.get_plugin_registry().get_creator("CReLU", "1", "crelu_deploy")


@pytest.mark.tensorrt
def test_the_registry_finds_the_plugin_by_its_names(trt: ModuleType, found: Any) -> None:
    creators = trt.get_plugin_registry().all_creators
    assert [(each.name, each.plugin_namespace) for each in creators] == [("CReLU", "crelu_deploy")]
    assert [field.name for field in found.field_names] == ["axis"]
    for other in (
        ("CReLU", "2", "crelu_deploy"),
        ("CReLU", "1", ""),
        ("Crelu", "1", "crelu_deploy"),
    ):
        assert trt.get_plugin_registry().get_creator(*other) is None


@pytest.mark.tensorrt
@pytest.mark.parametrize(
    ("name", "value", "kind", "made"),
    [
        ("axis", np.array([-3], np.int32), "INT32", True),
        ("axis", np.array([1], np.int64), "INT64", True),
        ("axis", np.array([1], np.float32), "FLOAT32", False),
        ("axis", np.array([1, 2], np.int32), "INT32", False),
        ("dim", np.array([1], np.int32), "INT32", False),
    ],
)
def test_python_makes_the_plugin(
    trt: ModuleType, found: Any, name: str, value: np.ndarray, kind: str, made: bool
) -> None:
    field = trt.PluginField(name, value, getattr(trt.PluginFieldType, kind))
    fields = trt.PluginFieldCollection([field])
    plugin = found.create_plugin("node", fields, trt.TensorRTPhase.BUILD)
    assert (plugin is not None) == made


@pytest.mark.parametrize("field_type", [32, 64])
@pytest.mark.parametrize(
    ("axis", "dims", "wanted"),
    [
        (1, (8, 96, 32, 32), [8, 192, 32, 32]),
        (1, (NOBODY_KNOWS, 96, 32, 32), [NOBODY_KNOWS, 192, 32, 32]),
        (1, (8, NOBODY_KNOWS, 3, 4), [8, NOBODY_KNOWS, 3, 4]),
        (-3, (8, 96, 32, 32), [8, 192, 32, 32]),
        (0, (5,), [10]),
        (-1, (2, 3), [2, 6]),
        (7, (1,) * 8, [1, 1, 1, 1, 1, 1, 1, 2]),
        (1, (0, 4), [0, 8]),
        (1, (2, 2**33), [2, 2**34]),
        (4, (8, 96, 32, 32), None),
        (-5, (8, 96, 32, 32), None),
    ],
)
def test_the_axis_doubles(
    driver: ctypes.CDLL, creator: int, field_type: int, axis: int, dims: tuple, wanted: list | None
) -> None:
    plugin = make(driver, creator, axis, field_type=field_type)
    assert output_shape(driver, plugin, dims) == wanted
    if wanted is None:
        assert driver.said() == f"CReLU: axis {axis} is outside rank 4 of its input".encode()


@pytest.mark.parametrize(
    ("name", "field_type", "value", "length", "message"),
    [
        (b"axis", 0, 1, 1, b"must be one 32-bit or 64-bit integer"),
        (b"axis", 32, 1, 2, b"must be one 32-bit or 64-bit integer"),
        (b"axis", 32, 1, 0, b"must be one 32-bit or 64-bit integer"),
        (b"axis", 64, 2**31, 1, b"must be one 32-bit or 64-bit integer"),
        (b"axis", 64, -(2**31) - 1, 1, b"must be one 32-bit or 64-bit integer"),
        (b"dim", 32, 1, 1, b"field axis is missing"),
    ],
)
def test_a_bad_field_makes_no_plugin(
    driver: ctypes.CDLL,
    creator: int,
    name: bytes,
    field_type: int,
    value: int,
    length: int,
    message: bytes,
) -> None:
    assert driver.create(creator, name, field_type, value, length) is None
    assert message in driver.said()


def test_no_field_makes_no_plugin(driver: ctypes.CDLL, creator: int) -> None:
    assert driver.create_without_fields(creator) is None
    assert b"field axis is missing" in driver.said()


@pytest.mark.parametrize("name", TYPES)
def test_the_output_has_the_input_s_type(driver: ctypes.CDLL, on_axis_1: int, name: str) -> None:
    assert driver.output_type(on_axis_1, TYPES[name]) == TYPES[name]


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("layout", FORMATS)
def test_the_table_of_formats(driver: ctypes.CDLL, on_axis_1: int, name: str, layout: str) -> None:
    dims = (2, 96, *(4, 5, 6)[: spatial(layout)])
    wanted = layout in SUPPORTED.get(name, ())
    pair = (TYPES[name], FORMATS[layout])
    assert supports(driver, on_axis_1, dims, (*pair, *pair)) == wanted


@pytest.mark.parametrize(("name", "layout"), PAIRS)
def test_the_output_must_be_as_the_input(
    driver: ctypes.CDLL, on_axis_1: int, name: str, layout: str
) -> None:
    dims = (2, 96, *(4, 5, 6)[: spatial(layout)])
    pair = (TYPES[name], FORMATS[layout])
    for kind in TYPES.values():
        for other in FORMATS.values():
            same = (kind, other) == pair
            assert supports(driver, on_axis_1, dims, (*pair, kind, other), pos=1) == same


@pytest.mark.parametrize(
    ("name", "layout", "axis", "dims", "wanted"),
    [
        ("float16", "HWC8", 1, (2, 20, 4, 5), False),  # padded channels
        ("float16", "HWC8", 1, (2, NOBODY_KNOWS, 4, 5), False),
        ("float16", "HWC8", 1, (NOBODY_KNOWS, 24, NOBODY_KNOWS, 5), True),
        ("float16", "HWC8", 2, (2, 24, 8, 5), False),  # not the channel axis
        ("float16", "HWC8", 0, (24, 4, 5), True),
        ("float16", "HWC8", 1, (2, 24), False),
        ("float16", "DHWC8", 1, (2, 24, 3, 4, 5), True),
        ("float16", "DHWC8", 2, (2, 3, 24, 4, 5), False),
        ("float32", "HWC", 1, (2, NOBODY_KNOWS, 4, 5), True),
        ("float32", "HWC", -3, (2, 3, 4, 5), True),
        ("int8", "CHW32", 1, (2, 48, 4, 5), False),
        ("float32", "LINEAR", 2, (2, 3, 7, 5), True),
        ("float32", "LINEAR", 4, (2, 3, 7, 5), False),
    ],
)
def test_a_format_fits_channels_and_axis(
    driver: ctypes.CDLL, creator: int, name: str, layout: str, axis: int, dims: tuple, wanted: bool
) -> None:
    plugin = make(driver, creator, axis)
    pair = (TYPES[name], FORMATS[layout])
    assert supports(driver, plugin, dims, (*pair, *pair)) == wanted


@pytest.mark.parametrize("way", ["revive", "clone", "attach"])
def test_copies_outlive_their_original(driver: ctypes.CDLL, creator: int, way: str) -> None:
    plugin = make(driver, creator, -2)
    source = (creator, plugin) if way == "revive" else (plugin,)
    copy = getattr(driver, way)(*source)
    driver.destroy(plugin)
    again = driver.revive(creator, copy)
    for each in (copy, again):
        assert output_shape(driver, each, (2, 3, 4, 5)) == [2, 3, 8, 5]
        assert driver.timing_cache_id(each) == b"axis=-2"
        driver.destroy(each)


@pytest.mark.parametrize(("name", "layout"), PAIRS)
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_every_format_computes(
    driver: ctypes.CDLL, emulated: int, name: str, layout: str, batch: int
) -> None:
    plugin = make(driver, emulated, 1)
    shape = (batch, 2 * channels_per_vector(layout), *(3, 2, 5)[: spatial(layout)])
    x = awkward(name, shape, seed=batch)
    status, y = enqueue(driver, plugin, x, layout)
    assert status == 0
    check_bits(y, pack(expected(x), layout))


@pytest.mark.parametrize("name", KERNEL_TYPES)
@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1, -4])
def test_every_axis_computes(driver: ctypes.CDLL, emulated: int, name: str, axis: int) -> None:
    plugin = make(driver, emulated, axis)
    x = awkward(name, (2, 3, 5, 4))
    status, y = enqueue(driver, plugin, x, axis=axis)
    assert status == 0
    check_bits(y, expected(x, axis))


@pytest.mark.parametrize(("scales", "status"), [((0.5, 0.5), 0), ((-1, -1), 0), ((0.5, 0.25), -1)])
def test_int8_keeps_its_scale(
    driver: ctypes.CDLL, emulated: int, scales: tuple[float, float], status: int
) -> None:
    plugin = make(driver, emulated, 1)
    x = awkward("int8", (2, 4))
    assert enqueue(driver, plugin, x, scales=scales)[0] == status
    if status:
        assert driver.said() == b"CReLU: int8 input has scale 0.5, output 0.25; they must be equal"


def test_a_shape_that_cannot_be_doubled_is_refused(driver: ctypes.CDLL, emulated: int) -> None:
    plugin = make(driver, emulated, 1)
    x = awkward("float16", (1, 12, 2, 2))
    assert enqueue(driver, plugin, x, "HWC8")[0] == -1
    assert driver.said() == b"CReLU: axis 1 cannot be doubled in type 1 and format 2"


def gpu_is_here() -> bool:
    """Whether a driver answers."""
    tool = shutil.which("nvidia-smi")
    return tool is not None and subprocess.run([tool], capture_output=True).returncode == 0


@pytest.mark.skipif(gpu_is_here(), reason="needs a machine without a GPU")
def test_without_a_gpu_the_error_of_cuda_comes_back(driver: ctypes.CDLL, installed: int) -> None:
    plugin = make(driver, installed, 1)
    status, _ = enqueue(driver, plugin, awkward("float32", (2, 4)))
    assert status > 0
    assert re.fullmatch(rb"CReLU: .*(driver|device).*", driver.said())


def test_an_empty_tensor_needs_no_gpu(driver: ctypes.CDLL, installed: int) -> None:
    plugin = make(driver, installed, 1)
    x = np.zeros((0, 4), np.float32)
    assert math.prod(x.shape) == 0
    assert enqueue(driver, plugin, x)[0] == 0
