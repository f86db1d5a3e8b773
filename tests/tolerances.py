"""How far a result may lie from its oracle: one table, a reason for each row; `check` compares and shows the worst."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsegen.backends.interface import Host


@dataclass(frozen=True)
class Tolerance:
    """|result - oracle| ≤ `relative` × the largest value that rounding acted on."""

    relative: float
    reason: str


# float32 has 24 bits: half a unit in the last place is 6e-8 of a value
TOLERANCES = {
    "copy": Tolerance(0.0, "no arithmetic"),
    "conv2d": Tolerance(
        2e-6,
        "sums of up to 1170 products, any order: summed directly 3e-7 (measured), and a Winograd F(4×4, 3×3) "
        "transform multiplies that by up to four (measured 7e-7)",
    ),
    "conv2d, direct": Tolerance(6e-7, "sums of up to 1152 products, one multiply-add after another"),
    "conv2d, tensor cores": Tolerance(
        6e-4,
        "inputs and weights rounded to 11 bits, up to 5e-4 of each, which sums of many products average "
        "(measured 3e-4); sums in float32",
    ),
    "matrix product": Tolerance(5e-7, "sums of 9 or 17 terms in float32, any order (measured 1e-7)"),
    "weights in float16": Tolerance(6e-4, "11 bits of each weight, up to 5e-4 of it (measured 3e-4)"),
    "weights in bfloat16": Tolerance(4e-3, "8 bits of each weight, up to 4e-3 of it (measured 2e-3)"),
    "lookup": Tolerance(5e-7, "a bias and up to 50 table rows added one after another (measured 3e-7)"),
    "attention": Tolerance(
        1e-6, "a polynomial exponential, 2 units in the last place, and two short products"
    ),
    "attention, large scores": Tolerance(
        3e-6, "scores near 60 are rounded by 2e-6, which the exponential makes a relative error"
    ),
    "rounding": Tolerance(7e-8, "computed in float64, rounded once: half a unit in the last place"),
    "float64": Tolerance(1e-15, "a few operations in float64: its half unit in the last place is 1e-16"),
    "sum of changes": Tolerance(
        1e-14, "sums in float64 of up to 1800 terms, any order; relative to the sum of their magnitudes"
    ),
    "followed moments": Tolerance(
        1e-6, "measured once, in float32 or near it; then moved in float64 (measured 3e-7)"
    ),
    "norm_affine": Tolerance(
        1e-6, "moments, a scale and a shift rounded, then a product and a sum in float32 (measured 2e-7)"
    ),
    "pipeline": Tolerance(
        1e-4,
        "four steps of a text encoder, a UNet in two halves and a decoder, each within 1e-5 of its largest value",
    ),
    "linear": Tolerance(5e-7, "sums of up to 300 products, any order (measured 1.4e-7)"),
    "layer norm": Tolerance(
        1e-6, "two moments of up to 320 channels, a root and the products with them; then as a convolution"
    ),
    "geglu": Tolerance(
        1e-6, "a polynomial of nine terms, two exponentials, two products; then as a convolution"
    ),
    "layer norm, large mean": Tolerance(
        3e-6, "the mean of values near 30 is rounded by 1e-6, and the subtraction keeps that error"
    ),
    "pointwise": Tolerance(3e-7, "up to five products and sums, fused or not, and one activation"),
    "activation": Tolerance(2e-7, "an exponential and a division: three units in the last place"),
    "mean": Tolerance(2e-7, "a sum in float64, or in float32 by halves; relative to the largest value"),
    "variance": Tolerance(5e-7, "deviations rounded, then squared; relative to the largest variance"),
    "variance, large mean": Tolerance(
        2e-6, "a mean 100 times the deviation: mean(x²) - mean(x)² in float32 would be wrong by 1e-3"
    ),
    "parity": Tolerance(
        1e-5,
        "some twenty layers in a row, each a float32 sum of up to 1152 products in another order than PyTorch's "
        "(measured 4e-6 with Winograd's transforms)",
    ),
    "parity, UNet": Tolerance(
        1e-5,
        "as before in some sixty layers with group norms, whose statistics are sums too, and attention "
        "(measured 6e-6 with Winograd's transforms)",
    ),
    "UNet, tensor cores": Tolerance(
        3e-3,
        "some sixty layers, inputs and weights of each convolution rounded to 11 bits (measured 1e-3)",
    ),
    "backends": Tolerance(
        1e-5,
        "some twenty layers in a row on two backends, Winograd's transforms or codebooks in one of them "
        "(measured 2e-6)",
    ),
    "backends, measured statistics": Tolerance(
        2e-4,
        "as before, and channels that hardly vary are divided by a deviation near 0 (measured 7e-5, and 3e-5 "
        "between two orders of one sum)",
    ),
    "golden": Tolerance(
        3e-5,
        "the reference's formulas on another processor, whose matrix products sum in another order, in some twenty to "
        "sixty layers (measured 5e-6 between OpenBLAS's kernels for Haswell and Sandy Bridge)",
    ),
    "float16 caches": Tolerance(
        3e-3,
        "each of some thirty layers' values rounded to 11 bits, 5e-4 of them; three steps (measured 1.5e-3)",
    ),
    "alphas_bar": Tolerance(
        1e-6, "diffusers rounds each of up to 1000 factors 1 - β to float32, 3e-8 of it (measured 5e-7)"
    ),
    "trajectory": Tolerance(
        1e-6, "up to twenty steps of ten float32 operations each, where α is over 0.1 (measured 5e-7)"
    ),
    "trajectory, along a velocity": Tolerance(
        3e-6, "a velocity is the noise over α, from 0.3 on, rounded to float32 (measured 7e-7)"
    ),
    "sampler": Tolerance(
        1e-5,
        "diffusers computes α and σ in float32, and 1 - ᾱ loses bits: up to 8e-6 of x (measured), 2e-4 where "
        "DDPM takes hundreds of short steps",
    ),
    "sampler, α in float64": Tolerance(
        1e-6,
        "the same float32 operations, with scalars that differ by a unit in their last place (measured 0)",
    ),
    "sampler, α in float64, other operations": Tolerance(
        3e-6,
        "one formula in another order of operations, up to 50 steps from σ/α of up to 2e4 (measured 1.2e-6)",
    ),
    "randn": Tolerance(
        5e-7,
        "PyTorch approximates logarithm, sine and cosine in float32 (measured 4.8e-7 of numbers up to 5)",
    ),
    "oracle": Tolerance(1e-13, "two float64 formulas of one convolution"),
    "interpolate": Tolerance(
        1e-6, "PyTorch rounds source positions to float32: up to 5e-7 of a pixel in an image of 12"
    ),
}


def check(row: str, result: Host, oracle: Host, *, largest: float | None = None) -> None:
    """Assert that `result` agrees with `oracle` within a row of the table; on failure say how far off and where.

    `largest` is the largest value that rounding acted on, when the oracle's own values are smaller (a squashed
    activation, a cancelled sum).
    """
    assert result.shape == oracle.shape, f"{result.shape} instead of {oracle.shape}"
    if not oracle.size:
        return
    largest = float(np.abs(oracle).max()) if largest is None else largest
    off = np.abs(result.astype(np.float64) - oracle)
    off[~np.isfinite(result)] = np.inf
    worst = np.unravel_index(int(off.argmax()), off.shape)
    allowed = TOLERANCES[row].relative
    assert off[worst] <= allowed * largest, (
        f"{row}: {result[worst]!r} instead of {oracle[worst]!r} at {tuple(map(int, worst))}; "
        f"off by {off[worst] / largest:.2e} of the largest value, allowed {allowed:.0e} ({TOLERANCES[row].reason})"
    )
