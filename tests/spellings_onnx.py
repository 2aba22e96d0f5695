"""Spellings and lookalikes as ONNX text: they compute y of x, of shape (2, 4, 3, 3)."""

from __future__ import annotations

CONSTANTS = "float minus = {-1.0}, float[1] minus1 = {-1.0}, float zero = {0.0}, float six = {6.0}"
SPELLED = {
    "times a scalar": ("n = Mul(x, minus) c = Concat<axis=1>(x, n) y = Relu(c)", 17, "CReLU"),
    "scalar times": ("n = Mul(minus1, x) c = Concat<axis=1>(x, n) y = Relu(c)", 9, "CReLU"),
    "constant node": (
        "m = Constant<value = float {-1.0}>() n = Mul(x, m) c = Concat<axis=1>(x, n) y = Relu(c)",
        11,
        "CReLU",
    ),
    "constant of float": (
        "m = Constant<value_float = -1.0>() n = Div(x, m) c = Concat<axis=1>(x, n) y = Relu(c)",
        13,
        "CReLU",
    ),
    "folded scalar": (
        "m = Neg(minus) k = Neg(m) n = Mul(x, k) c = Concat<axis=1>(x, n) y = Relu(c)",
        13,
        "CReLU",
    ),
    "zero minus": ("n = Sub(zero, x) c = Concat<axis=1>(x, n) y = Relu(c)", 20, "CReLU"),
    "zeros like": (
        "s = Shape(x) z = ConstantOfShape(s) n = Sub(z, x) c = Concat<axis=1>(x, n) y = Relu(c)",
        20,
        "CReLU",
    ),
    "zeros expanded": (
        "s = Shape(x) z = Expand(zero, s) p = Max(x, z) m = Min(x, z) n = Neg(m)"
        " y = Concat<axis=1>(p, n)",
        17,
        "CReLU",
    ),
    "clip by attribute": ("n = Neg(x) c = Concat<axis=1>(x, n) y = Clip<min=0.0>(c)", 9, "CReLU"),
    "clip by input": ("n = Neg(x) c = Concat<axis=1>(x, n) y = Clip(c, zero)", 13, "CReLU"),
    "relu6": ("n = Neg(x) c = Concat<axis=1>(x, n) y = Clip(c, zero, six)", 15, "CClip"),
    "relu then min": (
        "n = Neg(x) c = Concat<axis=1>(x, n) r = Relu(c) y = Min(r, six)",
        17,
        "CClip",
    ),
    "sign times": (
        "n = Neg(x) a = Relu(x) b = Relu(n) s = Sign(b) t = Mul(b, s) y = Concat<axis=1>(a, t)",
        17,
        "CReLU",
    ),
    "dropout and identity": (
        "i = Identity(x) n = Neg(i) c = Concat<axis=1>(x, n) d = Dropout(c) y = Relu(d)",
        13,
        "CReLU",
    ),
    "thresholded": (
        "n = Neg(x) c = Concat<axis=1>(x, n) y = ThresholdedRelu<alpha=0.0>(c)",
        11,
        "CReLU",
    ),
    "compared": (
        "n = Neg(x) c = Concat<axis=1>(x, n) g = Less(c, zero) y = Where(g, zero, c)",
        9,
        "CReLU",
    ),
    "cast mask": (
        "n = Neg(x) c = Concat<axis=1>(x, n) g = Greater(c, zero) f = Cast<to=1>(g)"
        " r = Where(g, c, zero) y = Mul(r, f)",
        17,
        "CReLU",
    ),
    "leaky": ("n = Neg(x) c = Concat<axis=1>(x, n) y = LeakyRelu(c)", 7, "CLeakyRelu"),
    "prelu": (
        "n = Neg(x) c = Concat<axis=1>(x, n) h = Constant<value = float[1] {0.25}>()"
        " y = PRelu(c, h)",
        9,
        "CLeakyRelu",
    ),
    "elu": ("n = Neg(x) c = Concat<axis=1>(x, n) y = Elu<alpha=0.5>(c)", 7, "CElu"),
    "double negation": (
        "n = Neg(x) m = Neg(n) p = Relu(m) q = Relu(n) y = Concat<axis=1>(p, q)",
        17,
        "CReLU",
    ),
    "default axis of opset 13 counted back": (
        "n = Neg(x) c = Concat<axis=-3>(x, n) y = Relu(c)",
        13,
        "CReLU",
    ),
}
"""Body, opset and type of the canonical node; the constants are ``CONSTANTS``."""

EIGHT = "{1, -2, 3, 4, 5, 6, 7, 8}"
AFFINE = {
    "scale": (f"float[1,8,1,1] s = {EIGHT}", "t = Mul(c, s) y = Relu(t)"),
    "scale of rank 3": (f"float[8,1,1] s = {EIGHT}", "t = Mul(s, c) y = Relu(t)"),
    "shift": (f"float[1,8,1,1] s = {EIGHT}", "t = Add(c, s) y = Relu(t)"),
    "shift taken away": (f"float[1,8,1,1] s = {EIGHT}", "t = Sub(c, s) y = Relu(t)"),
    "scalar": ("float s = {0.5}", "t = Mul(c, s) y = Relu(t)"),
    "scalars": ("float s = {0.5}, float[1] b = {2}", "t = Mul(c, s) u = Add(t, b) y = Relu(u)"),
    "scale of the second half": (
        "float[8,1,1] s = {1, 1, 1, 1, 2, 2, 2, 2}",
        "t = Mul(c, s) y = Relu(t)",
    ),
    "shift and scale": (
        "float[8,1,1] s = {1, 2, 4, 8, 1, 2, 4, 8}, float b = {0.5}",
        "t = Add(c, b) u = Mul(t, s) y = Relu(u)",
    ),
    "scale and shift": (
        f"float[8,1,1] s = {EIGHT}, float[1,8,1,1] b = {EIGHT}",
        "t = Mul(c, s) u = Add(t, b) y = LeakyRelu(u)",
    ),
    "full shape": (
        "float[8,3,1] s = {1,1,1,2,2,2,3,3,3,4,4,4,5,5,5,6,6,6,7,7,7,8,8,8}",
        "t = Mul(c, s) y = Relu(t)",
    ),
    "batch norm": (
        "float[8] g = {1,2,3,4,5,6,7,8}, float[8] b = {0,1,0,1,0,1,0,1}",
        "t = BatchNormalization(c, g, b, b, g) y = Relu(t)",
    ),
}
"""Constants, and what follows the concat c of x and its negative."""

LOOKALIKES = {
    "abs": "n = Neg(x) p = Relu(x) q = Relu(n) y = Add(p, q)",
    "integer": "n = Neg(x) c = Concat<axis=1>(x, n) y = Relu(c)",
    "another tensor": "a = Sigmoid(x) b = Softmax<axis=1>(x) n = Neg(b) p = Relu(a) q = Relu(n)"
    " y = Concat<axis=1>(p, q)",
    "training dropout": "n = Neg(x) c = Concat<axis=1>(x, n) d = Dropout(c, half, yes) y = Relu(d)",
    "training batch norm": "n = Neg(x) c = Concat<axis=1>(x, n)"
    " b = BatchNormalization<training_mode=1>(c, eight, eight, eight, eight) y = Relu(b)",
    "slope per channel": "n = Neg(x) c = Concat<axis=1>(x, n) y = PRelu(c, slopes)",
    "slopes nearly the same": "n = Neg(x) c = Concat<axis=1>(x, n) y = PRelu(c, near)",
    "shift per pixel": "n = Neg(x) c = Concat<axis=1>(x, n) t = Add(c, pixels) y = Relu(t)",
    "wider by a constant": "n = Neg(x) p = Relu(x) t = Add(n, wide) q = Relu(t)"
    " r = Relu(wide) u = Add(p, r) y = Concat<axis=1>(u, q)",
    "variable scale": "v = GlobalAveragePool(x) n = Neg(x) c = Concat<axis=1>(x, n)"
    " d = Concat<axis=1>(v, v) t = Mul(c, d) y = Relu(t)",
    "rounded": "h = Cast<to=10>(x) g = Cast<to=1>(h) n = Neg(g) c = Concat<axis=1>(x, n)"
    " y = Relu(c)",
    "off beyond a million": "m = Clip(x, low, high) n = Neg(m) c = Concat<axis=1>(x, n)"
    " y = Relu(c)",
    "a window": "n = Neg(x) c = Concat<axis=1>(x, n) r = Relu(c) a = Greater(c, from)"
    " b = Less(c, until) w = And(a, b) y = Where(w, half, r)",
    "a window before relu": "n = Neg(x) c = Concat<axis=1>(x, n) a = Greater(c, from)"
    " b = Less(c, until) w = And(a, b) r = Where(w, half, c) y = Relu(r)",
    "norm on another axis": "t = Transpose<perm=[0,2,3,1]>(x) n = Neg(t) c = Concat<axis=3>(t, n)"
    " b = BatchNormalization(c, three, three, three, three) y = Relu(b)",
    "two casts": "a = Cast<to=11>(x) b = Cast<to=11>(x) p = Relu(a) n = Neg(b) q = Relu(n)"
    " c = Concat<axis=1>(p, q) y = Cast<to=1>(c)",
    "random": "r = RandomNormalLike(x) p = Relu(x) n = Neg(r) q = Relu(n) y = Concat<axis=1>(p, q)",
}
LOOKALIKE_CONSTANTS = (
    "float half = {0.5}, float from = {0.7}, float until = {0.72}, float[3] three = {1,2,3},"
    " bool yes = {1}, float low = {-1e6}, float high = {1e6}, float[3,1] pixels = {1,2,3},"
    " float[8] eight = {1,2,3,4,5,6,7,8},"
    " float[8,1,1] near = {0.1,0.1,0.1,0.1,0.1,0.1,0.1,0.100001},"
    " float[2,1,1,1,1] wide = {0,0}, float[8,1,1] slopes = {0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8}"
)
