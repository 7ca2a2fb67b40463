"""Compiled binary losses of MED on the scores of a batch, and their gradients, on the CPU.

The specification is croppable/med.py with task "binary": evolutionary improvement and the Huber forms of
mutual learning. Every score gets one exponential for sigma and softplus and one for its weight, backward one
more; everything else is sums. Weights are kept unnormalised with their sums, so that one pass suffices.

Targets are judged by the same code: with its score negated, a target is a negative. The file needs numba
(extra "kge"); croppable/kge/compiled_step.py turns the sums into losses.

Shapes: G groups of scores (queries; or 1, all targets), N scores of each, K sizes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from croppable.kge.step_kernels import TINY, Floats
from croppable.kge.vector_code import cached, part, part_without_nan, span, sum_part, two_to_the

__all__ = [
    "LINEAR", "NO_HUBER", "RAW_HUBER", "RECIPROCAL", "SIGMOID_HUBER", "STATS", "exp_of_negative", "judge",
    "judge_gradients",
]  # fmt: skip

LINEAR, RECIPROCAL = range(2)  # forms of evolutionary improvement
NO_HUBER, RAW_HUBER, SIGMOID_HUBER = range(3)  # forms of mutual learning
STATS = 6  # numbers kept of a group and size
LARGEST = np.float32(1e4)  # bound of 1 / sigma, the inverse of med.py's SMALLEST_SIGMOID
ZERO, HALF, ONE = np.float32(0), np.float32(0.5), np.float32(1)
LOWEST = np.float32(-87)  # exp of less is not a normal number: 1e-38 stands for zero
TO_BASE_2 = np.float32(1.4426950408889634)
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)  # their sum is ln 2
ROUND = np.float32(1.5 * 2**23)  # adding it leaves a whole number in the low bits
# exp(r) = 1 + r + r^2 (...) for |r| <= ln 2 / 2 (Cephes, expf)
E0, E1, E2, E3, E4, E5 = (
    np.float32(c)
    for c in (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5)
)
# Interpolated at Chebyshev points: log(1 + t) / t on [0, 1] to 2e-7, exp on [-1, 0] to 1e-7
L1, L2, L3, L4, L5, L6, L7, L8 = (
    np.float32(c)
    for c in (
        -0.499995023, 0.333192706, -0.248443693, 0.191114306, -0.136747703, 0.0783616677, -0.0295885075,
        0.00525345793,
    )
)  # fmt: skip
N1, N2, N3, N4, N5, N6 = (
    np.float32(c) for c in (0.99999851, 0.499975473, 0.16651684, 0.0412265286, 0.00765717169, 0.000849954609)
)
NEAR = np.float32(4)  # logits from -NEAR to 0 take the short exponential
QUARTER = np.float32(0.25)

Number = Any  # float32 inside the compiled code


@part
def exp_of_negative(x: Number) -> Number:
    """exp(x) for x <= 0; NaN stays NaN."""
    x = LOWEST if x < LOWEST else x
    shifted = x * TO_BASE_2 + ROUND
    whole = shifted - ROUND
    r = x - whole * LN2_HIGH - whole * LN2_LOW
    series = ((((E0 * r + E1) * r + E2) * r + E3) * r + E4) * r + E5
    return (series * r * r + r + ONE) * two_to_the(shifted)


@part
def _exp_near(x: Number) -> Number:
    """exp(x) for -NEAR <= x <= 0, to 1e-6: a fourth power, without bits to shift."""
    y = QUARTER * x
    root = (((((N6 * y + N5) * y + N4) * y + N3) * y + N2) * y + N1) * y + ONE
    return (root * root) * (root * root)


@part
def _judge_scores(scores: Floats, sign: Number, sigma: Floats, loss: Floats) -> None:
    """Fill sigma(s) and log(1 + exp(s)) by one exponential and one division each."""
    for n in range(len(scores)):
        s = sign * scores[n]
        t = exp_of_negative(s if s < 0 else -s)
        large = ONE / (ONE + t)
        series = ((((((L8 * t + L7) * t + L6) * t + L5) * t + L4) * t + L3) * t + L2) * t + L1
        log = (series * t + ONE) * t  # log(1 + t)
        sigma[n] = t * large if s < 0 else large
        loss[n] = log if s < 0 else s + log


@part
def _fill_slopes(error: Floats, slopes: Floats) -> None:
    """What w1 is multiplied by in the paper's logits: 1 / sigma of a target."""
    for n in range(len(error)):
        inverse = ONE / (ONE - error[n])
        slopes[n] = inverse if inverse < LARGEST else LARGEST


@part_without_nan
def _largest_logit(scores: Floats, w: Number, temperature: Number, slopes: Floats) -> Number:
    top = w * slopes[0] + temperature * scores[0]
    for n in range(len(scores)):
        logit = w * slopes[n] + temperature * scores[n]
        top = logit if logit > top else top
    return top


# A loop that writes is kept to few arrays: it is vectorised after a check that they do not overlap.


@sum_part
def _add_weighted(
    near: bool, scores: Floats, w: Number, temperature: Number, slopes: Floats, top: Number, loss: Floats,
    error: Floats, sigma: Floats, stats: Floats,
) -> None:  # fmt: skip
    total, lost, moment, both, huber = ZERO, ZERO, ZERO, ZERO, ZERO
    for n in range(len(loss)):
        logit = w * slopes[n] - top
        weight = _exp_near(logit) if near else exp_of_negative(logit + temperature * scores[n])
        total += weight
        lost += weight * loss[n]
        moment += weight * slopes[n]
        both += weight * loss[n] * slopes[n]
        difference = sigma[n] - error[n]
        huber += difference * difference  # below one, where Huber is a square
    stats[0], stats[1], stats[2], stats[3], stats[4], stats[5] = top, total, lost, moment, both, HALF * huber


@sum_part
def _raw_huber(smaller: Floats, larger: Floats) -> Number:
    total = ZERO
    for n in range(len(smaller)):
        size = abs(larger[n] - smaller[n])
        total += HALF * size * size if size < ONE else size - HALF
    return total


@cached
def judge(
    scores: Floats,
    sign: Number,
    w: Number,
    form: int,
    temperature: Number,
    huber: int,
    own: bool,
    sigma: Floats,
    stats: Floats,
) -> None:
    """Judge every score as a negative: sigma, and the sums that the losses are made of.

    Args:
        scores: [G, K, N].
        sign: 1, or -1 to judge targets.
        w: Strength of evolutionary improvement, w1 or w2.
        form: LINEAR or RECIPROCAL.
        temperature: Of self-adversarial weights, which need ``own``; 0 is off.
        huber: NO_HUBER, RAW_HUBER or SIGMOID_HUBER.
        own: Whether weights are to be normalised per group; otherwise over all groups together.
        sigma: Filled with sigma(sign score) [G, K, N].
        stats: Filled [G, K, STATS]: offset of the logits x, then the sums of exp(x), exp(x) loss,
            exp(x) dx/dw, exp(x) loss dx/dw, and the Huber loss against the size before.
    """
    sizes, count = scores.shape[1], scores.shape[2]
    losses, reciprocal = np.empty((sizes, count), np.float32), np.empty(count, np.float32)
    nobody = np.zeros(count, np.float32)
    near = form == LINEAR and temperature == 0 and abs(w) <= NEAR
    for g in range(len(scores)):
        first = g * sizes * count
        whole = span(sigma, first, sizes * count)
        _judge_scores(span(scores, first, sizes * count), sign, whole, span(losses, 0, sizes * count))
        for k in range(sizes):
            at = first + k * count
            row, error = span(scores, at, count), span(nobody, 0, count)
            if k:
                error = span(sigma, at - count, count)
            slopes = error
            if form == RECIPROCAL:
                slopes = span(reciprocal, 0, count)
                _fill_slopes(error, slopes)
            top = w if w > 0 else ZERO  # all groups need the same offset: the largest that can be
            if own:
                top = _largest_logit(row, w, temperature, slopes)
            sums = span(stats, (g * sizes + k) * STATS, STATS)
            loss, now = span(losses, k * count, count), span(sigma, at, count)
            _add_weighted(near, row, w, temperature, slopes, top, loss, error, now, sums)
            if huber == RAW_HUBER and k:
                sums[5] = _raw_huber(span(scores, at - count, count), row)


@sum_part
def _row_gradient(
    near: bool, scores: Floats, w: Number, temperature: Number, slopes: Floats, top: Number, factor: Number,
    before: Floats, sigma: Floats, after: Floats, to_before: Number, to_after: Number, scale: Number,
    out: Floats,
) -> tuple[Number, Number]:  # fmt: skip
    """Write ``scale`` times the gradient of weighted losses and of Huber losses of sigmas with neighbours.

    Returns:
        The sums of the gradient, and of the gradient times the score.
    """
    total, moment = ZERO, ZERO
    for n in range(len(scores)):
        p = sigma[n]
        pull = to_before * (p - before[n]) + to_after * (p - after[n])
        logit = w * slopes[n] - top
        weight = _exp_near(logit) if near else exp_of_negative(logit + temperature * scores[n])
        by_score = (factor * weight + pull * (ONE - p)) * p
        total += by_score
        moment += by_score * scores[n]
        out[n] = by_score * scale
    return total, moment


@sum_part
def _raw_pull(
    scores: Floats, other: Floats, factor: Number, scale: Number, out: Floats
) -> tuple[Number, Number]:
    """Add the gradient of the Huber loss of scores with one neighbour; returns as `_row_gradient`."""
    total, moment = ZERO, ZERO
    for n in range(len(scores)):
        difference = scores[n] - other[n]
        pull = factor * (ONE if difference > ONE else (-ONE if difference < -ONE else difference))
        total += pull
        moment += pull * scores[n]
        out[n] += pull * scale
    return total, moment


@part
def _through_root(scores: Floats, scale: Number, shift: Number, gradient: Floats) -> None:
    """Go from -sqrt(-total) to the total."""
    for n in range(len(scores)):
        distance = (shift - scores[n]) / scale
        gradient[n] *= HALF / distance if distance * distance > TINY else ZERO


@cached
def judge_gradients(
    scores: Floats,
    sign: Number,
    w: Number,
    form: int,
    temperature: Number,
    huber: int,
    teach_down: bool,
    sigma: Floats,
    stats: Floats,
    factors: Floats,
    pulls: Floats,
    calibration: Floats,
    rooted: bool,
    gradients: Floats,
    sums: Floats,
) -> None:
    """Write the gradients of every size by its totals, before `Score.finish`.

    Args:
        scores: [G, K, N].
        sign: 1, or -1 for targets.
        w: w1 or w2.
        form: LINEAR or RECIPROCAL.
        temperature: Of self-adversarial weights.
        huber: NO_HUBER, RAW_HUBER or SIGMOID_HUBER.
        teach_down: Whether the larger of two neighbours has no gradient from their Huber loss.
        sigma: From `judge` [G, K, N].
        stats: From `judge` [G, K, STATS].
        factors: Upstream gradient over the sum of the weights, of each group or of all [G or 1, K].
        pulls: Upstream gradient of the Huber loss against the size before; the first is zero [K].
        calibration: Factor and offset of each size [2, K].
        rooted: Whether `Score.finish` takes a root.
        gradients: Filled [G, K, N].
        sums: Filled: sums of the gradients by scores, and of these times the scores [G, K, 2].
    """
    sizes, count = scores.shape[1], scores.shape[2]
    nobody, reciprocal = np.zeros(count, np.float32), np.empty(count, np.float32)
    by_sigma = ONE if huber == SIGMOID_HUBER else ZERO
    near = form == LINEAR and temperature == 0 and abs(w) <= NEAR
    for g in range(len(scores)):
        group = min(g, len(factors) - 1)
        for k in range(sizes):
            at, scale = (g * sizes + k) * count, calibration[0, k]
            row, gradient = span(scores, at, count), span(gradients, at, count)
            before, now, after = span(nobody, 0, count), span(sigma, at, count), span(nobody, 0, count)
            to_before, to_after = ZERO, ZERO
            if k:
                before = span(sigma, at - count, count)
                to_before = ZERO if teach_down else pulls[k]
            if k + 1 < sizes:
                after = span(sigma, at + count, count)
                to_after = pulls[k + 1]
            slopes = before
            if form == RECIPROCAL:
                slopes = span(reciprocal, 0, count)
                _fill_slopes(before, slopes)
            total, moment = _row_gradient(
                near, row, w, temperature, slopes, stats[g, k, 0], factors[group, k], before, now, after,
                by_sigma * to_before, by_sigma * to_after, sign * scale, gradient,
            )  # fmt: skip
            total, moment = sign * total, sign * moment
            if huber == RAW_HUBER:
                for i, pull in ((k - 1, to_before), (k + 1, to_after)):
                    if 0 <= i < sizes:
                        other = span(scores, (g * sizes + i) * count, count)
                        more, more_moment = _raw_pull(row, other, pull, scale, gradient)
                        total, moment = total + more, moment + more_moment
            if rooted:
                _through_root(row, scale, calibration[1, k], gradient)
            sums[g, k, 0], sums[g, k, 1] = total, moment
