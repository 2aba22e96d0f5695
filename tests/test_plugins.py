"""The native kernel's body, run on the host; and how the package finds the libraries."""

from __future__ import annotations

import ctypes
import itertools
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from kernel_values import KERNEL_TYPES, WORDS, awkward, bits, check_bits, expected

from crelu_deploy import native
from crelu_deploy.errors import BackendUnavailable

PLUGINS = Path(__file__).resolve().parent.parent / "plugins"
I64, U64, POINTER = ctypes.c_int64, ctypes.c_uint64, ctypes.c_void_p
EVERY_TYPE = pytest.mark.parametrize("name", KERNEL_TYPES)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """``crelu.h`` compiled for the host, every warning an error."""
    compiler = shutil.which("g++") or pytest.skip("no g++: the kernel cannot be compiled here")
    path = tmp_path_factory.mktemp("kernel") / "libkernel.so"
    flags = "-std=c++17 -O2 -shared -fPIC -Wall -Wextra -Werror -fsanitize=undefined"
    command = [compiler, *flags.split(), "-fno-sanitize-recover", "-static-libubsan"]
    subprocess.run([*command, PLUGINS / "tests" / "host_emulation.cpp", "-o", path], check=True)
    library = ctypes.CDLL(str(path))
    library.run_kernel.argtypes = [ctypes.c_int32, POINTER, POINTER, I64, I64]
    library.choose_kernel.argtypes = [ctypes.c_int32, U64, U64, I64, I64]
    library.run_host.argtypes = [ctypes.c_int32, POINTER, POINTER, I64, I64, I64]
    library.target32.restype = library.target64.restype = U64
    library.target64.argtypes = [U64, U64]
    library.resolve_axis.argtypes = [I64, ctypes.c_int32]
    return library


def placed(x: np.ndarray, offset: int) -> np.ndarray:
    """Return a copy of x that starts ``offset`` bytes behind a 16-byte boundary."""
    room = np.zeros(x.nbytes + 48, np.uint8)
    start = -room.ctypes.data % 16 + offset
    copy = room[start : start + x.nbytes].view(x.dtype).reshape(x.shape)
    copy[...] = x
    return copy


def run(kernel: ctypes.CDLL, name: str, x: np.ndarray, offsets: tuple[int, int] = (0, 0)):
    """Return CReLU of ``x[outer, row]`` by the kernel's body, and the bytes of its vectors."""
    outer, row = x.shape
    source = placed(x, offsets[0])
    y = placed(np.zeros((outer, 2 * row), x.dtype), offsets[1])
    number = KERNEL_TYPES[name][0]
    return y, kernel.run_kernel(number, source.ctypes.data, y.ctypes.data, outer, row)


@EVERY_TYPE
@pytest.mark.parametrize("row", [1, 2, 3, 4, 6, 7, 8, 12, 16, 24, 31, 48, 64, 147])
@pytest.mark.parametrize("outer", [1, 2, 5])
def test_the_kernel_is_the_reference_bit_for_bit(
    kernel: ctypes.CDLL, name: str, outer: int, row: int
) -> None:
    x = awkward(name, (outer, row), seed=row)
    y, _ = run(kernel, name, x)
    check_bits(y, expected(x))


@pytest.mark.parametrize("name", ["float16", "bfloat16", "int8"])
def test_every_value_of_a_small_type(kernel: ctypes.CDLL, name: str) -> None:
    dtype = KERNEL_TYPES[name][1]
    word = WORDS[dtype.itemsize]
    x = np.arange(np.iinfo(word).max + 1, dtype=word).view(dtype)[None]
    y, _ = run(kernel, name, x)
    check_bits(y, expected(x))


def test_a_million_values_of_float32(kernel: ctypes.CDLL) -> None:
    x = awkward("float32", (4, 1 << 18), seed=7)
    y, _ = run(kernel, "float32", x)
    check_bits(y, expected(x))


@EVERY_TYPE
@pytest.mark.parametrize("offsets", [(0, 4), (8, 0), (4, 4), (8, 8), (12, 4)])
def test_any_alignment_gives_the_same(
    kernel: ctypes.CDLL, name: str, offsets: tuple[int, int]
) -> None:
    x = awkward(name, (3, 32))
    y, width = run(kernel, name, x, offsets)
    check_bits(y, expected(x))
    assert width == min(o & -o for o in (*offsets, 16) if o)


@pytest.mark.parametrize(
    ("name", "x", "y", "outer", "row", "width"),
    [
        ("float32", 0, 0, 2, 4, 16),
        ("float32", 0, 0, 2, 6, 8),
        ("float32", 0, 0, 2, 5, 4),
        ("float32", 0, 4, 2, 8, 4),
        ("float16", 0, 0, 2, 8, 16),
        ("float16", 0, 0, 2, 49, 2),
        ("bfloat16", 2, 0, 2, 8, 2),
        ("bfloat16", 0, 0, 2, 12, 8),
        ("int8", 0, 0, 2, 16, 16),
        ("int8", 0, 0, 2, 18, 2),
        ("int8", 1, 0, 2, 16, 1),
        ("float32", 0, 0, 2**31 - 1, 4, 16),
        ("float32", 0, 0, 2**31, 4, -16),
        ("float16", 0, 0, 3, 2**31 - 1, -2),
        ("int8", 0, 0, 1, 2**40, -16),
    ],
)
def test_the_widest_vector_that_fits_is_chosen(
    kernel: ctypes.CDLL, name: str, x: int, y: int, outer: int, row: int, width: int
) -> None:
    assert kernel.choose_kernel(KERNEL_TYPES[name][0], x, y, outer, row) == width


def test_a_type_that_does_not_exist_runs_nothing(kernel: ctypes.CDLL) -> None:
    assert kernel.run_kernel(9, None, None, 1, 1) == 0


@pytest.mark.parametrize(
    ("i", "row"), [(0, 1), (5, 2), (2**31 - 2, 1), (2**31 - 2, 3), (2**31 - 2, 2**31 - 1)]
)
def test_places_beyond_32_bits(kernel: ctypes.CDLL, i: int, row: int) -> None:
    assert kernel.target32(i, row) == i + i // row * row


@pytest.mark.parametrize(("i", "row"), [(2**31, 1), (2**40 + 5, 7), (3 * 2**40, 2**33)])
def test_places_of_64_bit_indices(kernel: ctypes.CDLL, i: int, row: int) -> None:
    assert kernel.target64(i, row) == i + i // row * row


@EVERY_TYPE
@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 0)])
def test_an_empty_tensor_is_left_alone(
    kernel: ctypes.CDLL, name: str, shape: tuple[int, int]
) -> None:
    y, _ = run(kernel, name, np.zeros(shape, KERNEL_TYPES[name][1]))
    assert y.shape == (shape[0], 2 * shape[1])


@EVERY_TYPE
@pytest.mark.parametrize("cuts", [(0, 60), (0, 1, 60), (0, 7, 20, 21, 59, 60), (0, 30, 30, 60)])
def test_ranges_of_the_host_loop_make_up_the_whole(
    kernel: ctypes.CDLL, name: str, cuts: tuple[int, ...]
) -> None:
    x = awkward(name, (3, 20), seed=2)
    y = np.zeros((3, 40), x.dtype)
    for begin, end in itertools.pairwise(cuts):
        number = KERNEL_TYPES[name][0]
        kernel.run_host(number, x.ctypes.data, y.ctypes.data, 20, begin, end)
    check_bits(y, expected(x))


@pytest.mark.parametrize(
    ("axis", "rank", "front"),
    [
        (0, 1, 0),
        (1, 4, 1),
        (-1, 4, 3),
        (-4, 4, 0),
        (4, 4, -1),
        (-5, 4, -1),
        (0, 0, -1),
        (2**63 - 1, 4, -1),
        (-(2**63), 4, -1),
    ],
)
def test_axes_count_from_both_ends(kernel: ctypes.CDLL, axis: int, rank: int, front: int) -> None:
    assert kernel.resolve_axis(axis, rank) == front


@EVERY_TYPE
@pytest.mark.parametrize(("begin", "end"), [(0, 0), (3, 9), (25, 26), (15, 45)])
def test_a_range_writes_nothing_else(kernel: ctypes.CDLL, name: str, begin: int, end: int) -> None:
    x = awkward(name, (3, 20), seed=3)
    fill = bits(np.full((3, 40), 7, x.dtype))
    y = fill.view(x.dtype).copy()
    kernel.run_host(KERNEL_TYPES[name][0], x.ctypes.data, y.ctypes.data, 20, begin, end)
    inside = (np.arange(60) >= begin) & (np.arange(60) < end)
    written = np.concatenate([inside.reshape(3, 20)] * 2, 1)
    check_bits(y, np.where(written, bits(expected(x)), fill).view(x.dtype))


def nvcc(*arguments: str) -> str:
    """Compile the kernel with warnings as errors; return what the compiler said."""
    compiler = shutil.which("nvcc") or pytest.skip("no nvcc: no CUDA code can be compiled here")
    flags = ["-std=c++17", "-O3", "--Werror=all-warnings", *arguments]
    command = [compiler, *flags, str(PLUGINS / "crelu.cu")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout + done.stderr


@pytest.mark.parametrize(("architecture", "limit"), [(75, 64), (80, 32), (90, 32), (120, 32)])
def test_machine_code_keeps_to_its_registers(architecture: int, limit: int, tmp_path: Path) -> None:
    said = nvcc("-Xptxas=-v", f"-arch=sm_{architecture}", "-cubin", f"-o={tmp_path / 'out'}")
    used = re.findall(r"entry function '(\w+)'.*?Used (\d+) registers", said, re.DOTALL)
    registers = {entry: int(count) for entry, count in used}
    assert len(registers) == 32  # 16 widths of 4 types, 2 widths of index
    floats = [count for entry, count in registers.items() if "Float" in entry]
    assert max(floats) <= limit  # every thread that an SM can hold has its registers
    assert max(registers.values()) <= 48  # int8: 16 values a thread, two thirds of the threads
    assert set(re.findall(r"(\d+) bytes spill", said)) <= {"0"}


def test_wide_kernels_load_once_and_store_twice(tmp_path: Path) -> None:
    nvcc("-arch=compute_75", "-ptx", f"-o={tmp_path / 'ptx'}")
    kernels = (tmp_path / "ptx").read_text().split(".entry ")[1:]
    moves = [re.findall(r"(ld\.global\S*|st\.global\S*)", text) for text in kernels]
    wide = [found for found in moves if any(".v4.u32" in move for move in found)]
    assert len(wide) == 8  # 4 types, 2 widths of index
    for found in wide:
        assert [move.endswith(".v4.u32") for move in found] == [True] * 3
        assert [move[:2] for move in found] == ["ld", "st", "st"]


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Two empty folders that the variable names."""
    made = (tmp_path / "first", tmp_path / "second")
    for folder in made:
        folder.mkdir()
    monkeypatch.setenv(native.VARIABLE, ":".join(map(str, made)))
    return made


def test_the_first_folder_with_the_library_wins(folders: tuple[Path, Path]) -> None:
    for folder in reversed(folders):
        (folder / "libcrelu_tensorrt.so").touch()
        assert native.library("tensorrt") == folder / "libcrelu_tensorrt.so"


def test_the_package_is_searched_last(folders: tuple[Path, Path]) -> None:
    assert native.search_path() == (*folders, Path(native.__file__).parent / "lib")


def test_a_missing_library_names_the_places_and_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(native, "search_path", lambda: (tmp_path / "a", tmp_path / "b"))
    with pytest.raises(BackendUnavailable, match="make plugins") as caught:
        native.library("onnxruntime")
    assert f"{tmp_path / 'a'}, {tmp_path / 'b'}" in str(caught.value)
    assert "libcrelu_onnxruntime.so" in str(caught.value)


def test_an_unknown_library_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="known: onnxruntime, tensorrt"):
        native.library("openvino")
