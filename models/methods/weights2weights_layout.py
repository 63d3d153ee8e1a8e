"""Rank-1 adapters as points: the one order in which a network's adapters become a vector, and back (spec section 2).

The order is that of the sorted PEFT keys (down, mid, up; attn1 before attn2; to_q before to_v; lora_A before lora_B). Filling a vector in another
order gives another model, so that the layout is stored with every space and compared. Letters: n weights, G models, B rows, r rank, C channels
in, O channels out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.lora_files import ForeignBase
from models.low_rank import LowRank

TARGETS = ("to_q", "to_v")
RANK, ALPHA = 1, 27.0
_KEY = re.compile(r"(?:base_model\.model\.|unet\.)?(?P<module>.+)\.lora_(?P<side>[AB])(?:\.(?!weight$)\w+)?(?:\.weight)?")
"""PEFT's own keys, also with an adapter's name (lora_A.identity1.weight), and those of diffusers (unet.*)."""


class LayoutMismatch(ValueError):
    """Weights or a space that belong to another network, or are laid out in another way."""


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies in the vector."""

    key: str  # base_model.model.<module>.lora_A.weight
    shape: tuple[int, ...]
    offset: int

    @property
    def numel(self) -> int:
        return torch.Size(self.shape).numel()


@dataclass(frozen=True)
class Layout:
    """Tensors of one network's adapters in their order; `base_hash` is the digest of the network's files
    (`model_revision` of its folder), None where it is not known."""

    entries: tuple[Entry, ...]
    rank: int = RANK
    alpha: float = ALPHA
    targets: tuple[str, ...] = TARGETS
    base_hash: str | None = None

    @classmethod
    def of(
        cls,
        network: nn.Module,
        *,
        targets: Sequence[str] = TARGETS,
        rank: int = RANK,
        alpha: float = ALPHA,
        base_hash: str | None = None,
    ) -> Layout:
        """The layout of a network's linear layers whose own name is in `targets`. Raises LayoutMismatch where there are none."""
        shapes: dict[str, tuple[int, ...]] = {}
        for name, module in network.named_modules():
            if isinstance(module, nn.Linear) and name.rsplit(".", 1)[-1] in targets:
                shapes[_peft_key(name, "A")] = (rank, module.in_features)
                shapes[_peft_key(name, "B")] = (module.out_features, rank)
        if not shapes:
            raise LayoutMismatch(
                f"{type(network).__name__} has no linear layers named {' or '.join(targets)}; adapters have nowhere to go."
            )
        return cls.ordered(shapes, rank=rank, alpha=alpha, targets=tuple(targets), base_hash=base_hash)

    @classmethod
    def ordered(cls, shapes: Mapping[str, Sequence[int]], **facts: Any) -> Layout:
        """The layout of tensors by PEFT key, in the order of the keys."""
        entries, offset = [], 0
        for key in sorted(shapes):
            entries.append(Entry(key, tuple(shapes[key]), offset))
            offset += entries[-1].numel
        return cls(tuple(entries), **facts)

    @property
    def size(self) -> int:
        """n, the length of the vector."""
        return self.entries[-1].offset + self.entries[-1].numel

    @property
    def scale(self) -> float:
        """What B A x is multiplied by: alpha / rank."""
        return self.alpha / self.rank

    @property
    def modules(self) -> list[str]:
        """The layers' names in their order, each once."""
        return list(dict.fromkeys(module_of(entry.key) for entry in self.entries))

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """(n,) fp32 of one adapter's tensors by key, in any of the ways that PEFT and diffusers write keys. Raises LayoutMismatch."""
        given = {canonical_key(key): tensor for key, tensor in tensors.items()}
        wanted = {entry.key: entry.shape for entry in self.entries}
        missing, unknown = wanted.keys() - given.keys(), given.keys() - wanted.keys()
        wrong = [
            f"{key} is {tuple(given[key].shape)}, not {wanted[key]}" for key in wanted if key in given and given[key].shape != wanted[key]
        ]
        if missing or unknown or wrong:
            named = [f"missing {key}" for key in sorted(missing)[:1]] + [f"unknown {key}" for key in sorted(unknown)[:1]] + wrong[:1]
            raise LayoutMismatch(
                f"these weights are laid out for another base: {len(missing)} of {len(wanted)} tensors missing, {len(unknown)} unknown, "
                f"{len(wrong)} of a wrong shape, e.g. {'; '.join(named)}. Use adapters of this base: rank {self.rank} on {', '.join(self.targets)}."
            )
        return torch.cat([given[entry.key].float().reshape(-1) for entry in self.entries])

    def unflatten(self, weights_n: Tensor) -> dict[str, Tensor]:
        """Tensors by PEFT key of a vector (n,), or of several (G,n) with G in front. Raises LayoutMismatch for another length."""
        self._check(weights_n)
        ahead = weights_n.shape[:-1]
        return {e.key: weights_n[..., e.offset : e.offset + e.numel].reshape(*ahead, *e.shape) for e in self.entries}

    def adapters(self, weights_Gn: Tensor) -> dict[str, LowRank]:
        """The adapters of G models by layer, for `models.low_rank.attached`; differentiable. y = W x + alpha/rank B (A x)."""
        tensors = self.unflatten(weights_Gn)
        return {name: LowRank(tensors[_peft_key(name, "A")], tensors[_peft_key(name, "B")], self.scale) for name in self.modules}

    def check_same(self, other: Layout, what: str) -> None:
        """Raises LayoutMismatch where `other`, which `what` names, has other tensors, or another scale; ForeignBase for another base."""
        if (self.entries, self.rank, self.alpha) != (other.entries, other.rank, other.alpha):
            raise LayoutMismatch(
                f"{what} has {other.size} weights in {len(other.entries)} tensors of rank {other.rank}, alpha {other.alpha:g}; this base takes "
                f"{self.size} in {len(self.entries)} of rank {self.rank}, alpha {self.alpha:g}. Use what was made for this base."
            )
        self.check_base(other.base_hash, what)

    def check_base(self, other_hash: str | None, what: str) -> None:
        """Raises ForeignBase where both bases are known and differ."""
        if self.base_hash is not None and other_hash is not None and self.base_hash != other_hash:
            raise ForeignBase(what, other_hash, self.base_hash)

    def facts(self) -> dict[str, Any]:
        """What layout.json holds."""
        entries = [{"key": entry.key, "shape": list(entry.shape), "offset": entry.offset} for entry in self.entries]
        return {"rank": self.rank, "alpha": self.alpha, "targets": list(self.targets), "base_hash": self.base_hash, "layout": entries}

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any], source: str) -> Layout:
        """The layout that `facts()` wrote. Raises LayoutMismatch where it is none, or its tensors are not in the order of their keys."""
        try:
            shapes = {entry["key"]: entry["shape"] for entry in facts["layout"]}
            made = cls.ordered(
                shapes, rank=facts["rank"], alpha=facts["alpha"], targets=tuple(facts["targets"]), base_hash=facts.get("base_hash")
            )
            offsets = [(entry["key"], entry["offset"]) for entry in facts["layout"]]
        except (KeyError, TypeError, IndexError) as error:
            raise LayoutMismatch(f"{source} holds no layout of weights ({error!r}); fit the space again.") from error
        if offsets != [(entry.key, entry.offset) for entry in made.entries]:
            raise LayoutMismatch(f"{source} is not in the order of the sorted PEFT keys; it would give other models. Fit the space again.")
        return made

    def _check(self, weights_n: Tensor) -> None:
        if weights_n.shape[-1] != self.size:
            raise LayoutMismatch(f"{weights_n.shape[-1]} weights were given; this base takes {self.size}.")


def module_of(key: str) -> str:
    """The layer's name in a PEFT key. Raises LayoutMismatch for what is no key of a LoRA."""
    match = _KEY.fullmatch(key)
    if match is None:
        raise LayoutMismatch(f"{key!r} is no tensor of a LoRA; keys look like base_model.model.<layer>.lora_A.weight.")
    return match["module"]


def canonical_key(key: str) -> str:
    """A key of PEFT or diffusers as this layout writes it; one that is none as it is."""
    match = _KEY.fullmatch(key)
    return key if match is None else _peft_key(match["module"], match["side"])


def _peft_key(module: str, side: str) -> str:
    return f"base_model.model.{module}.lora_{side}.weight"
