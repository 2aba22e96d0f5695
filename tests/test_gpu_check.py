"""The script that a GPU machine runs: its rows, and its kernel checks on the host."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from crelu_deploy.targets import BACKENDS, ENGINES

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))

from gpu_rows import LATE, MISSING, OK, WRONG, Clock, Missing, Row, collect, table  # noqa: E402


def good() -> Iterator[Row]:
    yield Row("part", "good", OK, 1.5, "ms")


def absent() -> Iterator[Row]:
    raise Missing("no runtime; run: pip install it\nmore")


def unimportable() -> Iterator[Row]:
    import a_module_that_nobody_has  # noqa: F401

    return good()


def broken() -> Iterator[Row]:
    yield Row("part", "before", OK)
    raise RuntimeError("device lost")


@pytest.mark.parametrize(
    ("check", "wanted"),
    [
        (good, [("good", OK, "ms")]),
        (absent, [("case", MISSING, "no runtime; run: pip install it")]),
        (unimportable, [("case", MISSING, "No module named 'a_module_that_nobody_has'")]),
        (broken, [("before", OK, ""), ("case", WRONG, "RuntimeError: device lost")]),
    ],
)
def test_every_check_ends_in_rows(check, wanted: list[tuple[str, str, str]]) -> None:
    rows = collect([("part", "case", check)], Clock(60), lambda _: None)
    assert [(row.case, row.status, row.note) for row in rows] == wanted


def test_nothing_starts_after_the_time() -> None:
    rows = collect([("part", "case", good)], Clock(0), lambda _: None)
    assert [(row.case, row.status) for row in rows] == [("case", LATE)]


def test_the_table_lines_up() -> None:
    lines = table([Row("kernel", "float32 LINEAR", OK, note="fine"), *good()]).splitlines()
    assert lines == [
        "part    case            status  value  note",
        "kernel  float32 LINEAR  ok             fine",
        "part    good            ok      1.500  ms",
    ]


@pytest.mark.torch
def test_the_kernel_s_checks_run_on_the_host() -> None:
    torch = pytest.importorskip("torch")
    import gpu_kernel

    rows = collect(gpu_kernel.checks(torch.device("cpu")), Clock(60), lambda _: None)
    if any(row.status == MISSING for row in rows):
        pytest.skip(rows[0].note)
    assert {row.status for row in rows} == {OK}
    assert len(rows) == len(gpu_kernel.PAIRS) + 3


@pytest.mark.torch
def test_a_wrong_kernel_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    import gpu_kernel

    class Silent:
        def __init__(self, device: object) -> None: ...

        def __call__(self, x, y, dims, layout: str = "LINEAR") -> None:
            y.zero_()

    monkeypatch.setattr(gpu_kernel, "Plugin", Silent)
    rows = list(gpu_kernel.correctness(torch.device("cpu")))
    assert {row.status for row in rows} == {WRONG}


@pytest.mark.torch
@pytest.mark.parametrize(
    ("outputs", "status"),
    [
        ((1.0, 2.0), OK),
        ((1.0005, 2.0), OK),
        ((1.0, 2.1), WRONG),
        ((1.0, float("nan")), WRONG),
        ((float("nan"), 2.0), WRONG),
    ],
)
def test_a_wrong_result_has_no_time(outputs: tuple[float, float], status: str) -> None:
    torch = pytest.importorskip("torch")
    import gpu_networks

    device = torch.device("cpu")
    case = gpu_networks.Case("convpool-c-crelu", 1, torch.float32, device, dry=True)
    wanted = torch.tensor([[1.0]]), torch.tensor([[2.0]])
    bench = gpu_networks.Bench(case, torch.zeros(1), wanted)
    made = tuple(torch.tensor([[value]]) for value in outputs)
    row = gpu_networks.row(bench, "case", lambda: None, lambda: made)
    assert row.status == status
    assert (row.value is None) == (status == WRONG)


@pytest.mark.torch
def test_the_most_telling_rows_come_first(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    import gpu_cases

    first, rest = gpu_cases.checks(torch.device("cuda"), tmp_path, dry=False)
    labels = [part for part, _, _ in first]
    assert list(dict.fromkeys(labels)) == [f"{n} batch 1 float16" for n in gpu_cases.NETWORKS]
    names = [name for part, name, _ in first if part == labels[0]]
    assert {"ort plain", "ort auto, CUDA graph", "torch eager", "trt auto"} <= {*names}
    assert "torch compile" not in names
    known = [name for part, name, _ in rest if part == "miscompilations"]
    assert known == [name for _, name, _ in rest[: len(known)]]
    assert known == [name for name, b in BACKENDS.items() if b.module in ENGINES]
    rest = rest[len(known) :]
    every = [(part, name) for part, name, _ in (*first, *rest)]
    assert len(set(every)) == len(every) == 7 * 2 * (3 + 6 * 2 + 6)
    slow = next(i for i, (_, name, _) in enumerate(rest) if name == "torch compile")
    assert [name for _, name, _ in rest[:slow]].count("trt fold") >= 3
