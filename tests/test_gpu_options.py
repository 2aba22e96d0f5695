"""Options for GPU targets: from the command line to the runtime, and the figures back."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from bundles import write_bundle
from rich.console import Console

from crelu_deploy.backends import engines
from crelu_deploy.backends.onnxruntime_cuda import provider_settings
from crelu_deploy.cli import run
from crelu_deploy.cli.options import Running
from crelu_deploy.cli.sizes import read_size
from crelu_deploy.latency import Effort, Latency, Paired
from crelu_deploy.pipeline import bench
from crelu_deploy.render import stages
from crelu_deploy.report.content import _timings
from crelu_deploy.results import Benchmark, Build, Row
from crelu_deploy.targets import BASELINE, Options, Target

SIZES = {"1B": 1, "512KiB": 2**19, "256MiB": 2**28, "4GiB": 2**32}


@pytest.mark.parametrize(("text", "size"), SIZES.items(), ids=SIZES)
def test_sizes(text, size):
    assert read_size(text) == size


@pytest.mark.parametrize("text", ["", "4", "4GB", "GiB", "0GiB", "-1GiB", "1.5GiB", "4 GiB", "4iB"])
def test_sizes_that_are_none(text):
    with pytest.raises(ValueError, match="expected a number and B, KiB, MiB, GiB, such as 4GiB"):
        read_size(text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("options") / "bundle").path


def test_a_wrong_size_is_a_wrong_usage(folder, capsys):
    assert run(["build", str(folder), "--workspace", "4G"]) == 2
    assert "size '4G': expected a number and B, KiB" in capsys.readouterr().err


def test_the_options_arrive():
    text = ("1/2/3",)
    asked = Running(3, True, text, True, "2GiB", True, True, True).options(trust=True)
    assert asked == Options(3, True, True, text, True, 2**31, True, True, True)
    assert Running(None, False, (), False, None, False, False, False).options() == Options()


JOBS = {
    "nothing": (Options(), [], None),
    "refit": (Options(refit=True), ["REFIT"], None),
    "compatible": (Options(version_compatible=True), ["VERSION_COMPATIBLE"], None),
    "all": (
        Options(None, False, False, (), False, 7, True, True),
        ["REFIT", "VERSION_COMPATIBLE"],
        7,
    ),
}


@pytest.mark.parametrize(("options", "flags", "workspace"), JOBS.values(), ids=JOBS)
@pytest.mark.parametrize("carried", [False, True])
def test_the_worker_is_told(options, flags, workspace, carried):
    recipe = engines.Recipe("tensorrt", "TensorRT", ("A",), ahead=False, carried=carried)
    job = engines.make_job(Path("m.onnx"), Path("e"), {}, recipe, options)
    assert (job["flags"], job["workspace"], job["carried"]) == (flags, workspace, carried)
    json.dumps(job)


@pytest.mark.parametrize("chosen", [False, True])
def test_the_cuda_provider_is_told(chosen):
    told = provider_settings(Options(tf32=chosen, channels_last=chosen), 64, graph=chosen)
    names = ("use_tf32", "prefer_nhwc", "enable_cuda_graph")
    assert {told[name] for name in names} == {str(int(chosen))}
    assert told["user_compute_stream"] == "64"


# --- results --------------------------------------------------------------------------------------

CPU = Row(BASELINE, 1, Latency(2.0, 1.9, 2.1, 5), Paired(1.0, 1.0, 1.0, 1.0))
GPU = Row(
    Target("trt-fp16", "fold"),
    1,
    Latency(0.5, 0.4, 0.6, 5, gpu=0.25),
    Paired(0.25, 0.24, 0.26, 0.2),
)
WHERE = {"threads": 1, "cpu": "a CPU"}


def shown(*parts: object) -> str:
    console = Console(width=160, highlight=False)
    with console.capture() as captured:
        console.print(*parts)
    return captured.get()


def test_the_gpus_time_is_beside_the_wall_time():
    found = Benchmark(WHERE, (CPU, GPU), (), {"trt-fp16:fold batch 9": "too large"})
    text = shown(*stages.benchmark_tables(found))
    assert "GPU" in text
    assert "0.25 ms" in text
    assert re.search("not timed\n.*\ntrt-fp16:fold batch 9 +too large", text)
    assert "with the copies" not in text
    assert "with the copies to and from a GPU" in shown(
        *stages.benchmark_tables(replace(found, end_to_end=True))
    )
    assert "GPU" not in shown(*stages.benchmark_tables(replace(found, rows=(CPU,), refused={})))


def test_the_layers_of_an_engine_are_shown():
    done = Build(GPU.target, 1.0, {"a": "plugin"}, layers={"CaskConvolution": 2, "PluginV3": 1})
    text = shown(stages.builds_table([done]))
    assert "1 plugin; final layers: 2 CaskConvolution, 1 PluginV3" in text
    assert stages.builds_json([done])["targets"][0]["layers"] == {
        "CaskConvolution": 2,
        "PluginV3": 1,
    }


def test_json_and_report_have_the_gpus_time_where_there_is_one(folder):
    effort = Effort(runs=5, warmup=1, seconds=1)
    found = bench(folder, ["ort-cpu:primitive"], Options(threads=1), effort=effort, end_to_end=True)
    data = stages.benchmark_json(found)
    assert data["end_to_end"] is True
    assert "gpu_ms" not in data["rows"][0]
    (row,) = found.rows
    both = (row, replace(row, latency=replace(row.latency, gpu=0.125)))
    rows = stages.benchmark_json(replace(found, rows=both))["rows"]
    assert [r.get("gpu_ms") for r in rows] == [None, 0.125]
    table = _timings(rows)
    at = table.columns.index("GPU>")
    assert [cells[at].text for cells in table.rows] == ["-", "0.125"]
    assert "GPU>" not in _timings(rows[:1]).columns


def test_bench_takes_the_option(folder, capsys):
    quick = ["--runs", "5", "--seconds", "1", "--threads", "1", "--end-to-end", "--json", "-q"]
    assert run(["bench", str(folder), "-t", "ort-cpu:mirror", *quick]) == 0
    assert json.loads(capsys.readouterr().out)["end_to_end"] is True
