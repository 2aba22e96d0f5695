"""The ahead-of-time plugin without TensorRT: its PTX, its kernel on the host, its launches."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from kernel_values import awkward, check_bits, expected

from crelu_deploy import native, plugin_aot
from crelu_deploy.errors import BackendUnavailable

TESTS = Path(__file__).resolve().parent
PLUGINS = TESTS.parent / "plugins"
TYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}
STAND_IN = "// not PTX, but TensorRT does not look before it runs an engine\n"

EVERYWHERE = {(dtype, "LINEAR") for dtype in TYPES}
LAST = EVERYWHERE | {("FLOAT", "HWC")}
LAST8 = LAST | {("HALF", "HWC8"), ("BF16", "HWC8")}
LAST16 = LAST8 | {("HALF", "HWC16")}
DEEP = EVERYWHERE | {("FLOAT", "DHWC")}
DEEP8 = DEEP | {("HALF", "DHWC8"), ("BF16", "DHWC8")}

# shape, axis, the pairs of type and format to be offered
CASES = (
    ((2, 96, 5, 7), 1, LAST16),
    ((2, 96, 5, 7), -3, LAST16),
    ((3, 24, 16, 9), 1, LAST8),
    ((1, 75, 7, 7), 1, LAST),
    ((16, 5, 7), 0, LAST16),
    ((1, 1, 1, 1), 1, LAST),
    ((2, 8, 3, 4, 5), 1, DEEP8),
    ((2, 8, 16, 4, 5), 2, LAST16),
    ((1, 3, 2, 2, 2), 1, DEEP),
    ((2, 16, 5, 8), 3, EVERYWHERE),
    ((2, 16, 5, 8), 0, DEEP),  # without a batch: channels, depth, height, width
    ((4, 10), 1, EVERYWHERE),
    ((7,), 0, EVERYWHERE),
    ((0, 16, 4, 4), 1, LAST16),
    ((2, 64, 32, 33), 1, LAST16),
)


@pytest.fixture(scope="module")
def ptx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernels as PTX of the first architecture, every warning an error."""
    compiler = shutil.which("nvcc") or pytest.skip("no nvcc: no CUDA code can be compiled here")
    path = tmp_path_factory.mktemp("ptx") / plugin_aot.FILE
    flags = ["-std=c++17", "-O3", "--Werror=all-warnings", "-arch=compute_75", "-ptx"]
    subprocess.run([compiler, *flags, "-o", path, PLUGINS / "crelu_aot.cu"], check=True)
    return path


def test_each_type_has_an_entry_with_tensorrt_s_arguments(ptx: Path) -> None:
    entries = re.findall(r"\.entry (\w+)\((.*?)\)\s*\.maxntid (\d+)", ptx.read_text(), re.DOTALL)
    # Addresses of inputs, 32-bit numbers, addresses of outputs.
    arguments = {name: re.findall(r"\.param \.(\w+)", text) for name, text, _ in entries}
    assert arguments == {
        name: ["u64", "u32", "u32", "u64"] for name, _ in plugin_aot.ENTRIES.values()
    }
    assert {int(threads) for *_, threads in entries} == {plugin_aot.THREADS}


def test_what_make_plugins_installs_is_this_ptx(ptx: Path) -> None:
    try:
        installed = plugin_aot.ptx()
    except BackendUnavailable as error:
        pytest.skip(str(error))
    built, made = (re.sub(r"//.*", "", text).split() for text in (installed, ptx.read_text()))
    assert built == made
    assert ".target sm_75" in installed


@pytest.mark.parametrize("architecture", [75, 80, 86, 87, 89, 90, 100, 103, 120, 121])
def test_the_ptx_becomes_machine_code(ptx: Path, architecture: int, tmp_path: Path) -> None:
    assembler = shutil.which("ptxas") or str(Path(shutil.which("nvcc") or "").parent / "ptxas")
    if not Path(assembler).is_file():
        pytest.skip("no ptxas: PTX cannot be compiled here")
    command = [assembler, "-v", f"-arch=sm_{architecture}", ptx, "-o", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    registers = [int(count) for count in re.findall(r"Used (\d+) registers", done.stderr)]
    assert len(registers) == len(plugin_aot.ENTRIES)
    assert max(registers) <= 32  # every thread that an SM can hold has its registers
    assert set(re.findall(r"(\d+) bytes spill", done.stderr)) <= {"0"}


@pytest.mark.parametrize("name", [entry for entry, _ in plugin_aot.ENTRIES.values()])
def test_aligned_rows_are_loaded_once_and_stored_twice(ptx: Path, name: str) -> None:
    text = ptx.read_text().split(f".entry {name}(")[1].split(".entry ")[0]
    wide = re.findall(r"(ld|st)\.global\.v4\.u32", text)
    assert wide == ["ld", "st", "st"]


def test_the_numbers_are_those_of_the_kernel() -> None:
    text = (PLUGINS / "crelu.h").read_text()
    constants = dict(re.findall(r"constexpr int32_t (k[A-Z]+) = (\d+);", text))
    assert int(constants["kTHREADS"]) == plugin_aot.THREADS
    assert int(constants["kBYTES"]) == plugin_aot.LOAD


# --- the kernel on the host -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """``crelu_aot.cu`` compiled for the host."""
    compiler = shutil.which("g++") or pytest.skip("no g++: the kernel cannot be compiled here")
    path = tmp_path_factory.mktemp("kernels") / "libaot.so"
    flags = "-std=c++17 -O2 -shared -fPIC -Wall -Wextra -Werror -fsanitize=undefined"
    command = [compiler, *flags.split(), "-fno-sanitize-recover", "-static-libubsan"]
    source = PLUGINS / "tests" / "aot_emulation.cpp"
    subprocess.run([*command, source, "-o", path], check=True)
    library = ctypes.CDLL(str(path))
    pointer, signed, unsigned = ctypes.c_void_p, ctypes.c_int32, ctypes.c_uint32
    library.run_grid.argtypes = [pointer, unsigned, unsigned, pointer, signed, signed, pointer]
    return library


def run(
    kernels: ctypes.CDLL,
    entry: str,
    grid: int,
    x: np.ndarray,
    row: int,
    *,
    offsets: tuple[int, int] = (0, 0),
) -> np.ndarray:
    """Return what the grid writes, after a look at what lies before and behind it."""
    source, target = placed(x.nbytes, offsets[0]), placed(2 * x.nbytes, offsets[1])
    source[64:-64] = x.reshape(-1).view(np.uint8)
    numbers = x.size, row
    kernels.run_grid(
        getattr(kernels, entry),
        grid,
        plugin_aot.THREADS,
        source[64:].ctypes.data,
        *numbers,
        target[64:].ctypes.data,
    )
    assert set(target[:64]) | set(target[-64:]) == {0xA5}
    return target[64:-64].view(x.dtype)


def placed(size: int, offset: int) -> np.ndarray:
    """Return bytes of 0xA5, of which 64 lie before an address at this offset from 16."""
    room = np.full(size + 160, 0xA5, np.uint8)
    start = (offset - room.ctypes.data) % 16
    return room[start : start + size + 128]


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("row", [1, 7, 8, 12, 24, 64, 147, 512])
@pytest.mark.parametrize("offsets", [(0, 0), (4, 0), (0, 8), (12, 4)])
def test_the_kernel_is_the_reference_bit_for_bit(
    kernels: ctypes.CDLL, name: str, row: int, offsets: tuple[int, int]
) -> None:
    x = awkward(name, (9, row), seed=row)
    per_block = plugin_aot.THREADS * plugin_aot.LOAD // x.itemsize
    y = run(kernels, f"crelu_{name}", -(-x.size // per_block), x, row, offsets=offsets)
    check_bits(y.reshape(9, 2 * row), expected(x))


# --- inside TensorRT's Python layer ---------------------------------------------------------------


def layer(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the plugin in the layer, with something in place of the PTX."""
    if importlib.util.find_spec("tensorrt_dispatch_bindings") is None:
        pytest.skip("no tensorrt_dispatch_bindings; run: make plugins")
    (tmp_path / plugin_aot.FILE).write_text(STAND_IN)
    return subprocess.run(
        [sys.executable, TESTS / "aot_layer.py", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, native.VARIABLE: str(tmp_path)},
    )


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What TensorRT's layer makes of each of ``CASES``."""
    cases = json.dumps([[shape, axis] for shape, axis, _ in CASES])
    done = layer(tmp_path_factory.mktemp("layer"), cases)
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout.splitlines()[-1]))


def packed(x: np.ndarray, layout: str, axis: int) -> np.ndarray:
    """Return the memory of a tensor in a format: as it is, or channels last."""
    return np.ascontiguousarray(x if layout == "LINEAR" else np.moveaxis(x, axis, -1))


@pytest.mark.parametrize("case", range(len(CASES)), ids=[f"{s} {a}" for s, a, _ in CASES])
def test_shapes_and_formats(answers: list[Any], case: int) -> None:
    shape, axis, wanted = CASES[case]
    types, wide, launches = answers[case]
    assert types == ["HALF"]  # that of x
    assert wide == [2 * n if i == axis % len(shape) else n for i, n in enumerate(shape)]
    assert len(launches) == len(wanted)
    assert {(dtype, layout) for dtype, layout, *_ in launches} == wanted


@pytest.mark.parametrize("case", range(len(CASES)), ids=[f"{s} {a}" for s, a, _ in CASES])
def test_each_launch_computes_crelu(answers: list[Any], kernels: ctypes.CDLL, case: int) -> None:
    shape, axis, _ = CASES[case]
    for dtype, layout, entry, sizes, numbers, shared, length in answers[case][2]:
        assert (shared, length) == (0, len(STAND_IN))
        assert sizes[1:] == [1, 1, plugin_aot.THREADS, 1, 1]
        x = awkward(TYPES[dtype], shape, seed=case)
        memory = packed(x, layout, axis)
        assert numbers[0] == memory.size
        assert sizes[0] >= 1
        y = run(kernels, entry, sizes[0], memory, numbers[1])
        check_bits(y, packed(expected(x, axis), layout, axis).reshape(-1))


def test_an_axis_outside_the_rank_is_refused(tmp_path: Path) -> None:
    done = layer(tmp_path, "[[[2, 3], 2]]")
    assert done.returncode != 0
    assert "CReLU: axis 2 is outside rank 2 of its input" in done.stderr


def test_the_native_plugin_is_not_replaced(tmp_path: Path) -> None:
    try:
        library = native.library("tensorrt")
    except BackendUnavailable as error:
        pytest.skip(str(error))
    done = layer(tmp_path, "[]", str(library))
    assert done.returncode != 0
    assert "BuildError: crelu_deploy::CReLU is registered in this process already" in done.stderr


# --- what is missing ------------------------------------------------------------------------------


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is here")
def test_without_tensorrt_one_line_says_so() -> None:
    with pytest.raises(BackendUnavailable) as caught:
        plugin_aot.register()
    assert str(caught.value) == (
        "the ahead-of-time plugin needs the package tensorrt, which is not installed; "
        "run: pip install 'crelu-deploy[tensorrt]'"
    )


def test_an_old_tensorrt_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    old = ModuleType("tensorrt")
    old.__version__ = "10.7.0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorrt", old)
    with pytest.raises(BackendUnavailable, match=r"10\.9 or newer, found 10\.7\.0$"):
        plugin_aot.register()


def test_missing_ptx_names_the_places_and_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(native, "search_path", lambda: (tmp_path / "a", tmp_path / "b"))
    with pytest.raises(BackendUnavailable, match="make plugins") as caught:
        plugin_aot.ptx()
    assert f"{tmp_path / 'a'}, {tmp_path / 'b'}" in str(caught.value)


def test_the_first_folder_with_ptx_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("second", "first"):
        (tmp_path / name).mkdir()
        (tmp_path / name / plugin_aot.FILE).write_text(name)
    monkeypatch.setenv(native.VARIABLE, f"{tmp_path / 'first'}{os.pathsep}{tmp_path / 'second'}")
    assert plugin_aot.ptx() == "first"


@pytest.mark.parametrize(
    ("shape", "axis", "layouts"),
    [
        ((-1, 16, -1, -1), 1, {"LINEAR", "HWC", "HWC8", "HWC16"}),
        ((2, -1, 8, 8), 1, {"LINEAR", "HWC"}),
        ((2, 12, 8, 8), 1, {"LINEAR", "HWC"}),
        ((2, 16, 8, 8), 2, {"LINEAR"}),
        ((16,), 0, {"LINEAR"}),
    ],
)
def test_unknown_extents_are_no_multiple(
    shape: tuple[int, ...], axis: int, layouts: set[str]
) -> None:
    assert {layout for _, layout in plugin_aot.formats(shape, axis)} == layouts
