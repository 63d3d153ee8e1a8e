"""What training asks of a restored picture and of the attention that made it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from models.attention import attention_probabilities
from models.training.views import cell_centres, corresponding


def pixel_loss(restored_B3HW: Tensor, target_B3HW: Tensor, weight_B1HW: Tensor, gradient: float) -> Tensor:
    """Weighted L1 of the pixels and, times `gradient`, of their differences to the right and below."""
    difference = restored_B3HW - target_B3HW
    flat = (difference.abs() * weight_B1HW).mean()
    across = ((difference[..., 1:] - difference[..., :-1]).abs() * weight_B1HW[..., 1:]).mean()
    down = ((difference[..., 1:, :] - difference[..., :-1, :]).abs() * weight_B1HW[..., 1:, :]).mean()
    return flat + gradient * (across + down)


def structure_loss(restored_B3HW: Tensor, target_B3HW: Tensor) -> Tensor:
    """1 - MS-SSIM on [0, 1] over as many of its five scales as the picture allows (three at 64 px, window 5)."""
    scales = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)[: max(1, min(5, int(torch.tensor(restored_B3HW.shape[-1] / 8).log2())))]
    betas = tuple(beta / sum(scales) for beta in scales)
    a, b = (((x.clamp(-1, 1) + 1) / 2) for x in (restored_B3HW, target_B3HW))
    similarity = multiscale_structural_similarity_index_measure(
        a, b, gaussian_kernel=False, kernel_size=5, data_range=1.0, betas=betas, normalize="relu"
    )
    assert isinstance(similarity, Tensor)
    return 1 - similarity


@dataclass
class MatchLoss:
    """-log of the attention mass that falls on the right place of the references: a probe for the restoring pass.

    Faces are aligned, so the right place for a query cell is where the same spot of the face lies in each reference's crop. `queries`
    random cells a layer and row are asked; mass within `radius` cells of the match counts, over all of a row's references, mean over heads.
    Dense form of InstantRestore's landmark attention supervision (there: five landmarks and a Gaussian target).
    """

    placements: Sequence[Tensor]  # a row's (2, 3) placement
    reference_placements: Sequence[Sequence[Tensor]]  # the same for each of its references, in their order
    generator: torch.Generator
    queries: int = 32
    radius: float = 1.6
    losses: list[Tensor] = field(default_factory=list)
    masses: list[Tensor] = field(default_factory=list)

    def __call__(self, layer: int, q_BNHD: Tensor, k_1MHD: Tensor, kv_lens: list[int]) -> None:
        N = q_BNHD.shape[1]
        cells = round(N**0.5)
        centres_N2 = cell_centres(cells)
        starts = torch.tensor([0, *kv_lens]).cumsum(0).tolist()
        asked: dict[int, list[tuple[Tensor, Tensor, Tensor]]] = {}
        for b, references in enumerate(self.reference_placements):
            chosen = torch.randperm(N, generator=self.generator)[: self.queries]
            if not references:
                continue
            near = []
            for placement in references:
                match_Q2 = corresponding(centres_N2[chosen], self.placements[b], placement)
                distance_QN = torch.cdist(match_Q2, centres_N2) * cells / 2
                near.append((distance_QN <= self.radius) & (match_Q2.abs() <= 1).all(1, keepdim=True))
            keys = k_1MHD[0, starts[b + 1] - N * len(references) : starts[b + 1]]  # own keys, if any, stand in front
            asked.setdefault(len(references), []).append((q_BNHD[b, chosen], keys, torch.cat(near, dim=1)))
        for group in asked.values():
            q, k, near = (torch.stack(column) for column in zip(*group, strict=True))
            probabilities_bHQM = attention_probabilities(q, k)
            mass_bQ = (probabilities_bHQM * near[:, None]).sum(-1).mean(1)
            seen = near.any(-1)
            self.losses.append(-(mass_bQ[seen] + 1e-6).log())
            self.masses.append(mass_bQ[seen].detach())

    def loss(self) -> Tensor:
        """Mean over all queries asked so far; zero when no row had a reference."""
        return torch.cat(self.losses).mean() if self.losses else torch.zeros(())

    def mass(self) -> float:
        """Mean attention mass on the right place, 0 to 1."""
        return float(torch.cat(self.masses).mean()) if self.masses else float("nan")


@dataclass
class LandmarkLoss:
    """The paper's landmark attention supervision: a Gaussian around the landmark in the reference, row by row (y * size + x), both min-max
    normalised, mean squared error over the query cells that hold a landmark. sigma = cells / 32. One random shared layer a step.

    landmarks: (B, L, 2) x, y in [-1, 1] of the image, reference_landmarks: for each row those of each of its references.
    """

    layer: int
    landmarks: Sequence[Tensor]
    reference_landmarks: Sequence[Sequence[Tensor]]
    losses: list[Tensor] = field(default_factory=list)

    def __call__(self, layer: int, q_BNHD: Tensor, k_1MHD: Tensor, kv_lens: list[int]) -> None:
        if layer != self.layer:
            return
        N = q_BNHD.shape[1]
        cells = round(N**0.5)
        starts = torch.tensor([0, *kv_lens]).cumsum(0).tolist()
        for b, references in enumerate(self.reference_landmarks):
            if not references:
                continue
            first = starts[b + 1] - N * len(references)
            target_LN = landmark_target(references[0], cells)
            queries_L = landmark_cells(self.landmarks[b], cells)
            keys_1MHD = k_1MHD[:, first : starts[b + 1]]
            attention_LN = attention_probabilities(q_BNHD[b : b + 1, queries_L], keys_1MHD)[0].mean(0)[:, :N]
            self.losses.append((_normalised(attention_LN) - _normalised(target_LN)).square().mean())

    def loss(self) -> Tensor:
        """Mean over rows with references; zero when there is none."""
        return torch.stack(self.losses).mean() if self.losses else torch.zeros(())


def landmark_cells(landmarks_L2: Tensor, cells: int) -> Tensor:
    """(L,) number y * cells + x of the cell that holds each landmark (x, y in [-1, 1])."""
    xy = ((landmarks_L2 + 1) / 2 * cells).floor().long().clamp(0, cells - 1)
    return xy[:, 1] * cells + xy[:, 0]


def landmark_target(landmarks_L2: Tensor, cells: int) -> Tensor:
    """(L, cells^2): a Gaussian of sigma = cells / 32 cells around each landmark's cell, row by row."""
    at = landmark_cells(landmarks_L2, cells)
    centres = torch.stack([at % cells, at // cells], dim=-1).float()
    index = torch.arange(cells * cells)
    grid = torch.stack([index % cells, index // cells], dim=-1).float()
    return torch.exp(-0.5 * torch.cdist(centres, grid).square() / (cells / 32) ** 2)


def _normalised(x: Tensor) -> Tensor:
    return (x - x.min()) / (x.max() - x.min() + 1e-8)
