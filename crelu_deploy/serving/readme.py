"""The README of a model repository: what is in it and how to start a server on it."""

from __future__ import annotations

from collections.abc import Sequence

from crelu_deploy import __version__
from crelu_deploy.preprocessing import Preprocessing
from crelu_deploy.serving.models import MOUNT, PYTHON, Model

IMAGE = "nvcr.io/nvidia/tritonserver:<release>-py3"


def readme(name: str, models: Sequence[Model], images: Preprocessing | None) -> str:
    """Return the text for a repository's models, and for how images become their input."""
    parts = [
        f"# Models of {name}",
        f"Written by crelu-deploy {__version__}. Every target was verified against PyTorch's "
        "recorded outputs before.",
        _table(models),
        *([f"Images become the input as `{images}`: clients do that."] if images else []),
        *_container(models),
        *_bare(models),
        "`config.pbtxt` says how requests are batched. The files in `warmup/` are a recorded "
        "input, which the server runs at batch 1 and at the largest batch before it is ready.",
    ]
    return "\n\n".join(parts) + "\n"


def _table(models: Sequence[Model]) -> str:
    rows = [
        f"| `{m.name}` | `{m.target}` | {m.backend} | {m.batch or 'no batch axis'} |"
        for m in models
    ]
    head = ["| model | target | backend of Triton | largest batch |", "| --- | --- | --- | --- |"]
    return "\n".join([*head, *rows])


def _container(models: Sequence[Model]) -> list[str]:
    """Return how to start NVIDIA's container on what its own backends read."""
    built_in = [m for m in models if m.backend != PYTHON]
    if not built_in:
        return []
    gpu = " --gpus=1" if any(m.target.startswith(("trt", "ort-cuda")) for m in built_in) else ""
    start = [
        f'    docker run --rm{gpu} -p 8000-8002:8000-8002 -v "$PWD":{MOUNT}:ro \\',
        f"      {IMAGE} \\",
        f"      tritonserver --model-repository={MOUNT} --disable-auto-complete-config \\",
        "      --model-control-mode=explicit" + _loads(built_in) + _plugins(built_in),
    ]
    parts = ["## In NVIDIA's container", "In this folder:", "\n".join(start)]
    parts += [
        f"`{m.name}` is an engine of {m.runtime}: take a release of the container with that "
        f"version{' or a later one of its major number' * m.compatible}, and the GPU that it was "
        "built on."
        for m in built_in
        if m.runtime
    ]
    parts += [
        f"`{m.name}` needs `{m.library}`, which its configuration names as `{MOUNT}/{m.library}`: "
        "change `config.pbtxt` if the folder is elsewhere."
        for m in built_in
        if m.library and m.backend == "onnxruntime"
    ]
    return parts


def _loads(models: Sequence[Model]) -> str:
    return "".join(f" \\\n      --load-model={model.name}" for model in models)


def _plugins(models: Sequence[Model]) -> str:
    """Return what the TensorRT backend is told: the plugin, of which one copy is enough."""
    paths = [f"{MOUNT}/{m.library}" for m in models if m.library and m.backend == "tensorrt"]
    told = [f"plugins={path}" for path in paths[:1]]
    told += ["version-compatible=true"] if any(m.compatible for m in models) else []
    return "".join(f" \\\n      --backend-config=tensorrt,{setting}" for setting in told)


def _bare(models: Sequence[Model]) -> list[str]:
    """Return how to run the models that need crelu-deploy in the server's Python."""
    python = [m for m in models if m.backend == PYTHON]
    return [
        "## Anywhere, with Python",
        "The models of the Python backend run the bundle's own Runner. The server's Python needs "
        "crelu-deploy and the runtime of the target: in a container derived from NVIDIA's, "
        "`RUN pip install 'crelu-deploy[ort]'`. Then start it as above, with",
        "   " + _loads(python).replace(" \\\n     ", ""),
        "Without a container, the package nvidia-pytriton holds a server for Linux with the Python "
        "backend alone. For a trial, `crelu serve BUNDLE` sets it up. By hand, in a virtual "
        "environment: copy `backends/python` of its folder `pytriton/tritonserver` to "
        "`BACKENDS/python` and the stub in `python_backend_stubs` for the Python in use beside the "
        "library in it, set `LD_LIBRARY_PATH` to `nvidia_pytriton.libs`, activate the environment, "
        "because the stub takes its modules from the first `python3` in `PATH`, and run",
        "\n".join(
            [
                "    tritonserver --model-repository=. --backend-directory=BACKENDS \\",
                "      --disable-auto-complete-config --http-address=127.0.0.1 \\",
                "      --grpc-address=127.0.0.1 --model-control-mode=explicit" + _loads(python),
            ]
        ),
    ]
