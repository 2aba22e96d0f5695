"""A reference that nothing could be compared with is refused; inputs stay what they were."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from crelu_deploy import export
from crelu_deploy.errors import ExportError
from crelu_deploy.nn import crelu

pytestmark = pytest.mark.torch

IMAGE = "1x2x6x5"


class Written(nn.Module):
    """A convolution of two channels to four, and an expression in its result."""

    def __init__(self, expression: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.expression = nn.Conv2d(2, 4, 3), expression

    def forward(self, x: Tensor) -> Tensor:
        return self.expression(self.conv(x))


class Counting(nn.Module):
    """Keeps the number of calls."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.calls = nn.Conv2d(2, 4, 3), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.conv(x) * self.calls


class InPlace(nn.Module):
    """Writes into its own input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x *= 2
        return crelu(self.conv(x))


def test_outputs_that_are_not_finite_are_compared_where_they_are_asked_for(tmp_path: Path) -> None:
    module = Written(lambda y: crelu(y.sqrt()))
    bundle = export(module, tmp_path / "out", inputs=[IMAGE], allow_nan=True)
    assert np.isnan(bundle.samples[0].outputs["output"]).any()
    assert all(v["passed"] for v in bundle.manifest["verification"].values())


def test_recorded_inputs_are_not_what_a_module_made_of_them(tmp_path: Path) -> None:
    module = InPlace().eval()
    bundle = export(module, tmp_path / "out", inputs=[IMAGE])
    session = ort.InferenceSession(bundle.path / "model.onnx", providers=["CPUExecutionProvider"])
    (got,) = session.run(None, dict(bundle.samples[0].inputs))
    with torch.no_grad():
        want = crelu(module.conv(2 * torch.from_numpy(bundle.samples[0].inputs["x"])))
    np.testing.assert_allclose(got, want.numpy(), rtol=1e-5, atol=1e-5)


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "random": (lambda: Written(torch.rand_like), "two answers to the same input: 'output'"),
    "stateful": (Counting, "two answers to the same input: 'output' differs"),
    "nan": (lambda: Written(lambda y: y * torch.nan), "NaN or infinite in 48 of 48 .*--allow-nan"),
    "one-nan": (lambda: Written(torch.sqrt), "NaN or infinite in .*on sample 0"),
    "infinite": (lambda: Written(lambda y: y / 0.0), "'output' is NaN or infinite in 48 of 48"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_a_reference_must_be_finite_and_one(
    make: Callable[[], nn.Module], message: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    with pytest.raises(ExportError, match=message):
        export(make(), tmp_path / "out", inputs=[IMAGE])
    assert list(tmp_path.iterdir()) == []
