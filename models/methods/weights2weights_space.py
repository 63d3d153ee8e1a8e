"""The space of adapters: mean, standard deviation and principal components of many people's weights (arXiv 2406.09413, spec section 2).

A person's weights w are a point, Z = (w - mean) / std, p = Z V its coefficients, and w = (p Vᵀ) std + mean the way back. A space is fitted on
weights laid out alike (weights2weights_layout.py) and trained from one start. Letters: m models, n weights, k components, B rows.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from models.checkpoints import UnreadableCheckpoint, read_tensors
from models.methods.weights2weights_layout import Layout, LayoutMismatch

logger = logging.getLogger(__name__)

STD_FLOOR = 1e-3
"""Of our own fits, as a share of the median: a weight that hardly varies would be blown up in Z."""
OVERSAMPLED, POWER_ITERATIONS = 32, 4
"""Of the randomised decomposition."""
DIRECTION, RAW_DIRECTION = "direction/", "raw_direction/"


@dataclass(frozen=True)
class Attribute:
    """A linear attribute of the models: its score is intercept + score_std * (the coefficients' component along its direction)."""

    direction_k: Tensor  # added to p it raises the score by one standard deviation over the training models
    intercept: float = 0.0
    score_std: float = 1.0


@dataclass(frozen=True)
class Space:
    """A space of adapters with its attributes. `std` keeps its signs: V was fitted with them, also where a published one is negative.

    `raw_directions`: the authors' unscaled least squares directions (compat: raw_directions), where the space has them.
    """

    layout: Layout
    mean_n: Tensor
    std_n: Tensor
    V_nk: Tensor
    proj_mean_k: Tensor
    proj_std_k: Tensor
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    raw_directions: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n, k = self.layout.size, self.V_nk.shape[1]
        wanted = {"mean": (n,), "std": (n,), "V": (n, k), "proj_mean": (k,), "proj_std": (k,)}
        wanted |= {f"{DIRECTION}{name}": (k,) for name in self.attributes} | {
            f"{RAW_DIRECTION}{name}": (k,) for name in self.raw_directions
        }
        for name, tensor in self._tensors().items():
            if tuple(tensor.shape) != wanted[name]:
                raise LayoutMismatch(f"{name} of the space is {tuple(tensor.shape)}, not {wanted[name]}; its files do not belong together.")

    @property
    def components(self) -> int:
        """k."""
        return self.V_nk.shape[1]

    def check_network(self, network: nn.Module) -> None:
        """Raises LayoutMismatch for a network whose adapters are not laid out as this space's are."""
        own = Layout.of(network, targets=self.layout.targets, rank=self.layout.rank, alpha=self.layout.alpha)
        own.check_same(self.layout, "the space")

    def project(self, weights_Bn: Tensor) -> Tensor:
        """Coefficients p (B,k), fp32: the point of the space nearest to each Z; p = Z V where V's columns are orthonormal."""
        onto_Bk = ((weights_Bn - self.mean_n) / self.std_n) @ self.V_nk
        return onto_Bk if self._gram_factor is None else torch.cholesky_solve(onto_Bk.T, self._gram_factor).T

    def unproject(self, p_Bk: Tensor) -> Tensor:
        """Weights (B,n) of coefficients; fewer than k are the first ones, the others 0; differentiable. p = 0 is the mean model."""
        return self.mean_n + self.shift(p_Bk)

    def shift(self, p_Bk: Tensor) -> Tensor:
        """What coefficients add to a model's weights, (B,n): one product for all rows. Raises LayoutMismatch for more than k."""
        given = p_Bk.shape[-1]
        if given > self.components:
            raise LayoutMismatch(f"{given} coefficients were given; this space has {self.components} components.")
        return (p_Bk @ self.V_nk[:, :given].T) * self.std_n

    def standardised(self, p_Bk: Tensor) -> Tensor:
        """Coefficients in standard deviations of the training models, fewer than k as the first ones; 0 where those do not vary."""
        mean_k, std_k = self.proj_mean_k[: p_Bk.shape[-1]], self.proj_std_k[: p_Bk.shape[-1]]
        return torch.where(std_k > 0, (p_Bk - mean_k) / std_k, 0.0)

    def sample(self, generators: Sequence[torch.Generator], *, n_components: int | None = None, std_factor: float = 1.0) -> Tensor:
        """New models as coefficients (B,k), a row from each generator: p_j ~ N(mean_j, std_factor * std_j), 0 from `n_components` on."""
        used = self.components if n_components is None else min(n_components, self.components)
        drawn_Bj = torch.stack([torch.randn(used, generator=generator) for generator in generators]).to(self.mean_n.device)
        p_Bj = self.proj_mean_k[:used] + std_factor * self.proj_std_k[:used] * drawn_Bj
        return torch.nn.functional.pad(p_Bj, (0, self.components - used))

    def truncated(self, n_components: int) -> Space:
        """The same space with its first components only."""
        k = n_components
        attributes = {name: replace(known, direction_k=known.direction_k[:k]) for name, known in self.attributes.items()}
        raw = {name: direction_k[:k] for name, direction_k in self.raw_directions.items()}
        return Space(self.layout, self.mean_n, self.std_n, self.V_nk[:, :k], self.proj_mean_k[:k], self.proj_std_k[:k], attributes, raw)

    def to(self, device: torch.device | str) -> Space:
        """The same space on a device."""
        attributes = {name: replace(known, direction_k=known.direction_k.to(device)) for name, known in self.attributes.items()}
        moved = {name: tensor.to(device) for name, tensor in self._tensors().items()}
        raw = {name: moved[f"{RAW_DIRECTION}{name}"] for name in self.raw_directions}
        return Space(self.layout, moved["mean"], moved["std"], moved["V"], moved["proj_mean"], moved["proj_std"], attributes, raw)

    def save(self, folder: Path, *, dtype: torch.dtype = torch.bfloat16) -> None:
        """Write space.safetensors, V in `dtype` and all else in fp32, and layout.json."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.cpu().contiguous() for name, tensor in self._tensors().items()}
        save_file({**tensors, "V": tensors["V"].to(dtype)}, folder / "space.safetensors")
        attributes = {name: {"intercept": known.intercept, "score_std": known.score_std} for name, known in self.attributes.items()}
        facts = {**self.layout.facts(), "attributes": attributes}
        (folder / "layout.json").write_text(json.dumps(facts, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Space:
        """What `save` wrote, in fp32. Raises UnreadableCheckpoint or LayoutMismatch for a folder that is none."""
        facts = read_facts(folder)
        tensors = {name: tensor.float() for name, tensor in read_tensors(folder / "space.safetensors").items()}
        if missing := {"V", "mean", "std", "proj_mean", "proj_std"} - tensors.keys():
            raise UnreadableCheckpoint(f"{folder / 'space.safetensors'} is no space: it lacks {', '.join(sorted(missing))}. Fit it again.")
        known: dict[str, Any] = facts.get("attributes", {})
        directions = {name.removeprefix(DIRECTION): tensor for name, tensor in tensors.items() if name.startswith(DIRECTION)}
        return cls(
            Layout.from_facts(facts, str(folder / "layout.json")),
            tensors["mean"],
            tensors["std"],
            tensors["V"],
            tensors["proj_mean"],
            tensors["proj_std"],
            {name: Attribute(direction_k, **known.get(name, {})) for name, direction_k in directions.items()},
            {name.removeprefix(RAW_DIRECTION): tensor for name, tensor in tensors.items() if name.startswith(RAW_DIRECTION)},
        )

    def _tensors(self) -> dict[str, Tensor]:
        return {
            "V": self.V_nk,
            "mean": self.mean_n,
            "std": self.std_n,
            "proj_mean": self.proj_mean_k,
            "proj_std": self.proj_std_k,
            **{f"{DIRECTION}{name}": known.direction_k for name, known in self.attributes.items()},
            **{f"{RAW_DIRECTION}{name}": direction_k for name, direction_k in self.raw_directions.items()},
        }

    @cached_property
    def _gram_factor(self) -> Tensor | None:
        """Cholesky factor of VᵀV where rounding (V is stored in half precision) has left its columns not orthonormal."""
        gram_kk = self.V_nk.T @ self.V_nk
        off = (gram_kk - torch.eye(self.components, device=gram_kk.device)).abs().max()
        return None if off < 1e-5 else torch.linalg.cholesky(gram_kk.double()).to(gram_kk)


def fit_space(
    weights_mn: Tensor,
    layout: Layout,
    *,
    n_components: int | None = None,
    std_floor: float = STD_FLOOR,
    scaled: bool = True,
    svd: Literal["gram", "randomised"] | None = None,
    generator: torch.Generator | None = None,
) -> Space:
    """The space of m models' weights, all from one start; `n_components` None: as many as they span (at most m - 1).

    `scaled` False leaves the weights undivided (std 1). `svd` None: by the Gram matrix where m < n, else randomised, drawing from `generator`.
    Raises LayoutMismatch for weights of another length, ValueError for fewer than three models or components that they cannot have.
    """
    m, n = weights_mn.shape
    if n != layout.size:
        raise LayoutMismatch(f"models of {n} weights were given; this layout has {layout.size}.")
    if m < 3:
        raise ValueError(f"{m} models span no space; give three or more.")
    if n_components is not None and not 1 <= n_components <= min(m - 1, n):
        raise ValueError(f"n_components is {n_components}; {m} models of {n} weights have 1 to {min(m - 1, n)}.")
    mean_n = weights_mn.double().mean(0)
    std_n = weights_mn.double().std(0) if scaled else torch.ones(n, dtype=torch.float64)
    floor = std_floor * float(std_n.median())
    if scaled and floor > 0:
        logger.info("std_floor=%.3g weights_below_it=%d of=%d", floor, int((std_n < floor).sum()), n)
        std_n = std_n.clamp(min=floor)
    if not bool((std_n > 0).all()):
        raise ValueError("Half of the weights are the same in all models; were they trained at all?")
    Z_mn = (weights_mn.double() - mean_n) / std_n
    V_nk = _by_gram(Z_mn) if svd == "gram" or (svd is None and m < n) else _randomised(Z_mn, n_components or min(m - 1, n), generator)
    V_nk = V_nk[:, :n_components]
    p_mk = Z_mn @ V_nk
    return Space(layout, mean_n.float(), std_n.float(), V_nk.float(), p_mk.mean(0).float(), p_mk.std(0).float())


def _by_gram(Z_mn: Tensor) -> Tensor:
    """Right singular vectors (n,k) of all singular values that are not 0, largest first: Z Zᵀ = U S² Uᵀ, V = Zᵀ U / S."""
    squares_m, U_mm = torch.linalg.eigh(Z_mn @ Z_mn.T)
    kept = squares_m > squares_m[-1] * 1e-12
    U_mk, squares_k = U_mm[:, kept].flip(1), squares_m[kept].flip(0)
    return _signed((Z_mn.T @ U_mk) / squares_k.sqrt())


def _randomised(Z_mn: Tensor, k: int, generator: torch.Generator | None) -> Tensor:
    """The first k right singular vectors (n,k), from a random start and power iterations (Halko et al., arXiv 0909.4061, alg. 4.4)."""
    m, n = Z_mn.shape
    width = min(k + OVERSAMPLED, m, n)
    start_mq = torch.randn(m, width, generator=generator or torch.Generator().manual_seed(0), dtype=Z_mn.dtype)
    Q_nq = torch.linalg.qr(Z_mn.T @ start_mq).Q
    for _ in range(POWER_ITERATIONS):
        Q_nq = torch.linalg.qr(Z_mn.T @ torch.linalg.qr(Z_mn @ Q_nq).Q).Q
    right_qq = torch.linalg.svd(Z_mn @ Q_nq, full_matrices=False).Vh
    return _signed((Q_nq @ right_qq.T)[:, :k])


def _signed(V_nk: Tensor) -> Tensor:
    """Each column with the sign that makes its largest entry positive, so that a fit is the same everywhere."""
    largest_k = V_nk.gather(0, V_nk.abs().argmax(0, keepdim=True))
    return V_nk * torch.where(largest_k < 0, -1.0, 1.0)


def read_facts(folder: Path) -> dict[str, Any]:
    """A space's layout.json. Raises UnreadableCheckpoint where there is none."""
    file = folder / "layout.json"
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UnreadableCheckpoint(f"{file} can't be read ({error}); a space is space.safetensors and layout.json.") from error
