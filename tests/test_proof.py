"""Every lowering is proved, and every fault in one is refuted with its place."""

from __future__ import annotations

import re
import time
from functools import cache

import numpy as np
import onnx_ir as ir
import pytest
import test_complement
import test_depthwise
import test_fold
import test_lowerings
import test_pooled
import test_pruning
import test_real_models
import test_split
from fuzz_networks import Network, networks
from graphs import AFFINE_SITE, Case, image, model, values
from hypothesis import given, settings
from proof_faults import (
    Fault,
    attribute,
    body,
    copied,
    element,
    half,
    instead,
    lowering,
    numbers,
    reading,
    rolled,
    scaled,
    swapped,
    through_half,
    zeros,
)
from proof_shapes import IN_FUNCTION, in_function, opened
from real_models import real_model
from test_fuzz import FUZZ

from crelu_deploy import op
from crelu_deploy.lowerings import LOWERINGS, NATIVE, lower
from crelu_deploy.passes import clean
from crelu_deploy.proof import Proof, prove
from crelu_deploy.pruning import prune
from crelu_deploy.recognition import recognize
from crelu_deploy.sites import find_sites

FORMS = (*LOWERINGS, *NATIVE)


def check_proved(canonical: ir.Model, lowered: ir.Model, most: int = 1) -> Proof:
    """Prove a lowered model that is right."""
    proof = prove(canonical, lowered)
    assert proof.faults == ()
    assert proof.open == ""
    assert all(site.proved for site in proof.sites.values())
    assert max((site.roundings for site in proof.sites.values()), default=0) <= most
    return proof


OPSETS = test_fold.OPSETS.values()
GATHERED = "[site] q = crelu_deploy.AffineCReLU<axis=1>(z, s, t) y = Gather<axis=1>(q, i)"
SCALES = {"s": test_fold.SCALE, "t": test_fold.SHIFT}
ZEROS = values("w", (6, 4, 3, 3)) * np.float32([1, 0, 1, 1, 0, 1]).reshape(6, 1, 1, 1)
TABLES = {
    "producers and steps": [model(case) for case in test_fold.FOLDABLE.values()],
    "opsets": [model(case, opset=opset) for opset, case in OPSETS],
    "affines": [model(case, AFFINE_SITE) for case, _ in test_fold.AFFINES.values()],
    "orders": [
        model(
            Case(f"p = Conv{extra}(x, w) z = {sign}(p)", (2, 4, 7, 9), {**w, "i": order, **SCALES}),
            GATHERED,
        )
        for order, w, extra, _ in test_fold.ORDERS.values()
        for sign in ("Neg", "Identity")
    ],
    "read elsewhere": [
        model(image(text), outputs=list(ends)) for text, ends in test_fold.READ_ELSEWHERE.values()
    ],
    "consumers": [model(*case) for case in test_complement.CONSUMERS.values()],
    "pooled": [
        model(*case[:2]) for case in (*test_complement.POOLED.values(), *test_pooled.KINDS.values())
    ],
    "open outputs": [
        opened(model(Case(f"v = {text} z = Neg(v)", (3, 3, 6, 5), weights), outputs=["y", "v"]))
        for text, weights in (
            ("MatMul(x, w)", {"w": (5, 4)}),
            ("Add(x, w)", {"w": (3, 6, 1)}),
            ("Transpose<perm = [0, 2, 1, 3]>(x)", {}),
        )
    ],
    "a factor in float64": [
        model(
            Case("z = Gemm<alpha = 0.3>(x, v)", (3, 10), {"v": (10, 64), "k": (128, 64)}),
            "[site] c = crelu_deploy.CReLU<axis=1>(z) y = Gemm<alpha = 0.3>(c, k)",
            dtype=np.float64,
        )
    ],
    "statistics of pixels": [
        model(
            image(
                "p = Conv(x, w, b) f = Flatten(p) z = BatchNormalization(f, g, h, m, v)",
                **dict.fromkeys("ghm", (210,)),
                v=np.abs(values("v", (210,))),
            )
        )
    ],
    "rows of zeros": [
        model(
            image(text, w=ZEROS, k=(5, 12, 3, 3), m=(6, 1, 1), a=(6, 1, 1), **SCALES),
            f"[site] q = crelu_deploy.{kind}<axis=1>(z{more}) y = Conv(q, k)",
        )
        for text in ("z = Conv(x, w, b)", "p = Conv(x, w, b) q0 = Mul(p, m) z = Add(q0, a)")
        for kind, more in (("CReLU", ""), ("AffineCReLU", ", s, t"))
    ],
    "split": [
        model(case, f"{test_split.SITE} {behind}") for case, behind in test_split.FORMS.values()
    ],
    "depthwise": [model(case) for case in test_depthwise.PLAIN.values()],
    "shapes": [model(case) for case, _ in test_lowerings.SHAPES.values()],
    "scopes": [
        test_lowerings.with_function(),
        *(in_function(*parts) for parts in IN_FUNCTION.values()),
        model(test_lowerings.SUBGRAPH, "", outputs=["z"]),
        model(test_lowerings.TWO),
    ],
    "activations": [
        model(test_lowerings.CONV, test_lowerings.site_text(name)) for name in op.ACTIVATIONS
    ],
    "pruned": [model(*case) for case in test_pruning.SITES.values()],
}
"""The networks of the tests of every lowering."""


@pytest.mark.parametrize("name", TABLES)
def test_every_lowering_is_proved(name: str) -> None:
    for canonical in TABLES[name]:
        for form in FORMS:
            check_proved(canonical, lower(canonical, form).model)


EXACT = ("fold", "depthwise", "mirror", "primitive", "function", "plugin")
"""Lowerings that compute no weight of a plain site."""


@pytest.mark.parametrize("form", EXACT)
def test_plain_weights_are_equal_bit_for_bit(form: str) -> None:
    for name in ("producers and steps", "consumers", "shapes"):
        for canonical in TABLES[name]:
            check_proved(canonical, lower(canonical, form).model, most=0)


DEAD = [
    model(*test_pruning.conv("y = Conv(c, v, d)", v=w[0], d=(5,)))
    for w in test_pruning.DEAD.values()
]


@pytest.mark.parametrize("form", LOWERINGS)
def test_what_is_pruned_is_proved_against_the_whole_network(form: str) -> None:
    for canonical in (*TABLES["pruned"], *DEAD):
        pruned = prune(canonical, block=1)
        check_proved(canonical, lower(pruned.model, form).model)


@cache
def real(name: str) -> ir.Model:
    """Return a network that other people trained, with its sites recognised."""
    made = {
        **{n: lambda p=p: ir.load(real_model(p)) for n, p in test_real_models.PLAIN.items()},
        "caffe": lambda: ir.from_proto(test_real_models.caffe()),
        "flow": lambda: ir.from_proto(test_real_models.coupling(1)),
    }[name]()
    recognize(made)
    return clean(made)


REAL = (*test_real_models.PLAIN, "caffe", pytest.param("flow", marks=pytest.mark.torch))


@pytest.mark.parametrize("form", ["fold", "complement"])
@pytest.mark.parametrize("name", REAL)
def test_trained_networks_are_proved(name: str, form: str) -> None:
    canonical = real(name)
    proof = check_proved(canonical, lower(canonical, form).model)
    assert proof.sites


def check_lowered_ways(network: Network) -> None:
    """Lower a random network in every way, and prove each."""
    recognised = ir.from_proto(network.model)
    recognize(recognised)
    canonical = clean(recognised)
    names = [site.name for site in find_sites(canonical)]
    drawn = dict(zip(names, network.lowerings * len(names), strict=False))
    for choice in (drawn, *LOWERINGS):
        check_proved(canonical, lower(canonical, choice).model, most=2)


@settings(FUZZ, max_examples=25)
@given(networks())
def test_random_networks_are_proved(network: Network) -> None:
    check_lowered_ways(network)


BOUNDS = {
    "min": ("n = Min(z, k) m = Neg(n) r = Relu(z)", "k", np.zeros((), np.float32), True),
    "max": ("n = Neg(z) m = Max(n, k) r = Relu(z)", "k", np.zeros((1,), np.float32), True),
    "above zero": ("n = Min(z, k) m = Neg(n) r = Relu(z)", "k", np.float32([0.1]), False),
    "wider": ("n = Min(z, k) m = Neg(n) r = Relu(z)", "k", np.zeros((1,) * 5, np.float32), False),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_bounds_at_zero_are_activations(name: str) -> None:
    body, constant, value, holds = BOUNDS[name]
    canonical = model(image("z = Conv(x, w, b)"), "[site] y = crelu_deploy.CReLU<axis=1>(z)")
    case = image(f"z = Conv(x, w, b) {body}", **{constant: np.asarray(value)})
    lowered = model(case, "y = Concat<axis=1>(r, m)", infer=holds)
    lowered.graph.outputs[0].shape = canonical.graph.outputs[0].shape
    assert prove(canonical, lowered).refuted is not holds


FAULTS: dict[str, tuple[str, Fault, str]] = {
    # fold: the producer's rows
    "a dead half": ("fold", numbers("conv", 1, half(7)), r"Conv conv: output channel 7: weight"),
    "a wrong sign": ("fold", numbers("conv", 1, scaled(6, -1)), r"conv: output channel 6: weight"),
    "the halves swapped": ("fold", numbers("conv", 1, rolled(6)), r"output channel 0 and 11 more"),
    "one weight": (
        *("fold", numbers("conv", 1, element((9, 1, 2, 0), 1.001))),
        r"output channel 9: weight of x\[1\] at 6 expected \S+, got \S+ \(1 of them differ\)",
    ),
    "a bit of one weight": (
        *("fold", numbers("conv", 1, element((9, 1, 2, 0), 1.0000001))),
        r"output channel 9: weight of x\[1\] at 6",
    ),
    "a neighbour's bias": (
        *("fold", numbers("conv", 2, copied(8, 9))),
        r"Conv conv: output channel 8: bias expected",
    ),
    "no bias": ("fold", numbers("conv", 2, zeros), r"output channel 0 and 11 more: bias .* got 0"),
    "a neighbour's weights": ("fold", numbers("conv", 1, copied(3, 4)), r"conv: output channel 3"),
    "rounded weights": (
        *("fold", numbers("conv", 1, through_half)),
        r"Conv conv: output channel 0 and 11 more: weight",
    ),
    "columns off by one": ("fold", numbers("conv", 1, rolled(1, 1)), r"conv: .*36 of them differ"),
    "a shifted pad": (
        *("fold", attribute("conv", "pads", [2, 1, 0, 1])),
        r"conv: pads: expected \(1, 1, 1, 1\), got \(2, 1, 0, 1\)",
    ),
    "another stride": (
        *("fold", attribute("conv", "strides", [2, 1])),
        r"conv: strides: expected \(1, 1\), got \(2, 1\)",
    ),
    "another dilation": ("fold", attribute("conv", "dilations", [1, 2]), r"conv: dilations"),
    "a leaky activation": (
        *("fold", instead("site/Relu", "LeakyRelu", alpha=0.1)),
        r"site/Relu: .*expected relu\(conv\[0\]\), got leakyrelu\(conv\[0\]\)",
    ),
    "another activation": ("fold", instead("site/Relu", "Sigmoid"), r"site/Relu: .*got sigmoid"),
    "no activation": ("fold", instead("site/Relu", "Identity"), r"expected relu\(conv\[0\]\)"),
    "a consumer's weight": (
        *("fold", numbers("next", 1, element((2, 11, 0, 1), 1.01))),
        r"Conv next: output channel 2: weight of relu\(-conv\[5\]\) at 1",
    ),
    # fold: the steps between
    "a product of one half": ("steps", numbers("mul", 1, scaled(7, 2)), r"Mul mul: channel 7"),
    "a sum of the wrong sign": ("steps", numbers("add", 1, scaled(8, -1)), r"Add add: channel 8"),
    "another pad": ("steps", numbers("pad", 1, rolled(1, 0)), r"Pad pad: "),
    "another shape": ("steps", numbers("shape", 1, lambda a: a[[0, 2, 1]]), r"shape: expected 12"),
    "another variance": ("batch norm", numbers("norm", 4, scaled(9, 2)), r"norm: channel 9"),
    "a mean of the wrong sign": ("batch norm", numbers("norm", 3, scaled(9, -1)), r"channel 9"),
    # fold: scales, orders, and other readers
    "a dropped scale": ("affine", numbers("conv", 1, scaled(4, 1.5)), r"conv: output channel 4"),
    "a dropped shift": ("affine", numbers("conv", 2, half(4)), r"conv: output channel 4: bias"),
    "an order off by one": ("interleaved", numbers("conv", 1, rolled(1)), r"output channel 0"),
    "a wrong pick": ("grouped", numbers("site/Gather", 1, copied(3, 4)), r"Gather: channel 3"),
    "a group's row": ("grouped", numbers("conv", 1, copied(1, 2)), r"conv: output channel 1"),
    "a wrong original": (
        *("read elsewhere", numbers("conv/Gather", 1, copied(2, 3))),
        r"Gather conv/Gather: channel 2: expected conv\[2\], got conv\[3\]",
    ),
    # depthwise
    "a dead channel": (
        *("depthwise", numbers("site/Conv", 1, half(3))),
        r"Conv site/Conv: channel 3: expected -conv\[3\], got 0",
    ),
    "a lost negation": (
        *("depthwise", numbers("site/Conv", 1, scaled(3, -1))),
        r"site/Conv: channel 3: expected -conv\[3\], got conv\[3\]",
    ),
    "not quite -1": ("depthwise", numbers("site/Conv", 1, scaled(3, 0.999)), r"got -0.999"),
    "a pad in between": ("depthwise", attribute("site/Conv", "pads", [1, 0, 0, 1]), r"site"),
    "halves joined the other way": (
        *("depthwise", swapped("site/Concat")),
        r"Concat site/Concat: channel 0 and 11 more: expected relu\(conv\[0\]\)",
    ),
    "joined along another axis": ("depthwise", attribute("site/Concat", "axis", 2), r"site/Concat"),
    # pooled
    "another window": (
        *("pooled", attribute("pool/MaxPool", "kernel_shape", [2, 2])),
        r"MaxPool pool/MaxPool: .*kernel_shape",
    ),
    "a pool's pad": (
        "pooled",
        attribute("pool/MaxPool_1", "pads", [0, 1, 2, 1]),
        r"pool/MaxPool_1",
    ),
    "a pool's stride": ("pooled", attribute("pool/MaxPool", "strides", [1, 2]), r"pool/MaxPool: "),
    "averages": ("pooled", instead("pool/MaxPool", "GlobalAveragePool"), r"pool/MaxPool: "),
    "a half pooled twice": (
        *("pooled", reading("pool/MaxPool_1", 0, "z")),
        r"MaxPool_1: .*expected maxpool\(-conv\[0\]\), got maxpool\(conv\[0\]\)",
    ),
    "pools joined the other way": ("pooled", swapped("pool/Concat"), r"Concat pool/Concat"),
    # complement
    "weights that are not added": (
        *("complement", numbers("next", 1, lambda a: np.concatenate([-a[:, :6], a[:, 6:]], 1))),
        r"site site: Conv next: output channel 0 and 4 more: weight",
    ),
    "a sum off by one": ("complement", numbers("next", 1, rolled(1, 1)), r"site site: Conv next"),
    "x joined behind relu": (
        *("complement", swapped("site/Concat")),
        r"Concat site/Concat: channel 0 and 11 more: expected conv\[0\], got relu\(conv\[0\]\)",
    ),
    "no relu": ("complement", instead("site/Relu", "Identity"), r"site/Relu: .*expected relu"),
    "rounded sums": ("complement", numbers("next", 1, through_half), r"Conv next: output channel"),
    "one sum": (
        *("complement", numbers("next", 1, element((2, 9, 1, 1), 1 + 1e-6))),
        r"site site: Conv next: output channel 2: weight of relu\(conv\[3\]\) at 4",
    ),
    "rows of a product": (
        *("rows", numbers("next", 1, element((9, 2), 1.01))),
        r"site site: MatMul next: output channel 2: weight of relu\(conv\[2\]\)",
    ),
    # split
    "a part's weight": (
        *("split", numbers("next/Conv", 1, element((1, 2, 0, 0), 1.01))),
        r"site site: Add next/Add: output channel 1: weight of conv\[2\] at 0",
    ),
    "a part's pad": ("split", attribute("next/Conv", "pads", [2, 1, 0, 1]), r"next/Add"),
    "parts wired the other way": (
        "split",
        reading("next/Conv", 0, "site/Relu"),
        r"next/Add: expected to read 'z', got 'site/Relu'",
    ),
    "a difference": ("split", instead("next/Add", "Sub"), r"next/Add"),
    "a part's bias": ("split", numbers("next/Conv_1", 2, copied(1, 2)), r"output channel 1: bias"),
    # mirror, primitive, function, plugin
    "mirrored the other way": ("mirror", swapped("site/Concat"), r"Concat site/Concat: channel 0"),
    "no negation": ("mirror", instead("site/Neg", "Identity"), r"site/Neg: .*expected -conv\[0\]"),
    "a scale of one half": ("affine mirror", numbers("site/Mul", 1, lambda a: a * 2), r"site/Mul"),
    "a shift of one channel": (
        *("affine mirror", numbers("site/Add", 1, scaled(5, 2))),
        r"site/Add: channel 5",
    ),
    "one leaky half": (
        *("primitive", instead("site/Relu_1", "LeakyRelu", alpha=0.01)),
        r"site/Relu_1: .*expected relu\(-conv\[0\]\), got leakyrelu\(-conv\[0\]\)",
    ),
    "a node on another axis": (
        "function",
        attribute("site", "axis", 2),
        r"site: expected 12 channels along axis -3",
    ),
    "a body without its relu": ("function", body(2, "Abs"), r"function CReLU: its body is not"),
    "a body that negates both": ("function", body(0, "Identity"), r"function CReLU: its body"),
    "a kernel on another axis": (
        "plugin",
        attribute("site", "axis", 3),
        r"CReLU site: expected 12",
    ),
    # nothing else in the graph may change
    "another input": ("mirror", reading("next", 0, "z"), r"Conv next"),
    "the rest": ("primitive", numbers("next", 2, copied(0, 1)), r"outside .*next: .*bias"),
}
"""What is wrong -> the network, the fault, and what is said of it."""


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_is_refuted_with_its_place(name: str) -> None:
    network, fault, said = FAULTS[name]
    given = lowering(network)
    check_proved(given.canonical, given.lowered)
    fault(given.lowered)
    proof = prove(given.canonical, given.lowered)
    assert proof.refuted
    assert any(re.search(said, text) for text in proof.faults), proof.faults
    assert not proof.proved


def test_the_site_with_the_fault_is_named_and_the_others_are_proved() -> None:
    canonical = model(test_lowerings.TWO)
    lowered = lower(canonical, "fold").model
    numbers("conv1", 1, half(7))(lowered)
    proof = prove(canonical, lowered)
    assert {name: site.proved for name, site in proof.sites.items()} == {
        "first": False,
        "site": True,
    }
    assert str(proof.sites["site"]) == "proved: weights equal bit for bit"
    assert str(proof.sites["first"]).startswith("refuted: Conv conv1: output channel 7: weight")


def renamed_output(lowered: ir.Model) -> None:
    lowered.graph.outputs[0].name = "other"


def narrowed_input(lowered: ir.Model) -> None:
    lowered.graph.inputs[0].shape = ir.Shape([1, 4, 7, 9])


def typed_input(lowered: ir.Model) -> None:
    lowered.graph.inputs[0].type = ir.TensorType(ir.DataType.DOUBLE)


def older(lowered: ir.Model) -> None:
    lowered.graph.opset_imports[""] = 11


INTERFACE = {
    "output": (renamed_output, "outputs: expected y, got other"),
    "shape": (narrowed_input, "input 'x': expected FLOAT [N,4,7,9], got FLOAT [1,4,7,9]"),
    "type": (typed_input, "input 'x': expected FLOAT [N,4,7,9], got DOUBLE [N,4,7,9]"),
    "opset": (older, "opset of domain '': expected 17, got 11"),
}


@pytest.mark.parametrize("name", INTERFACE)
def test_another_interface_is_refuted(name: str) -> None:
    change, said = INTERFACE[name]
    given = lowering("mirror")
    change(given.lowered)
    assert said in prove(given.canonical, given.lowered).faults


def long(sites: int) -> ir.Model:
    """Return a network with five nodes for each site."""
    lines, constants, value = [], {}, "x"
    for i in range(sites):
        constants |= {f"w{i}": (8, 16, 1, 1), f"k{i}": (8, 1, 1)}
        lines.append(
            f"p{i} = Conv({value}, w{i}) q{i} = Mul(p{i}, k{i})"
            f" [s{i}] y{i} = crelu_deploy.CReLU<axis=1>(q{i})"
            f" a{i} = Sigmoid(y{i}) h{i} = Tanh(a{i})"
        )
        value = f"h{i}"
    return model(Case(" ".join(lines), (1, 16, 4, 4), constants), f"y = Identity({value})")


@pytest.mark.parametrize("form", ["fold", "mirror"])
def test_the_cost_grows_with_the_nodes(form: str) -> None:
    """Four times the nodes take eight times the time at most: not each with each."""
    seconds = []
    for sites in (100, 400):
        canonical = long(sites)
        lowered = lower(canonical, form).model
        start = time.process_time()
        check_proved(canonical, lowered)
        seconds.append(time.process_time() - start)
    assert seconds[1] < 8 * seconds[0] + 0.2


def test_a_network_without_sites_is_proved_too() -> None:
    case = image("[conv] y = Conv(x, w, b)")
    canonical = model(case, "")
    assert check_proved(canonical, canonical.clone()).sites == {}
