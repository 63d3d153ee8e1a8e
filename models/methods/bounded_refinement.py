"""Bounded Attention's masks, refined while a picture is made: cells that attend alike are clustered, clusters given to subjects.

n cells of the mask layers' grid, S subjects. Numbers and order: arXiv 2403.16990 and its authors' code (github.com/omer11a/bounded-attention).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor

SCORE_THRESHOLD = 0.2  # a cluster below it for every subject is background
SIGMOID_SLOPE, SIGMOID_MIDDLE = 10.0, 0.2

Cluster: TypeAlias = Callable[[Tensor], Tensor]
"""From (n, n) features, a cell a row, to (n,) labels from 0."""


@dataclass
class Maps:
    """Sums of a row's attention in the mask layers, over layers and denoising calls; `self_nn` and `leading_nS` are their means."""

    self_sum: Tensor | None = None
    self_count: int = 0
    leading_sum: Tensor | None = None
    leading_count: int = 0

    def add_self(self, attention_nn: Tensor) -> None:
        """A self-attention layer's map over queries and keys, mean over heads."""
        self.self_sum = attention_nn if self.self_sum is None else self.self_sum + attention_nn
        self.self_count += 1

    def add_leading(self, attention_nS: Tensor) -> None:
        """A cross-attention layer's map of each subject's leading token, mean over heads."""
        self.leading_sum = attention_nS if self.leading_sum is None else self.leading_sum + attention_nS
        self.leading_count += 1

    def self_mean(self) -> Tensor:
        """(n,n) over queries and keys."""
        assert self.self_sum is not None
        return self.self_sum / self.self_count

    def leading_mean(self) -> Tensor:
        """(n,S)."""
        assert self.leading_sum is not None
        return self.leading_sum / self.leading_count


class KMeansClusters:
    """KMeans with k-means++ from a seed, several restarts the first time, afterwards from the last centres."""

    def __init__(self, clusters: int, seed: int, restarts: int) -> None:
        self.clusters, self.seed, self.restarts = clusters, seed % 2**32, restarts
        self.centres: np.ndarray | None = None

    def __call__(self, features_nn: Tensor) -> Tensor:
        features = features_nn.double().cpu().numpy()
        k = min(self.clusters, len(features))
        first = self.centres is None
        make: Any = KMeans  # its types admit the defaults only
        kmeans = make(k, init="k-means++" if first else self.centres, n_init=self.restarts if first else 1, random_state=self.seed)
        fitted = kmeans.fit(features)
        self.centres = fitted.cluster_centers_
        return torch.from_numpy(fitted.labels_.astype(np.int64))


def refined_masks(maps: Maps, masks_Sn: Tensor, regions_Sn: Tensor, cluster: Cluster) -> Tensor:
    """(S,n) bool: masks from a row's maps so far, given those in force and the regions as fallback."""
    self_nn, leading_nS = maps.self_mean().cpu(), maps.leading_mean().cpu()
    labels_n = cluster(self_nn / self_nn.amax(0, keepdim=True))
    return assign(labels_n, subject_maps(leading_nS) * masks_Sn.T, regions_Sn)


def subject_maps(leading_nS: Tensor) -> Tensor:
    """(n,S) in [0, 1]: x / max, sigmoid(10 (x - 0.2)), stretched from 0 to 1, each subject for itself; 0 where a map is flat."""
    highest_1S = leading_nS.amax(0, keepdim=True)
    x_nS = torch.sigmoid(SIGMOID_SLOPE * (leading_nS / highest_1S.clamp(min=torch.finfo(leading_nS.dtype).tiny) - SIGMOID_MIDDLE))
    low_1S, high_1S = x_nS.amin(0, keepdim=True), x_nS.amax(0, keepdim=True)
    return torch.where(high_1S > low_1S, (x_nS - low_1S) / (high_1S - low_1S), 0.0)


def assign(labels_n: Tensor, maps_nS: Tensor, regions_Sn: Tensor) -> Tensor:
    """(S,n) bool: each cluster c to the subject of highest sum(X_s c) / min(sum X_s, |c|), or to none below the threshold.

    A subject left without cells keeps its region.
    """
    clusters_Cn = labels_n == labels_n.unique()[:, None]
    inside_CS = clusters_Cn.to(maps_nS.dtype) @ maps_nS
    most_CS = torch.minimum(maps_nS.sum(0)[None], clusters_Cn.sum(1, keepdim=True).to(maps_nS.dtype))
    scores_CS = torch.where(most_CS > 0, inside_CS / most_CS, 0.0)
    best_C, owner_C = scores_CS.max(1)
    masks_Sn = torch.zeros_like(regions_Sn)
    for cells_n, score, owner in zip(clusters_Cn, best_C.tolist(), owner_C.tolist(), strict=True):
        if score >= SCORE_THRESHOLD:
            masks_Sn[owner] |= cells_n
    empty_S = ~masks_Sn.any(1)
    masks_Sn[empty_S] = regions_Sn[empty_S]
    return masks_Sn
