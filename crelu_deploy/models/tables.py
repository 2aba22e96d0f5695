"""The layer tables: CReLU's paper (Shang et al., ICML 2016), its baselines, and the digits demo.

The paper prints its tables with slips; the readings taken here are the ones that agree with the
parameter counts it reports, and each row of ``ROWS`` says how well. Dropout of ConvPool-CNN-C and
of All-CNN-B is that of Springenberg et al. (2015), VGG for CIFAR is the public Torch network that
the paper starts from.
"""

from __future__ import annotations

from dataclasses import dataclass

from crelu_deploy.models.sequential import Average, Conv, Dropout, Flatten, Layer, Linear, MaxPool

_POOL = (MaxPool(3, 2), Dropout(0.5))
_TAIL = (
    *(Conv(3, padding=1), Conv(3, padding=1), Conv(3, padding=1), *_POOL),
    # The padding of a 1x1 convolution is real: it makes the 10x10 map that the paper averages.
    *(Conv(3, padding=1), Conv(1, padding=1), Conv(1), Average()),
)
CONVPOOL = (Dropout(0.2), Conv(3, padding=1), Conv(3, padding=1), *_POOL, *_TAIL)
"""ConvPool-CNN-C as the paper prints it, 8 convolutions."""

CONVPOOL_9 = (Dropout(0.2), *(3 * (Conv(3, padding=1),)), *_POOL, *_TAIL)
"""ConvPool-CNN-C with the three convolutions before the first pool that its origin has."""

_C3 = Conv(3, padding=1, bn=True)
_M2 = MaxPool(2, 2)
_BLOCK = (_C3, Dropout(0.4), _C3, Dropout(0.4), _C3, _M2)
VGG: tuple[Layer, ...] = (
    *(_C3, Dropout(0.3), _C3, _M2),
    *(_C3, Dropout(0.4), _C3, _M2),
    *(3 * _BLOCK),
    *(Flatten(), Dropout(0.5), Linear(bn=True), Dropout(0.5), Linear()),
)
"""VGG-16 for 32x32 images: 13 convolutions and 2 fully connected layers, batch norm throughout."""

ALL_CNN_B: tuple[Layer, ...] = (
    *(Conv(11, 4), Conv(1), Conv(3, 2)),
    *(Conv(5, 1, 2), Conv(1), Conv(3, 2)),
    *(Conv(3, 1, 1), Conv(1), Conv(3, 2, 1), Dropout(0.5)),
    *(Conv(3, 1, 1), Conv(1), Conv(1), Average()),
)
"""All-CNN-B for ImageNet: strides instead of pools; strides and padding give its 6x6 last map."""

DIGITS: tuple[Layer, ...] = (
    *(Conv(3, padding=1), Conv(3, padding=1), MaxPool(3, 2), Dropout(0.2)),
    *(Conv(3, padding=1), Conv(3, padding=1), MaxPool(3, 2), Dropout(0.2)),
    *(Conv(3, padding=1), Conv(1), Conv(1), Average()),
)
"""ConvPool-CNN-C in small, for 28x28 digits."""


@dataclass(frozen=True)
class Row:
    """One network of a table.

    Attributes:
        layers: Its table.
        widths: Filters and activations, as in ``sequential``.
        reported: The paper's number of parameters, as it prints it; None if it prints none.
        verdict: How the real number compares, in words; ``{gap}`` stands for the difference.
    """

    layers: tuple[Layer, ...]
    widths: str
    reported: str | None = None
    verdict: str = "no count reported"


_EIGHT = "{gap}: one convolution fewer than counted"
_NINE = "{gap}: reports are 1.4M, scaled"
_HALVED = "no count reported; filters halved"

CONVPOOL_ROWS = {
    "convpool-c-relu": Row(CONVPOOL, "96 96 192 192 192 192 192 n", "1.4M", _EIGHT),
    "convpool-c-avr": Row(CONVPOOL, "96a 96a 192a 192a 192a 192a 192a n", "1.4M", _EIGHT),
    "convpool-c-double": Row(CONVPOOL, "192 192 384 384 384 384 384 n", "5.6M", _EIGHT),
    "convpool-c-crelu": Row(CONVPOOL, "96c 96c 192c 192c 192c 192c 192c n", "2.8M", _EIGHT),
    # Printed with 48 filters in conv3, which is not half of the baseline.
    "convpool-c-crelu-half": Row(CONVPOOL, "48c 48c 96c 96c 96c 96c 96c n", "0.7M", _EIGHT),
}
VGG_ROWS = {
    f"vgg-{name}": Row(VGG, f"{widths} 256 256 512 512 512 512 512 512 512 n-", None, verdict)
    for name, widths, verdict in (
        ("relu", "64 64 128 128 256", "no count reported"),
        ("crelu-1", "32c 64 128 128 256", _HALVED),
        ("crelu-1-3", "32c 64 64c 128 256", _HALVED),
        ("crelu-1-3-5", "32c 64 64c 128 128c", _HALVED),
    )
}
_AVR4 = "96a 96a 96a 256a 256 256 384 384 384 1024 1024 n-"
_AVR7 = "96a 96a 96a 256a 256a 256a 384a 384 384 1024 1024 n-"
_CRELU4 = "96c 96c 96c 256c 256 256 384 384 384 1024 1024 n-"
_CRELU7 = "96c 96c 96c 256c 256c 256c 384c 384 384 1024 1024 n-"
_HALF = "48c 48c 48c 128c 128c 128c 192c 192c 192c 512c 512 n-"
_HALF_147 = "48c 96 96 128c 256 256 192c 384 384 1024 1024 n-"
_LOW = "{gap}: the report misses half of what conv8 reads"
ALL_CNN_B_ROWS = {
    "all-cnn-b-relu": Row(ALL_CNN_B, _AVR4.replace("a", ""), "9.37M", "match"),
    "all-cnn-b-avr-1-4": Row(ALL_CNN_B, _AVR4, "9.37M", "match"),
    "all-cnn-b-avr-1-7": Row(ALL_CNN_B, _AVR7, "9.37M", "match"),
    "all-cnn-b-crelu-all-half": Row(
        ALL_CNN_B, _HALF, "4.68M", "match (weights only; conv11 with ReLU)"
    ),
    "all-cnn-b-crelu-1-4": Row(ALL_CNN_B, _CRELU4, "10.14M", "match"),
    "all-cnn-b-crelu-1-7": Row(ALL_CNN_B, _CRELU7, "11.62M", _LOW),
    "all-cnn-b-crelu-1-4-7-half": Row(ALL_CNN_B, _HALF_147, "8.60M", "match (weights only)"),
}


def scaled(row: Row, width: float) -> Row:
    """Return the row with every number of filters times ``width``, at least 1; it has no report."""

    def entry(text: str) -> str:
        filters = text.rstrip("ca-")
        mark = text[len(filters) :]
        return text if filters == "n" else f"{max(1, round(int(filters) * width))}{mark}"

    return Row(row.layers, " ".join(map(entry, row.widths.split())))


def nine(row: Row) -> Row:
    """Return the 9-convolution form of a row of ``CONVPOOL_ROWS``: its first layer once more."""
    first = row.widths.split()[0]
    return Row(CONVPOOL_9, f"{first} {row.widths}", row.reported, _NINE)
