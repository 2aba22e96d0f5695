"""The Kubernetes manifests against their schemas, and against the command line they call.

Kubernetes' own kinds: the strict JSON schemas in the package ``kubernetes-validate``. KServe's: the
models in the package ``kserve``, generated from its OpenAPI schema, read without the server that is
in the package too: ``pip install --no-deps kserve`` beside ``kubernetes`` and ``six``.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import re
import shlex
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "kubernetes"
KSERVE = "serving.kserve.io"


def documents() -> Iterator[Any]:
    for file in sorted(FOLDER.glob("*.yaml")):
        for document in yaml.safe_load_all(file.read_text()):
            name = f"{file.stem}: {document['kind']} {document['metadata']['name']}"
            yield pytest.param(document, id=name)


def own(kserve: bool) -> list[Any]:
    """Return the manifests of KServe's kinds, or all others."""
    return [p for p in documents() if p.values[0]["apiVersion"].startswith(KSERVE) is kserve]


# --- Kubernetes -----------------------------------------------------------------------------------


def validate(document: dict[str, Any]) -> None:
    """Hold a manifest against the newest schemas there are; a field they do not know is refused."""
    package = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is missing")
    package.validate(document, package.latest_version(), strict=True)


@pytest.mark.parametrize("document", own(kserve=False))
def test_a_kubernetes_manifest_fits_its_schema(document):
    assert validate(document) is None


def deployment() -> dict[str, Any]:
    return copy.deepcopy(own(kserve=False)[1].values[0])


SPOILED = {
    "unknown field": lambda d: d["spec"].update(replica=2),
    "wrong type": lambda d: d["spec"].update(replicas="two"),
    "missing": lambda d: d["spec"].pop("selector"),
    "deep": lambda d: d["spec"]["template"]["spec"]["containers"][0].update(img="x"),
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_the_kubernetes_check_can_fail(spoil):
    document = deployment()
    assert document["kind"] == "Deployment"
    validate(document)
    spoil(document)
    with pytest.raises(Exception, match=r"replica|selector|img|two"):
        validate(document)


@pytest.mark.parametrize("document", own(kserve=False))
def test_selectors_ports_and_volumes_are_there(document):
    spec = document["spec"]
    if "template" not in spec:
        assert document["kind"] in ("Service", "HorizontalPodAutoscaler")
        return
    pod = spec["template"]["spec"]
    labels = spec["template"]["metadata"]["labels"]
    assert spec.get("selector", {"matchLabels": labels})["matchLabels"] == labels
    for container in pod["containers"]:
        assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
        named = {port["name"] for port in container.get("ports", ())}
        probes = [container[key] for key in container if key.endswith("Probe")]
        used = {probe.get("httpGet", probe.get("tcpSocket"))["port"] for probe in probes}
        assert used <= named


# --- KServe ---------------------------------------------------------------------------------------

CLASSES = {
    "InferenceService": "V1beta1InferenceService",
    "ServingRuntime": "V1alpha1ServingRuntime",
}


@pytest.fixture(scope="module")
def models() -> Iterator[list[Any]]:
    """KServe's models and those of Kubernetes that they are made of."""
    kubernetes = pytest.importorskip("kubernetes.client.models", reason="kubernetes is missing")
    spec = importlib.util.find_spec("kserve")
    if spec is None:
        pytest.skip("kserve is missing")
    # The package itself imports a whole server; its models need only be found below its name.
    package = types.ModuleType("kserve")
    package.__path__ = list(spec.submodule_search_locations or ())
    sys.modules["kserve"] = package
    yield [importlib.import_module("kserve.models"), kubernetes]
    for name in [name for name in sys.modules if name.split(".")[0] == "kserve"]:
        del sys.modules[name]


def unknown_fields(value: Any, kind: str, models: list[Any], where: str = "") -> list[str]:
    """Return what the schema ``kind`` does not have or has as another type, recursively."""
    if inner := re.fullmatch(r"[lL]ist\[(.*)\]", kind):
        if not isinstance(value, list):
            return [f"{where}: no list"]
        items = enumerate(value)
        return [p for i, v in items for p in unknown_fields(v, inner[1], models, f"{where}[{i}]")]
    if inner := re.fullmatch(r"[dD]ict\(str, (.*)\)", kind):
        return [p for k, v in value.items() for p in unknown_fields(v, inner[1], models, k)]
    model = next((getattr(m, kind) for m in models if hasattr(m, kind)), None)
    if model is None:
        plain = {"str": str, "int": int, "bool": bool}.get(kind, (str, int, dict))
        fits = isinstance(value, plain) and (kind == "bool" or not isinstance(value, bool))
        return [] if fits else [f"{where}: {value!r} is no {kind}"]
    names = {external: name for name, external in model.attribute_map.items()}
    wrong = [f"{where}.{key}" for key in value if key not in names]
    for key in value.keys() & names.keys():
        wrong += unknown_fields(value[key], model.openapi_types[names[key]], models, f".{key}")
    return wrong


@pytest.mark.parametrize("document", own(kserve=True))
def test_a_kserve_manifest_fits_its_schema(document, models):
    assert unknown_fields(document, CLASSES[document["kind"]], models) == []


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"minReplica": 1}, ".predictor.minReplica"),
        ({"minReplicas": "1"}, ".minReplicas: '1' is no int"),
        ({"model": {"modelFormat": {"nam": "x"}}}, ".modelFormat.nam"),
        ({"containers": {}}, ".containers: no list"),
    ],
)
def test_the_kserve_check_can_fail(change, wrong, models):
    spoiled = copy.deepcopy(own(kserve=True)[1].values[0])
    spoiled["spec"]["predictor"].update(change)
    assert unknown_fields(spoiled, "V1beta1InferenceService", models) == [wrong]


def test_the_service_names_the_runtime_there_is():
    runtime, service = (p.values[0] for p in own(kserve=True))
    model = service["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    formats = runtime["spec"]["supportedModelFormats"]
    assert model["modelFormat"]["name"] in {entry["name"] for entry in formats}
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]


def test_the_command_of_the_job_is_one_that_there_is():
    from crelu_deploy.cli.scoring import score

    job = next(p.values[0] for p in own(kserve=False) if p.values[0]["kind"] == "Job")
    (script,) = job["spec"]["template"]["spec"]["containers"][0]["args"]
    line = script.replace("\\\n", " ").splitlines()[-1]
    words = shlex.split(line)
    assert words[:3] == ["exec", "crelu", "score"]
    context = score.make_context("score", words[3:])
    assert context.params["mean"] == "104,117,123"
    assert context.params["address"] == "auto"
