"""Rows of a FLUX transformer's batch, each with a prompt, a guidance and a reference row of its own, as one velocity field."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from models.bases import FlowBase, Text
from models.methods.flow_layers import Rows, shared_layers
from models.methods.flow_schedule import Velocity
from models.sampling import positions


class TextTooLong(ValueError):
    """A prompt has more tokens than the base reads."""


@dataclass(frozen=True)
class Row:
    """prompt: its number among the encoded ones. reference: the row whose image keys and values it takes, itself for none."""

    prompt: int
    guidance: float
    reference: int


@dataclass(frozen=True)
class Prompts:
    """Encoded prompts and how many tokens of each are no padding; `empty` is the number of the empty prompt."""

    text: Text
    lengths: Sequence[int]
    empty: int

    @classmethod
    def encode(cls, base: FlowBase, prompts: Sequence[str]) -> tuple[Prompts, dict[str, int]]:
        """Each different prompt once, the empty one with them, and where each is."""
        different = list(dict.fromkeys(["", *prompts]))
        lengths = [min(token_count(base, prompt), longest_text(base)) for prompt in different]
        return cls(base.encode_text(different), lengths, empty=0), {prompt: at for at, prompt in enumerate(different)}


def token_count(base: FlowBase, prompt: str) -> int:
    """Tokens of a prompt in the text stream, with those that mark its ends."""
    return len((base.tokenizer_2 or base.tokenizer)(prompt, truncation=False).input_ids)


def longest_text(base: FlowBase) -> int:
    """Tokens that the text stream takes."""
    return base.longest_text if base.tokenizer_2 is not None else int(base.tokenizer.model_max_length)


@contextmanager
def velocity_field(
    base: FlowBase,
    prompts: Prompts,
    rows: Sequence[Row],
    cells: tuple[int, int],
    *,
    layers: Collection[int] = (),
    true_cfg: bool = False,
    packed: bool = False,
    backend: str = "auto",
) -> Iterator[tuple[Velocity, Rows]]:
    """Within: v(x (B,N,D) fp32, sigma) of `rows` over h x w latent `cells`, and the switch of their injection in `layers`.

    Guidance g is the transformer's own input where it was distilled. Where it was not, g counts only with `true_cfg`: v = v_u + g (v_c - v_u)
    for rows with g > 1, by one more row each with the empty prompt. Such a row takes the keys and values of its reference's unconditional row
    where there is one, else of the reference itself: with it, an edit that says what its source says is its source under any guidance.
    `packed`: padding of the texts is left out of attention; otherwise it is looked at, as the base was trained.
    """
    distilled = bool(base.transformer.config["guidance_embeds"])
    guided = [i for i, row in enumerate(rows) if true_cfg and not distilled and row.guidance > 1]
    second = {i: len(rows) + at for at, i in enumerate(guided)}  # row -> its unconditional row
    numbers = [row.prompt for row in rows] + [prompts.empty] * len(guided)
    references = [row.reference for row in rows] + [second.get(rows[i].reference, rows[i].reference) for i in guided]
    inputs = list(range(len(rows))) + guided

    text = prompts.text.take(numbers)
    lengths = [prompts.lengths[number] for number in numbers] if packed else [text.states.shape[1]] * len(numbers)
    text_BTC = text.states[:, : max(lengths)]
    shared = Rows(references, text_BTC.shape[1], lengths if len(set(lengths)) > 1 else None, device=base.device, backend=backend)
    image_ids = positions(*cells).to(base.device, base.dtype)
    text_ids = torch.zeros(text_BTC.shape[1], 3, device=base.device, dtype=base.dtype)
    scales_B = torch.tensor([row.guidance for row in rows], device=base.device)

    def velocity(x_BND: Tensor, sigma: float) -> Tensor:
        found = base.transformer(
            hidden_states=x_BND[inputs].to(base.dtype),
            encoder_hidden_states=text_BTC,
            pooled_projections=text.pooled,
            timestep=torch.full((len(inputs),), sigma, device=base.device, dtype=base.dtype),
            guidance=scales_B.to(base.dtype) if distilled else None,
            img_ids=image_ids,
            txt_ids=text_ids,
            return_dict=False,
        )[0].float()
        v_BND = found[: len(rows)]
        if guided:
            without = found[len(rows) :]
            v_BND = v_BND.clone()
            v_BND[guided] = without + scales_B[guided, None, None] * (v_BND[guided] - without)
        return v_BND

    with shared_layers(base.transformer, layers, shared):
        yield velocity, shared
