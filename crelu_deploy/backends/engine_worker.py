"""Builds one engine in a process of its own: ``python -m ...engine_worker JOB ANSWER``.

A parser that meets what it cannot handle may end its process. The runtime is TensorRT or
TensorRT-RTX, whose Python modules have the same names; only what both have is used, from TensorRT
10.12 on. JOB is a JSON file that ``engines`` writes; the engine goes to the file named there, what
is to be known of it to the file ANSWER, the runtime's messages and the progress to stderr.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

from crelu_deploy.backends.engine_progress import TensorRT, make_monitor


def make_logger(trt: TensorRT, *, verbose: bool) -> Any:
    """Return a logger that keeps every message; errors, or all when verbose, go to stderr."""

    class Logger(trt.ILogger):  # type: ignore[misc]  # its base has no types
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            self.lines.append(message)
            if severity <= trt.ILogger.ERROR:
                self.errors.append(message)
            if verbose or severity <= trt.ILogger.ERROR:
                print(message, file=sys.stderr, flush=True)

    return Logger()


def parse(trt: TensorRT, builder: Any, logger: Any, model: Path) -> tuple[Any, Any]:
    """Return the strongly typed network of an ONNX file, and the parser that owns its weights."""
    flag = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flag)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(model)):
        reasons = dict.fromkeys(parser.get_error(i).desc() for i in range(parser.num_errors))
        sys.exit(f"the parser says: {'; '.join(reasons)}")
    return network, parser


def configure(trt: TensorRT, builder: Any, job: dict[str, Any]) -> Any:
    """Return the configuration: what the engine may use, and for which shapes and devices."""
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # its layers must be readable
    config.progress_monitor = make_monitor(trt, period=job["period"])
    if not job["tf32"]:
        config.clear_flag(trt.BuilderFlag.TF32)
    for flag in job["flags"]:
        config.set_flag(getattr(trt.BuilderFlag, flag))
    if job["workspace"] is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job["workspace"])
    profile = builder.create_optimization_profile()
    for name, shapes in job["ranges"].items():
        profile.set_shape(name, *shapes)
    config.add_optimization_profile(profile)
    if job["devices"]:
        config.num_compute_capabilities = len(job["devices"])
        for i, device in enumerate(job["devices"]):
            config.set_compute_capability(getattr(trt.ComputeCapability, device), i)
    return config


def use_timing_cache(config: Any, path: Path) -> None:
    """Let the builder read earlier timings of tactics, where there are any, and add its own."""
    content = path.read_bytes() if path.is_file() else b""
    config.set_timing_cache(config.create_timing_cache(content), ignore_mismatch=False)


def logged_layers(lines: list[str]) -> list[dict[str, str]]:
    """Return the final layers from a verbose log of TensorRT-RTX: name and type of each."""
    text = "\n".join(lines)
    found = re.findall(r"^Name: ([^,]*), LayerType: ([^,]*),", text[text.rfind("Layers:") :], re.M)
    return [{"name": name, "type": type_} for name, type_ in found]


def inspected_layers(trt: TensorRT, logger: Any, engine: bytes) -> list[dict[str, str]]:
    """Return the final layers as the inspector of TensorRT tells them, which needs the GPU."""
    loaded = trt.Runtime(logger).deserialize_cuda_engine(engine)
    inspector = loaded.create_engine_inspector()
    told = json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    return [{"name": layer["Name"], "type": layer["LayerType"]} for layer in told["Layers"]]


def build(job: dict[str, Any]) -> dict[str, Any]:
    """Build the engine of a job; return its runtime's version, its devices and its layers."""
    trt = importlib.import_module(job["runtime"])
    logger = make_logger(trt, verbose=job["verbose"])
    for plugin in job["plugins"]:
        trt.get_plugin_registry().load_library(plugin)
    if job["carried"]:
        from crelu_deploy import plugin_aot  # as long to import as many an engine to build

        plugin_aot.register()
    builder = trt.Builder(logger)
    network, _parser = parse(trt, builder, logger, Path(job["model"]))
    config = configure(trt, builder, job)
    timings = Path(job["timings"]) if job["timings"] else None
    if timings:
        use_timing_cache(config, timings)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        asked = f" with {', '.join(job['flags'])}" if job["flags"] else ""
        sys.exit(f"no engine{asked}: {logger.errors[-1] if logger.errors else 'no message'}")
    engine = bytes(plan)
    Path(job["engine"]).write_bytes(engine)
    if timings:
        timings.write_bytes(bytes(config.get_timing_cache().serialize()))
    ahead = bool(job["devices"])
    layers = logged_layers(logger.lines) if ahead else inspected_layers(trt, logger, engine)
    return {"version": trt.__version__, "layers": layers}


if __name__ == "__main__":
    answer = build(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    Path(sys.argv[2]).write_text(json.dumps(answer), encoding="utf-8")
