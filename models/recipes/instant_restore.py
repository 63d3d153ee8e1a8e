"""Train the small one-step restorer of the lab through the method's own two passes (`calotype train instant-restore`).

Every person of a batch is damaged several times over and looks at the same references, so that one reference pass serves them all.
What makes the network look at its references is measured in docs/proofs/instant_restore.md.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from models.keys_values import References
from models.lab.damage import degrade
from models.methods.instant_restore import (
    Networks,
    Settings,
    noisy_latents,
    reference_keys_values,
    restore_latents,
    shared_layers,
)
from models.methods.instant_restore_checkpoint import save_lab, sd_turbo_scheduler
from models.nets.codecs import PixelCodec
from models.training.loop import Averaged, keyed, learning_rate, load_checkpoint, save_checkpoint
from models.training.losses import LandmarkLoss, MatchLoss, pixel_loss, structure_loss
from models.training.photographs import Person, Split, drawn_person, read_people, split_people
from models.training.views import Colours, Moves, crop, face_weight, greyed, random_factors, random_placement, recolour

logger = logging.getLogger(__name__)

HELD_OUT = {"faces_ukparl": (100, 40), "faces_lab": (14, 0)}  # people for test and validation, by set
TARGET_MOVES = Moves(rotation=0.05, scale=0.05, shift=0.03)  # what an aligner gets wrong
REFERENCE_MOVES = Moves(rotation=0.12, scale=0.1, shift=0.06)
LIGHT = Colours(brightness=0.2, contrast=0.2, saturation=0.25, gain=0.08)  # shared by a picture and its references
OTHER_LIGHT = Colours(brightness=0.2, contrast=0.2, saturation=0.25, gain=0.1)  # of each reference on its own

ATTRIBUTION = (
    "faces_ukparl: official portraits (c) UK Parliament, photographs by Chris McAndrew and other Parliament photographers, CC BY 3.0 "
    "(https://creativecommons.org/licenses/by/3.0/); some photographs from the Parliament Members API, also covered by the Open Parliament "
    "Licence v3.0; mirrored by mySociety TheyWorkForYou. Cropped, resized and recompressed.",
    "faces_lab: DeBruine, L. & Jones, B. (2017), Face Research Lab London Set, doi:10.6084/m9.figshare.5047666.v5, CC BY 4.0; DeBruine & "
    "Jones (2017), Young Adult White Faces with Manipulated Versions, doi:10.6084/m9.figshare.4220517.v1, CC BY 4.0; webmorphR.stim sets "
    "lisa and zoom, CC0. Cropped, resized and recompressed.",
)
CARD = """# lab/instant-restore

A small one-step restorer of face crops of {side} px after InstantRestore (arXiv 2412.06753), trained by `calotype train instant-restore` on
{samples} damaged pictures. It shows at small scale what the method does; a lab picture is never a full-size result. Crops must be aligned:
eyes level at 0.45 of the side, 0.27 of the side apart. What it can and cannot do is measured in docs/proofs/instant_restore.md; how it was
trained stands in card.json. It was trained on official portraits of mostly older, mostly white people and on a studio set of adults: expect
it to be worse for everybody else. Details that neither the damaged picture nor a reference shows are invented.

Trained on photographs with these credits:
{attribution}
"""


@dataclass(frozen=True, kw_only=True)
class Config:
    data: str  # folder with faces_ukparl and faces_lab
    steps: int = 4_400  # optimizer steps; may be changed on resuming
    minutes: float | None = None  # stop (resumable) after this long
    people: int = 5  # people a step, each with references of their own
    damages: tuple[str, ...] = ("strong", "medium", "other")  # one picture a person and entry; other: mild, anything or none
    sources: tuple[float, float, float] = (0.5, 0.25, 0.25)  # share of people with two photographs, with one, drawn
    references: tuple[float, float, float] = (0.1, 0.8, 0.1)  # chances of 0, 1, 2 references
    drawn_people: int = 600
    drawn_views: int = 4
    side: int = 64  # pixels
    unshuffle: int = 4
    channels: tuple[int, ...] = (64, 96, 128)
    heads: int = 4
    caption_channels: int = 32
    adain: bool = True
    reference_scale: float | None = 0.02  # deviation of the shared attentions' output maps at the start; None leaves a warm start's
    lr: float = 8e-4
    warmup: int = 100
    decay: float = 0.2  # last share of the steps, over which the rate falls to zero
    weight_decay: float = 1e-2
    clip: float = 1.0
    average: float = 0.998
    gradient: float = 0.5  # weight of the gradient L1
    structure: float = 0.1  # weight of 1 - MS-SSIM
    background: float = 0.35  # weight of pixels outside the face
    attention: tuple[float, float] = (0.03, 0.003)  # weight of the attention loss: at the start, and from half the steps on
    attention_loss: str = "match"  # match (dense, ours) | landmark (five landmarks, the paper's) | none
    warm_start: str | None = None  # checkpoint of another training whose averaged weights are taken
    save_every: int = 200
    seed: int = 0


@dataclass
class Batch:
    """B damaged pictures, their originals, U references and which row has which; placements (2, 3) and landmarks (5, 2) in [-1, 1]."""

    damaged: Tensor  # (B, 3, S, S)
    clean: Tensor  # (B, 3, S, S)
    weight: Tensor  # (B, 1, S, S)
    references: Tensor  # (U, 3, S, S)
    rows: list[list[int]]
    placements: list[Tensor] = field(default_factory=list)
    landmarks: list[Tensor] = field(default_factory=list)
    reference_placements: list[Tensor] = field(default_factory=list)
    reference_landmarks: list[Tensor] = field(default_factory=list)


class Restorer(nn.Module):
    """The one network of the lab's restorer and its learned caption, as the method wants them: reference and restoring pass share it."""

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        levels = len(cfg.channels)
        latent = 3 * cfg.unshuffle**2
        self.unet = UNet2DConditionModel(
            sample_size=cfg.side // cfg.unshuffle,
            in_channels=latent,
            out_channels=latent,
            block_out_channels=cfg.channels,
            layers_per_block=1,
            down_block_types=("DownBlock2D",) * levels,
            mid_block_type="UNetMidBlock2D",
            up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * (levels - 1)),
            attention_head_dim=cfg.heads,
            cross_attention_dim=cfg.caption_channels,
            norm_num_groups=16,
            use_linear_projection=True,
        )
        self.caption = nn.Parameter(0.1 * torch.randn(1, 1, cfg.caption_channels))
        for parameter in self.unet.conv_out.parameters():
            nn.init.zeros_(parameter)  # the untrained network leaves its input as it is
        self.redraw_shared(cfg.reference_scale)

    def redraw_shared(self, scale: float | None) -> None:
        """Draw the output maps of the shared attentions again, with deviation `scale`; None keeps them."""
        for layer in shared_layers(self.unet).values() if scale is not None else ():
            nn.init.normal_(layer.to_out[0].weight, std=scale)  # pyright: ignore[reportOptionalSubscript, reportArgumentType]

    def networks(self, unshuffle: int) -> Networks:
        codec = PixelCodec(unshuffle)
        return Networks(self.unet, self.unet, codec, codec, sd_turbo_scheduler(), self.caption)


def settings(cfg: Config) -> Settings:
    """How the trained network is run: no noise, so that its output is the input plus a learned residual."""
    return Settings(image_size=cfg.side, adain=cfg.adain, freeu=False, noise=0.0, own_kv=False)


def train(cfg: Config, out: Path) -> None:
    """Train until `cfg.steps` (or `cfg.minutes`), resuming from out/checkpoint.pt. Raises OtherTraining, NoPhotographs, ValueError."""
    started = time.monotonic()
    pools = read_pools(cfg)
    model = new_model(cfg)
    optimizer = torch.optim.AdamW(model.parameters(), lr=cfg.lr, weight_decay=cfg.weight_decay, fused=True)
    average = Averaged(model, cfg.average)
    step = 0
    state = load_checkpoint(out / "checkpoint.pt", cfg, may_differ=("steps", "minutes", "data", "save_every"))
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average.load_state_dict(state["average"])
        step = state["step"]
        logger.info("resumed step=%d", step)
    while step < cfg.steps:
        values = train_step(model, optimizer, draw_batch(cfg, pools, step), cfg, step)
        average.update(model, step)
        step += 1
        spent = time.monotonic() - started
        out_of_time = cfg.minutes is not None and spent > 60 * cfg.minutes
        if step % 20 == 0:
            logger.info("step=%d s=%.0f %s", step, spent, " ".join(f"{name}={value:.4f}" for name, value in values.items()))
        if step % cfg.save_every == 0 or step == cfg.steps or out_of_time:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "average": average.values, "step": step}
            save_checkpoint(out / "checkpoint.pt", state, cfg)
        if out_of_time:
            break
    export(out / "checkpoint.pt", cfg, out / "instant-restore")


def new_model(cfg: Config) -> Restorer:
    """The network at step 0: random, or the averaged weights of another training (all shapes must fit)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.seed)
        model = Restorer(cfg)
        if cfg.warm_start is not None:
            model.load_state_dict(torch.load(cfg.warm_start, weights_only=True)["average"])
            model.redraw_shared(cfg.reference_scale)
    return model


def train_step(model: Restorer, optimizer: torch.optim.Optimizer, batch: Batch, cfg: Config, step: int) -> dict[str, float]:
    """One update. Returns the losses and the mean attention mass on the right place."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, cfg.steps, cfg.lr, cfg.warmup, cfg.decay)
    networks, run = model.networks(cfg.unshuffle), settings(cfg)
    probe = attention_probe(batch, cfg, step, layers=len(shared_layers(model.unet)))
    layers = reference_keys_values(networks, batch.references, [], run) if len(batch.references) else []
    x_t = noisy_latents(networks, batch.damaged, [], run)
    restored = networks.codec.decode(restore_latents(networks, x_t, References(layers, batch.rows), run, probe=probe))
    pixels = pixel_loss(restored, batch.clean, batch.weight, cfg.gradient)
    structure = structure_loss(restored, batch.clean)
    loss = pixels + cfg.structure * structure
    values = {"pixels": float(pixels.detach()), "structure": float(structure.detach())}
    if probe is not None:
        attention = probe.loss()
        start, end = cfg.attention
        loss = loss + (start + (end - start) * min(1.0, 2 * step / cfg.steps)) * attention
        values["attention"] = float(attention.detach())
    if isinstance(probe, MatchLoss):
        values["mass"] = probe.mass()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), cfg.clip)
    optimizer.step()
    return values


def attention_probe(batch: Batch, cfg: Config, step: int, layers: int) -> MatchLoss | LandmarkLoss | None:
    """What watches the shared attentions in this step."""
    generator = keyed(cfg.seed, step, "attention")
    if cfg.attention_loss == "match":
        return MatchLoss(batch.placements, [[batch.reference_placements[u] for u in row] for row in batch.rows], generator)
    if cfg.attention_loss == "landmark":
        layer = int(torch.randint(layers, (), generator=generator))
        return LandmarkLoss(layer, batch.landmarks, [[batch.reference_landmarks[u] for u in row] for row in batch.rows])
    if cfg.attention_loss == "none":
        return None
    raise ValueError(f"attention_loss is {cfg.attention_loss!r}; choose match, landmark or none.")


@dataclass
class Pools:
    """Whom a batch is drawn from."""

    pairs: list[Person]  # two photographs or more
    everybody: list[Person]
    drawn_views: int

    @functools.cached_property
    def drawn(self) -> functools._lru_cache_wrapper[Person]:
        return functools.lru_cache(maxsize=None)(lambda number: drawn_person(number, self.drawn_views))


def read_split(data: str, name: str) -> Split:
    """One face set of the data folder, people for test and validation held out."""
    test, validation = HELD_OUT[name]
    return split_people(read_people(Path(data) / name), test, validation)


def read_pools(cfg: Config) -> Pools:
    """All people that may be trained on."""
    people = [person for name in HELD_OUT for person in read_split(cfg.data, name).train]
    return Pools([person for person in people if len(person.images) > 1], people, cfg.drawn_views)


def draw_batch(cfg: Config, pools: Pools, step: int) -> Batch:
    """The batch of one step; it depends on nothing but the configuration and the step."""
    generator = keyed(cfg.seed, step, "batch")
    damaged, clean, weight, references, rows = [], [], [], [], []
    placements, landmarks, reference_placements, reference_landmarks = [], [], [], []
    for _ in range(cfg.people):
        person = draw_person(cfg, pools, generator)
        shown, *others = torch.randperm(len(person.images), generator=generator).tolist()
        flip, grey, light = _chance(0.5, generator), _chance(0.1, generator), random_factors(LIGHT, generator)
        count = int(torch.multinomial(torch.tensor(cfg.references), 1, generator=generator))
        row = []
        for index in range(count):
            photo = others[index % len(others)] if others else shown
            picture, placement, points = _view(cfg, person, photo, flip, REFERENCE_MOVES, generator)
            colourless = grey or _chance(0.05, generator)
            picture = recolour(recolour(picture, light), random_factors(OTHER_LIGHT, generator))
            row.append(len(references))
            references.append(greyed(picture) if colourless else picture)
            reference_placements.append(placement)
            reference_landmarks.append(points)
        for level in cfg.damages:
            picture, placement, points = _view(cfg, person, shown, flip, TARGET_MOVES, generator)
            picture = recolour(picture, light)
            picture = greyed(picture) if grey else picture
            clean.append(picture)
            damaged.append(_damage(picture, level, generator))
            weight.append(face_weight(placement, cfg.side, cfg.background))
            placements.append(placement)
            landmarks.append(points)
            rows.append(row)
    shown_references = torch.stack(references) if references else torch.empty(0, 3, cfg.side, cfg.side)
    images = (torch.stack(damaged), torch.stack(clean), torch.stack(weight), shown_references)
    return Batch(*images, rows, placements, landmarks, reference_placements, reference_landmarks)


def draw_person(cfg: Config, pools: Pools, generator: torch.Generator) -> Person:
    """Somebody with two photographs, anybody's single one, or a drawn person."""
    kind = int(torch.multinomial(torch.tensor(cfg.sources), 1, generator=generator))
    if kind == 2:
        return pools.drawn(int(torch.randint(cfg.drawn_people, (), generator=generator)))
    pool = (pools.pairs, pools.everybody)[kind]
    person = pool[int(torch.randint(len(pool), (), generator=generator))]
    if kind == 0:
        return person
    photo = int(torch.randint(len(person.images), (), generator=generator))
    return Person(person.name, person.images[photo : photo + 1], person.landmarks[photo : photo + 1])


def _view(cfg: Config, person: Person, photo: int, flip: bool, moves: Moves, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """A moved crop of a photograph, its placement, and the landmarks in it, in [-1, 1]."""
    image = person.images[photo]
    placement = random_placement(moves, flip, generator)
    points = person.landmarks[photo] * 2 / image.shape[-1] - 1
    moved = (points - placement[:, 2]) @ torch.linalg.inv(placement[:, :2]).T
    return crop(image, placement, cfg.side), placement, moved


def _damage(image_3HW: Tensor, level: str, generator: torch.Generator) -> Tensor:
    if level == "other":
        level = ("mild", "mild", "anything", "anything", "none")[int(torch.randint(5, (), generator=generator))]
    return image_3HW if level == "none" else degrade(image_3HW, level, generator)


def _chance(probability: float, generator: torch.Generator) -> bool:
    return bool(torch.rand((), generator=generator) < probability)


def export(checkpoint: Path, cfg: Config, folder: Path, metrics: Mapping[str, float] | None = None) -> None:
    """Write a checkpoint's averaged weights as a lab model that a job can name: networks in half precision, card.json and README.md."""
    step = torch.load(checkpoint, weights_only=True)["step"]
    recipe = {name: value for name, value in asdict(cfg).items() if name not in ("data", "minutes", "warm_start", "save_every")}
    facts = {
        "recipe": "instant_restore",
        "config": {**recipe, "warm_start": cfg.warm_start is not None},
        "steps": step,
        "samples": step * cfg.people * len(cfg.damages),
        "seed": cfg.seed,
        "data": "faces_ukparl and faces_lab without the people held out, and drawn portraits",
        "attribution": ATTRIBUTION,
        "metrics": dict(metrics or {}),
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_lab(averaged_networks(checkpoint, cfg), settings(cfg), folder, facts)
    credits = "\n".join(f"- {credit}" for credit in ATTRIBUTION)
    (folder / "README.md").write_text(CARD.format(side=cfg.side, samples=facts["samples"], attribution=credits))


def averaged_networks(checkpoint: Path, cfg: Config) -> Networks:
    """The networks that a checkpoint's averaged weights make, ready to run."""
    model = Restorer(cfg)
    model.load_state_dict(torch.load(checkpoint, weights_only=True)["average"])
    return model.eval().networks(cfg.unshuffle)


def restore(networks: Networks, images_B3HW: Tensor, references: Sequence[Sequence[Tensor]], run: Settings) -> Tensor:
    """Restored pictures in [-1, 1] of damaged ones, each with its own (3, H, W) references; for measuring during training."""
    flat = [picture for row in references for picture in row]
    numbers = iter(range(len(flat)))
    rows = [[next(numbers) for _ in row] for row in references]
    with torch.inference_mode():
        layers = reference_keys_values(networks, torch.stack(flat), [], run) if flat else []
        latents = restore_latents(networks, noisy_latents(networks, images_B3HW, [], run), References(layers, rows), run)
        return networks.codec.decode(latents).clamp(-1, 1)
