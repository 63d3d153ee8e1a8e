"""Draws people from adapters' weights and looks at what came out: what the parts of the lab proof of weights2weights share.

Letters: m models, n weights, B pictures, D dimensions of a face.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.bases import UNetBase
from models.catalog import lab_path
from models.lab.crowd import person_id, pictures
from models.lab.generation_scores import pixels
from models.low_rank import attached
from models.methods.weights2weights import Request, Settings, Weights2Weights
from models.methods.weights2weights_directions import Debias, Edit
from models.methods.weights2weights_files import Start
from models.methods.weights2weights_space import Space
from models.nets.identity import IdentityNet
from models.nets.reader import HEADS, Reader

PROMPT = "a portrait of a person"
READ = {
    "beard": ("beard", "beard"),
    "glasses": ("glasses", "glasses"),
    "sunglasses": ("glasses", "sunglasses"),
    "long hair": ("hair", "long"),
    "bald": ("hair", "bald"),
}
"""Attributes that are edited -> what the reader looks for: attribute and value."""
ROWS_A_CALL = 64


class Studio:
    """Draws people from weights, and looks at what came out."""

    def __init__(self, base: UNetBase, space: Space) -> None:
        self.space = space
        self.method = Weights2Weights(base, space, Settings(num_inference_steps=20, guidance_scale=3.0, negative_prompt=""))
        self.reader, self.faces = Reader.load(lab_path("reader")), IdentityNet.load(lab_path("identity"))
        self._own: dict[int, Tensor] = {}  # faces of four pictures by a drawn person's number

    def draw(self, weights_Bn: Tensor, seeds: Sequence[int]) -> Tensor:
        """(B,3,H,W): a picture of each model from its seed."""
        wanted = [Request(prompt=PROMPT, seed=seed, start=Start(weights_n=w)) for w, seed in zip(weights_Bn, seeds, strict=True)]
        made = [result.image for at in range(0, len(wanted), ROWS_A_CALL) for result in self.method(wanted[at : at + ROWS_A_CALL])]
        return torch.stack(made)

    def edit(self, weights_Bn: Tensor, attribute: str, strength: float, debias: Debias) -> Tensor:
        """(B,3,H,W): each model edited, from one seed a model."""
        method = Weights2Weights(self.method.base, self.space, self.method.settings.with_options({"debias": debias}))
        edits = [Edit(attribute, strength)] if strength else []
        wanted = [Request(prompt=PROMPT, seed=at, start=Start(weights_n=w), edits=edits) for at, w in enumerate(weights_Bn)]
        return torch.stack([result.image for result in method(wanted)])

    def moved(self, weights_mn: Tensor) -> Tensor:
        """(m,): how far each model's prediction is from the mean model's, mean squared, on four drawn people under noise from faint to strong."""
        base, space = self.method.base, self.space
        generator = torch.Generator().manual_seed(0)
        clean_BChw = base.encode(torch.stack([pixels(pictures(number, 1)[0]) for number in range(4)]))
        times_B = torch.linspace(0.1, 0.9, 4).mul(len(base.scheduler.alphas_cumprod)).long()
        signal_B111 = base.scheduler.alphas_cumprod[times_B][:, None, None, None]
        noisy_BChw = signal_B111.sqrt() * clean_BChw + (1 - signal_B111).sqrt() * torch.randn(clean_BChw.shape, generator=generator)
        models_gn = torch.cat([space.mean_n[None], weights_mn])
        g, states_1TC = len(models_gn), base.encode_text([PROMPT]).states
        with torch.no_grad(), attached(base.unet, space.layout.adapters(models_gn), torch.arange(g).repeat_interleave(4)):
            found = base.unet(noisy_BChw.repeat(g, 1, 1, 1), times_B.repeat(g), states_1TC.expand(4 * g, -1, -1), return_dict=False)[0]
        found_gBChw = found.reshape(g, *noisy_BChw.shape)
        return (found_gBChw[1:] - found_gBChw[:1]).square().mean((1, 2, 3, 4))

    def confidence(self, images_B3HW: Tensor) -> Tensor:
        """(B,): how sure the reader is of a portrait's attributes, the mean of their largest probabilities."""
        names = [name for name in HEADS["portrait"] if name not in ("shirt", "background")]
        return torch.stack([self.reader.probabilities(images_B3HW, "portrait", name).amax(1) for name in names]).mean(0)

    def read(self, images_B3HW: Tensor) -> dict[str, Tensor]:
        """(B,) probability of each edited attribute."""
        found = {}
        for name, (head, value) in READ.items():
            found[name] = self.reader.probabilities(images_B3HW, "portrait", head)[:, HEADS["portrait"][head].index(value)]
        return found

    def alike(self, images_B3HW: Tensor, people: Sequence[int]) -> Tensor:
        """(B,): similarity of each face with four other pictures of its drawn person, in the mean."""
        found = []
        for face_D, number in zip(self.faces.embed(images_B3HW), people, strict=True):
            if number not in self._own:
                self._own[number] = self.faces.embed(torch.stack([pixels(image) for image in pictures(number, 4, first=20)]))
            found.append((face_D @ self._own[number].T).mean())
        return torch.stack(found)


def numbers_of(names: Sequence[str]) -> list[int]:
    """Numbers of drawn people by their ids. Raises ValueError for a name that is none of a drawn person."""
    found = []
    for name in names:
        number = name.removeprefix("person-")
        if not number.isdigit() or person_id(int(number)) != name:
            raise ValueError(f"{name!r} is no drawn person; the proof needs a job over people of `calotype world --people`")
        found.append(int(number))
    return found
