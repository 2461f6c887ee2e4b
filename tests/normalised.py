"""Hubness normalisation from its formulas, in float64 and one item at a time; shares no code with the engine."""

from __future__ import annotations

from typing import Any

import numpy as np

from oracle import OracleCollection

Doubles = np.ndarray[Any, np.dtype[np.float64]]


def similarity(metric: str, query: Any, item: Any) -> Doubles:
    """All similarities ``(m, n)`` of queries and items, higher is nearer; l2: minus half the squared distance."""
    q, x = np.atleast_2d(np.asarray(query, np.float64)), np.atleast_2d(np.asarray(item, np.float64))
    if metric == "l2":
        return -((q[:, None, :] - x[None, :, :]) ** 2).sum(axis=2) / 2
    product = q @ x.T
    if metric == "cosine":
        product = product / np.linalg.norm(q, axis=1)[:, None] / np.linalg.norm(x, axis=1)[None, :]
    return product


def log_sum_exp(values: Doubles, axis: int) -> Doubles:
    most = values.max(axis=axis, keepdims=True)
    return (most + np.log(np.exp(values - most).sum(axis=axis, keepdims=True))).squeeze(axis)


def inverted_softmax(sims: Doubles, beta: float) -> Doubles:
    return log_sum_exp(beta * sims, 0) / beta


def dual_inverted_softmax(bank: Doubles, gallery: Doubles, beta: float, gallery_beta: float) -> Doubles:
    return (log_sum_exp(gallery_beta * gallery, 0) + log_sum_exp(beta * bank, 0)) / (gallery_beta + beta)


def nearest_mean(sims: Doubles, alpha: float, k: int) -> Doubles:
    return alpha * np.sort(sims, axis=0)[-k:].mean(axis=0)


def sinkhorn_potentials(sims: Doubles, tau: float, passes: int) -> Doubles:
    heat, heights = sims / tau, np.zeros(sims.shape[1])
    found = np.zeros(len(sims))
    for _ in range(passes):
        found = log_sum_exp(heat - heights, 1)
        heights = log_sum_exp(heat - found[:, None], 0)
    return found


def sinkhorn(sims: Doubles, tau: float, passes: int) -> Doubles:
    return tau * log_sum_exp(sims / tau - sinkhorn_potentials(sims, tau, passes)[:, None], 0)


def bias_of(model: Any, metric: str, item: Any) -> float:
    """The bias of one item under a fitted model, from the model's bank and numbers alone."""
    recipe, dim = model.recipe, len(item)
    sims = similarity(metric, model.bank.queries[:, :dim], item)[:, 0]
    if recipe.method in ("nnn", "csls"):
        return float(recipe.strength * np.sort(sims)[-recipe.neighbours :].mean())
    beta = recipe.beta / model.unit
    whole = float(log_sum_exp(beta * sims + model.bank.logs.astype(np.float64), 0))
    if model.gallery is None:
        return whole / beta
    others = similarity(metric, model.gallery.queries[:, :dim], item)[:, 0]
    gallery_beta = recipe.gallery_strength / model.unit
    return (float(log_sum_exp(gallery_beta * others, 0)) + whole) / (gallery_beta + beta)


def ranking(
    oracle: OracleCollection, model: Any, field: str, query: Any, filter_body: Any = None, hidden: Any = ()
) -> list[tuple[int | str, float, float]]:
    """Every point that passes, best first: id, adjusted score, bias."""
    metric = oracle.fields[field][1]
    found = []
    for point_id in oracle.select(filter_body):
        own = oracle.points[point_id].vectors.get(field)
        if own is None or point_id in hidden:
            continue
        bias = bias_of(model, metric, own)
        found.append((point_id, float(similarity(metric, query, own)[0, 0]) - bias, bias))
    return sorted(found, key=lambda entry: -entry[1])
