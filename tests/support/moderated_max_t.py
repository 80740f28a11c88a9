"""A plain second implementation of the moderated, crossed, simultaneous comparison, to test the product's against.

It follows the formulas step by step, contrast by contrast in one dense product, and shares no code with the product.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

_Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Compared:
    """Contrasts [m] of settings [k]; best: the 95 % quantile of each setting's one-sided maximum over its contrasts."""

    m: _Floats
    Ws: _Floats
    We: _Floats
    W: _Floats
    phi0: float
    nu0: float
    d0: float
    d: _Floats
    own: _Floats
    phi: _Floats
    v_seed: _Floats
    v_example: _Floats
    se: _Floats
    crit: float
    best: _Floats
    low: _Floats
    high: _Floats
    p: _Floats


def mean_squares(values: NDArray[Any]) -> tuple[_Floats, _Floats, _Floats, _Floats]:
    """Returns m, Ws, We, W of values [settings, seeds, examples]."""
    x = np.asarray(values, float)
    k, S, N = x.shape
    m, a, b = x.mean((1, 2)), x.mean(2), x.mean(1)
    A, B = a - m[:, None], b - m[:, None]
    R = x - a[:, :, None] - b[:, None, :] + m[:, None, None]
    R = R.reshape(k, -1)
    return m, N * A @ A.T / (S - 1), S * B @ B.T / (N - 1), R @ R.T / ((S - 1) * (N - 1))


def trigamma_inverse(x: float) -> float:
    y = 0.5 + 1 / x
    for _ in range(50):
        t = special.polygamma(1, y)
        step = t * (1 - t / x) / special.polygamma(2, y)
        y += step
        if -step / y < 1e-8:
            break
    return float(y)


def prior(Ws: _Floats, W: _Floats, S: int) -> tuple[float, float, float]:
    """Returns phi0, nu0, d0."""
    k, n = len(Ws), S - 1
    P = np.eye(k) - 1 / k
    PW, PS = P @ W @ P, P @ Ws @ P
    trace = np.trace(PW)
    if trace <= 1e-12:
        return 1.0, float((k - 1) * n), np.inf
    phi0 = max(np.trace(PS) / trace, 1.0)
    nu0 = n * trace**2 / (PW**2).sum()
    use = (np.diag(PW) > 1e-12) & (np.diag(PS) > 1e-12)
    d0 = np.inf
    if k > 2:
        if use.sum() > 2:
            excess = np.log(np.diag(PS)[use] / np.diag(PW)[use]).var(ddof=1) - special.polygamma(1, n / 2)
            d0 = 2 * trigamma_inverse(excess) if excess > 0 else np.inf
        d0 = min(d0, max(2.0 * n, nu0 / 2))
    return phi0, nu0, d0


def _root(covariance: _Floats) -> _Floats:
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    root: _Floats = vectors * np.sqrt(np.clip(values, 0, None))
    return root


def compare(values: NDArray[Any], C: _Floats, *, draws: int = 20_000, seed: int = 0) -> Compared:
    """Compares settings of right and wrong answers by contrasts C [m, k]."""
    k, S, N = values.shape
    n = S - 1
    m, Ws, We, W = mean_squares(values)
    phi0, nu0, d0 = prior(Ws, W, S)
    v = {name: np.einsum("mi,ij,mj->m", C, A, C) for name, A in (("Ws", Ws), ("We", We), ("W", W))}
    w = np.maximum(v["W"], 0)
    unit = w / (S * N)
    own = np.where(w > 1e-12, v["Ws"] / np.maximum(w, 1e-12), 1)
    v_example = np.maximum(v["We"] - w, 0) / (S * N) + (C**2).sum(1) / 2 / N**2

    def shrink(p0: Any, p: Any) -> Any:
        return np.maximum(p0 if np.isinf(d0) else (d0 * p0 + n * p) / (d0 + n), 1.0)

    phi = shrink(phi0, own)
    se = np.sqrt(phi * unit + v_example)
    rng = np.random.default_rng(seed)
    P = np.eye(k) - 1 / k
    trace = np.trace(P @ W @ P)
    drawn = []
    for start in range(0, draws, 500):
        b = min(500, draws - start)
        a = rng.standard_normal((b, S, k)) @ _root(W / N).T
        spread = np.minimum(d0 / rng.chisquare(d0, (b, 1, k)), 100) if np.isfinite(d0) else 1.0
        truth = phi0 * np.minimum(nu0 / rng.chisquare(nu0, (b, 1, 1)), 1e4)
        a *= np.sqrt(1 + np.maximum(truth - 1, 0) * spread)
        e = rng.standard_normal((b, k)) @ _root((We - W) / (S * N)).T
        mean = a.mean(1)
        dev = a - mean[:, None]
        centred = dev - dev.mean(2, keepdims=True)
        p0 = np.maximum(N * (centred**2).sum((1, 2)) / n / max(trace, 1e-12), 1)[:, None]
        p = np.where(w > 1e-12, N * ((dev @ C.T) ** 2).sum(1) / n / np.maximum(w, 1e-12), 1)
        drawn.append((mean + e) @ C.T / np.sqrt(shrink(p0, p) * unit + v_example))
    t = np.concatenate(drawn)
    top = np.sort(np.abs(t).max(1))
    crit = max(np.quantile(top, 0.95), stats.norm.isf(0.025))
    behind = [np.concatenate([t[:, C[:, i] < 0], -t[:, C[:, i] > 0]], axis=1).max(1) for i in range(k)]
    best = np.array([np.quantile(np.maximum(each, 0), 0.95) for each in behind])
    d = C @ m
    absolute = np.abs(d) / se
    above = len(top) - np.searchsorted(top, absolute, "left")
    p_adjusted = np.maximum((1 + above) / (1 + len(top)), 2 * stats.norm.sf(absolute))
    low, high = d - crit * se, d + crit * se
    return Compared(
        m, Ws, We, W, phi0, nu0, d0, d, own, phi, phi * unit, v_example, se, crit, best, low, high, p_adjusted
    )


def pair_contrasts(k: int) -> _Floats:
    """Returns each setting minus every earlier one [pairs, k], in the order of the product's pairs."""
    pairs = [(first, second) for second in range(k) for first in range(second + 1, k)]
    return np.array([np.eye(k)[first] - np.eye(k)[second] for first, second in pairs])
