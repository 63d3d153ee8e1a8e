"""A small space of adapters over the tiny U-Net, with two attributes, small enough for any test."""

from __future__ import annotations

import torch

from models.bases import UNetBase
from models.methods.weights2weights_directions import with_attributes
from models.methods.weights2weights_layout import Layout
from models.methods.weights2weights_space import Space, fit_space


def tiny_layout(base: UNetBase) -> Layout:
    return Layout.of(base.unet, base_hash="tiny")


def tiny_weights(layout: Layout, models: int = 40, seed: int = 0) -> torch.Tensor:
    """(m,n): adapters about one start, varying in twelve hidden factors and a little in everything."""
    generator = torch.Generator().manual_seed(seed)
    start, factors = torch.randn(layout.size, generator=generator) * 0.1, torch.randn(12, layout.size, generator=generator) * 0.03
    own, rest = torch.randn(models, 12, generator=generator), torch.randn(models, layout.size, generator=generator) * 0.003
    return start + own @ factors + rest


def tiny_space(base: UNetBase, components: int = 10) -> Space:
    """Attributes "tall" and "round", which go together in part."""
    layout = tiny_layout(base)
    weights = tiny_weights(layout)
    space = fit_space(weights, layout, n_components=components)
    p_mk = space.project(weights)
    x_mk = (p_mk - space.proj_mean_k) / space.proj_std_k
    labels = {"tall": (x_mk[:, 0] + 0.3 * x_mk[:, 3]).sign(), "round": (x_mk[:, 1] + 0.5 * x_mk[:, 0]).sign()}
    return with_attributes(space, p_mk, labels, authors=True)
