"""The compiled kernel on a GPU, through the TensorRT plugin's ``enqueue``: values, bandwidth.

On a dry run the same plugin computes on the host.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from gpu_rows import OK, WRONG, Check, Missing, Row

from crelu_deploy import native
from crelu_deploy.errors import BackendUnavailable

BUILT = Path(__file__).resolve().parent.parent / "build" / "plugins"
POINTER, I64 = ctypes.c_void_p, ctypes.c_int64

TYPES = {torch.float32: 0, torch.float16: 1, torch.int8: 2, torch.bfloat16: 7}
FORMATS = {"LINEAR": 0, "HWC8": 2, "CHW32": 5, "HWC": 8, "HWC16": 11}
"""As in TensorRT's ``DataType`` and ``TensorFormat``."""

PAIRS = (
    *((dtype, "LINEAR") for dtype in TYPES),
    *((torch.float32, layout) for layout in ("HWC", "CHW32")),
    *((torch.float16, layout) for layout in ("HWC8", "HWC16", "CHW32")),
    *((torch.bfloat16, layout) for layout in ("HWC8",)),
    *((torch.int8, layout) for layout in ("HWC16", "CHW32")),
)
SHAPES = ((2, 96, 32, 32), (3, 32, 7, 5), (1, 64, 9, 9), (0, 32, 4, 4))
LARGE = ((256, 96, 64, 64), (64, 128, 112, 112), (512, 75, 49, 49))  # the last one has odd rows


class Plugin:
    """A CReLU on axis 1 behind TensorRT's interface, called without TensorRT."""

    def __init__(self, device: torch.device) -> None:
        """Load the driver and the library; Missing where one is not built."""
        driver = BUILT / "libtensorrt_driver.so"
        library = BUILT / "libcrelu_tensorrt_emulated.so"
        if device.type == "cuda":
            try:
                library = native.library("tensorrt")
            except BackendUnavailable as error:
                raise Missing(str(error)) from error
        for path in (driver, library):
            if not path.is_file():
                raise Missing(f"{path.name} is not built; run: make plugins")
        self._driver = ctypes.CDLL(str(driver))
        self._driver.creator_of.restype = self._driver.create.restype = POINTER
        self._driver.create.argtypes = [
            POINTER,
            ctypes.c_char_p,
            ctypes.c_int32,
            I64,
            ctypes.c_int32,
        ]
        self._driver.enqueue.argtypes = [POINTER, *[ctypes.c_int32] * 3, *[POINTER] * 4]
        self._driver.said.restype = ctypes.c_char_p
        creator = self._driver.creator_of(bytes(library))
        self._plugin = self._driver.create(creator, b"axis", 32, 1, 1)

    def __call__(
        self, x: torch.Tensor, y: torch.Tensor, dims: tuple[int, ...], layout: str = "LINEAR"
    ) -> None:
        """Enqueue on the default stream; x and y are packed as ``layout``."""
        kind, scales = TYPES[x.dtype], (ctypes.c_float * 2)(1, 1)
        shape = (I64 * len(dims))(*dims)
        pointers = scales, x.data_ptr(), y.data_ptr()
        status = self._driver.enqueue(
            self._plugin, kind, FORMATS[layout], len(dims), shape, *pointers
        )
        if status:
            raise RuntimeError(f"enqueue returned {status}: {self._driver.said().decode()}")


def packed(x: torch.Tensor, layout: str) -> torch.Tensor:
    """Return the memory of an NCHW tensor in a format of TensorRT."""
    if layout.startswith("HWC"):
        return x.permute(0, 2, 3, 1).contiguous()
    if layout == "CHW32":
        n, c, h, w = x.shape
        return x.reshape(n, c // 32, 32, h, w).permute(0, 1, 3, 4, 2).contiguous()
    return x.contiguous()


def _values(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return random values with infinities and NaNs; for int8 with both ends of its range."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator) * 40
    special = (-128.0, 127.0) if dtype == torch.int8 else (torch.inf, -torch.inf, torch.nan, -0.0)
    for i, value in enumerate(special):
        x.view(-1)[i::97] = value
    if dtype == torch.int8:
        x = x.clamp(-128, 127)
    return x.to(dtype).to(device)


def _reference(x: torch.Tensor) -> torch.Tensor:
    """Return CReLU by PyTorch, computed in float32."""
    wide = x.float()
    y = torch.cat([torch.relu(wide), torch.relu(-wide)], 1)
    return (y.clamp(max=127) if x.dtype == torch.int8 else y).to(x.dtype)


def correctness(device: torch.device) -> Iterator[Row]:
    """Compare with PyTorch, each type in each format."""
    plugin = Plugin(device)
    for dtype, layout in PAIRS:
        wrong = [shape for shape in SHAPES if not _agrees(plugin, shape, dtype, layout, device)]
        case = f"{str(dtype).removeprefix('torch.')} {layout}"
        note = (
            f"differs from PyTorch at {wrong}"
            if wrong
            else f"equal to PyTorch in {len(SHAPES)} shapes"
        )
        yield Row("kernel", case, WRONG if wrong else OK, note=note)


def _agrees(
    plugin: Plugin, shape: tuple[int, ...], dtype: torch.dtype, layout: str, device: torch.device
) -> bool:
    x = _values(shape, dtype, device)
    wanted = packed(_reference(x), layout)
    y = torch.empty_like(wanted)
    plugin(packed(x, layout), y, shape, layout)
    if dtype == torch.int8:
        return torch.equal(y, wanted)
    return bool(((y == wanted) | (y.isnan() & wanted.isnan())).all())


def bandwidth(device: torch.device) -> Iterator[Row]:
    """Compare bytes per second with those of a copy of as many bytes, in one run."""
    plugin = Plugin(device)
    dry = device.type == "cpu"
    for dtype in (torch.float32, torch.float16, torch.int8):
        for shape in ((2, 32, 16, 16),) if dry else LARGE:
            ours, copy = _bandwidths(plugin, shape, dtype, device)
            case = f"{str(dtype).removeprefix('torch.')} {'x'.join(map(str, shape))}"
            note = f"of a copy's bandwidth; {ours / 1e9:.0f} GB/s against {copy / 1e9:.0f} GB/s"
            if dry:
                yield Row("bandwidth", case, OK, note="ran; the CPU's bandwidth says nothing")
            else:
                yield Row("bandwidth", case, OK, ours / copy, note)


def _bandwidths(
    plugin: Plugin, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> tuple[float, float]:
    """Return bytes read and written per second: by the kernel, by a copy."""
    x = torch.ones(shape, dtype=dtype, device=device)
    y = torch.empty((shape[0], 2 * shape[1], *shape[2:]), dtype=dtype, device=device)
    moved = x.nbytes + y.nbytes
    source = torch.empty(moved // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    kernel = _seconds(lambda: plugin(x, y, shape), device)
    return moved / kernel, moved / _seconds(lambda: target.copy_(source), device)


def _seconds(call: Callable[[], object], device: torch.device, runs: int = 50) -> float:
    """Return the device's time for one call."""
    if device.type == "cpu":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(5):
        call()
    start_event.record()
    for _ in range(runs):
        call()
    end_event.record()
    torch.cuda.synchronize()
    return start_event.elapsed_time(end_event) / 1e3 / runs


def checks(device: torch.device) -> list[Check]:
    """Return the checks of the kernel."""
    return [
        ("kernel", "every type and format", lambda: correctness(device)),
        ("bandwidth", "against a device copy", lambda: bandwidth(device)),
    ]
