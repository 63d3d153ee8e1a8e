"""What it saves to compute a person's references once: calotype against the authors' flow, on the same networks in the same process.

Flows, for a person with P photographs and R references:
- authors: photograph by photograph; every time the references are encoded, go through the whole reference U-Net, and are decoded again to a
  picture that nobody looks at (spec section 5).
- recompute: photograph by photograph without a cache, but the reference pass ends at the last shared layer and nothing is decoded.
- calotype: the method as jobs use it, photographs of a person side by side, references from the cache.

Operations are counted on the same runs with torch's counter, and for the full-size networks on the meta device, where nothing is computed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import report
from models.keys_values import LayerKeysValues, References
from models.methods.instant_restore import (
    REFERENCE_TIMESTEP,
    CapturingAttention,
    InstantRestore,
    Networks,
    Request,
    Settings,
    attached,
    clean_latents,
    mix_noise,
    noisy_latents,
    predict_noise,
    reference_keys_values,
    restore_latents,
    shared_layers,
)
from models.methods.instant_restore_checkpoint import sd_turbo_scheduler
from models.nets.codecs import LatentCodec
from models.recipes import instant_restore as recipe

LAB = recipe.Config(data="")


@dataclass(frozen=True)
class Scale:
    """Networks to measure and how they are run; `micro_batch`: photographs in one call of calotype."""

    name: str
    build: Callable[[], Networks]
    settings: Settings
    micro_batch: int


def sd_networks(width: float) -> Networks:
    """Random networks of SD-Turbo's layout with sd-vae-ft-mse's autoencoder, all channels times `width` (1 or 1/8).

    Heads shrink in number, not in width, so that softmax and products keep their proportion: 40 channels a head at 1/8, 64 at 1.
    """
    torch.manual_seed(0)
    channels = [int(c * width) for c in (320, 640, 1280, 1280)]
    vae_channels = [int(c * width) for c in (128, 256, 512, 512)]
    unets = [
        UNet2DConditionModel(
            block_out_channels=tuple(channels),
            attention_head_dim=(5, 10, 20, 20) if width == 1 else (1, 2, 4, 4),  # pyright: ignore[reportArgumentType]
            cross_attention_dim=int(1024 * width),
            use_linear_projection=True,
            norm_num_groups=min(32, channels[0] // 5),
        )
        for _ in range(2)
    ]
    vaes = [
        AutoencoderKL(
            block_out_channels=tuple(vae_channels),  # pyright: ignore[reportArgumentType]
            layers_per_block=2,
            latent_channels=4,
            norm_num_groups=min(32, vae_channels[0] // 4),
            down_block_types=("DownEncoderBlock2D",) * 4,  # pyright: ignore[reportArgumentType]
            up_block_types=("UpDecoderBlock2D",) * 4,  # pyright: ignore[reportArgumentType]
        )
        for _ in range(2)
    ]
    codecs = [LatentCodec(vae) for vae in vaes]
    caption = torch.randn(1, 77, int(1024 * width))
    return _still(Networks(unets[0], unets[1], codecs[0], codecs[1], sd_turbo_scheduler(), caption))


def lab_networks() -> Networks:
    """Random networks of the lab's size: pixel-unshuffle instead of an autoencoder, one U-Net for both passes."""
    return _still(recipe.new_model(LAB).networks(LAB.unshuffle))


def _still(networks: Networks) -> Networks:
    networks.caption = networks.caption.detach()
    for module in (networks.unet, networks.reference_unet, networks.codec, networks.reference_codec):
        if isinstance(module, torch.nn.Module):
            module.eval().requires_grad_(False)
    return networks


SCALES = {
    "lab": Scale("lab size: 64 px, pixel-unshuffle in place of an autoencoder", lab_networks, recipe.settings(LAB), 16),
    "eighth": Scale(
        "SD-Turbo's layout and autoencoder at 1/8 of the channels, 256 px", lambda: sd_networks(1 / 8), Settings(image_size=256), 4
    ),
}


def authors_flow(networks: Networks, settings: Settings, request: Request) -> Tensor:
    """One photograph the authors' way: (3,H,W)."""
    generators = [torch.Generator().manual_seed(i) for i in range(len(request.references))]
    z_RCHW = networks.reference_codec.encode(torch.stack(list(request.references)), generators)
    x_1_RCHW = mix_noise(networks, z_RCHW, REFERENCE_TIMESTEP, settings.noise, generators)
    captured: list[LayerKeysValues] = []
    processors = {name: CapturingAttention(captured, last=False, backend="sdpa") for name in shared_layers(networks.reference_unet)}
    with attached(networks.reference_unet, processors, freeu=settings.freeu):
        eps_RCHW = predict_noise(networks.reference_unet, x_1_RCHW, REFERENCE_TIMESTEP, networks.caption)
    networks.reference_codec.decode(clean_latents(networks, x_1_RCHW, eps_RCHW, settings))  # theirs drops it too
    return _restored(networks, settings, request, References(captured, [list(range(len(request.references)))]))


def recompute_flow(networks: Networks, settings: Settings, request: Request) -> Tensor:
    """One photograph with a lean reference pass of its own: (3,H,W)."""
    generators = [torch.Generator().manual_seed(i) for i in range(len(request.references))]
    layers = reference_keys_values(networks, torch.stack(list(request.references)), generators, settings, backend="sdpa")
    return _restored(networks, settings, request, References(layers, [list(range(len(request.references)))]))


def _restored(networks: Networks, settings: Settings, request: Request, references: References) -> Tensor:
    generator = torch.Generator().manual_seed(request.seed)
    x_t_1CHW = noisy_latents(networks, request.image[None], [generator], settings)
    return networks.codec.decode(restore_latents(networks, x_t_1CHW, references, settings, backend="sdpa")).clamp(-1, 1)[0]


def people(count: int, photographs: int, references: int, side: int) -> list[Request]:
    """Rows of `count` people, each with their own references, in a plan's order. Noise for pictures: time does not depend on them."""
    generator = torch.Generator().manual_seed(1)
    rows = []
    for person in range(count):
        clean = [torch.rand(3, side, side, generator=generator) * 2 - 1 for _ in range(references)]
        keys = [f"person-{person}-reference-{i}" for i in range(references)]
        rows += [
            Request(torch.rand(3, side, side, generator=generator) * 2 - 1, clean, keys, seed=len(rows) + i) for i in range(photographs)
        ]
    return rows


def run_flow(flow: str, networks: Networks, settings: Settings, rows: Sequence[Request], micro_batch: int) -> None:
    """All rows through one flow, from an empty cache."""
    with torch.inference_mode():
        if flow == "calotype":
            method = InstantRestore(networks, settings, backend="sdpa")
            for start in range(0, len(rows), micro_batch):
                method(rows[start : start + micro_batch])
            return
        one = authors_flow if flow == "authors" else recompute_flow
        for request in rows:
            one(networks, settings, request)


FLOWS = ("authors", "recompute", "calotype")


def seconds(flow: str, networks: Networks, settings: Settings, rows: Sequence[Request], micro_batch: int) -> float:
    """CPU seconds of this process for all rows (one thread): another program on the core does not count."""
    started = time.process_time()
    run_flow(flow, networks, settings, rows, micro_batch)
    return time.process_time() - started


@dataclass(frozen=True)
class Operations:
    """Floating-point operations (2 x multiply-adds) of one reference in both ways, and of one photograph without its references' share."""

    authors_reference: float
    lean_reference: float
    photograph: float

    def a_row(self, flow: str, photographs: int, references: int) -> float:
        if flow == "authors":
            return self.photograph + references * self.authors_reference
        return self.photograph + references * self.lean_reference / (photographs if flow == "calotype" else 1)


def count(networks: Networks, settings: Settings, references: int, device: str = "cpu") -> Operations:
    """Count the operations of the flows on one photograph with `references` references."""
    side = settings.image_size
    (row,) = people(1, 1, references, side)
    row = Request(row.image.to(device), [r.to(device) for r in row.references], row.reference_keys, row.seed)

    def total(call: Callable[[], object]) -> float:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            call()
        return float(counter.get_total_flops())

    generators = [torch.Generator().manual_seed(i) for i in range(references)]
    lean = total(lambda: reference_keys_values(networks, torch.stack(list(row.references)), generators, settings, backend="sdpa"))
    photograph = total(lambda: recompute_flow(networks, settings, row)) - lean
    whole = total(lambda: authors_flow(networks, settings, row)) - photograph
    return Operations(whole / references, lean / references, photograph)


def full_size(references: int) -> Operations:
    """Operations of the published size, 512 px: counted on the meta device, never run."""
    with torch.device("meta"):
        networks = sd_networks(1.0)
    networks.scheduler = sd_turbo_scheduler()  # its table of alphas is read
    return count(networks, Settings(image_size=512), references, device="meta")


def compare(scale: Scale, photographs: Sequence[int], references: int, rounds: int) -> None:
    """Interleaved rounds of the three flows for each number of photographs; prints the table."""
    networks, settings = scale.build(), scale.settings
    operations, before, lines = count(networks, settings, references), report.load(), []
    run_flow("authors", networks, settings, people(1, 1, references, settings.image_size), 1)  # warm-up
    for number in photographs:
        rows = people(max(1, 8 // number), number, references, settings.image_size)
        times: dict[str, list[float]] = {flow: [] for flow in FLOWS}
        for _ in range(rounds):
            for flow in FLOWS:
                times[flow].append(seconds(flow, networks, settings, rows, scale.micro_batch) / len(rows))
        ratios = {flow: [a / b for a, b in zip(times[flow], times["calotype"], strict=True)] for flow in FLOWS}
        counted = {flow: operations.a_row(flow, number, references) for flow in FLOWS}
        lines.append(
            [
                f"{number} x {len(rows) // number}",
                *(f"{1e3 * median(times[flow]):.0f}" for flow in FLOWS),
                report.spread(ratios["authors"], 2),
                f"{counted['authors'] / counted['calotype']:.2f}",
                report.spread(ratios["recompute"], 2),
                f"{counted['recompute'] / counted['calotype']:.2f}",
            ]
        )
    print(
        f"\n{scale.name}, {references} references, {scale.micro_batch} photographs a call, {rounds} rounds; {before} before, {report.load()} after\n"
    )
    print(report.table(HEADS, lines))
    print(_limits(operations, references), flush=True)


HEADS = [
    "photographs x people",
    "authors, CPU ms a row",
    "recompute",
    "calotype",
    "authors / calotype",
    "by operations",
    "recompute / calotype",
    "by operations",
]


def _limits(operations: Operations, references: int) -> str:
    parts = [
        f"{x / 1e9:.3g}" for x in (operations.photograph, references * operations.lean_reference, references * operations.authors_reference)
    ]
    endless = [operations.a_row(flow, 1, references) / operations.photograph for flow in ("authors", "recompute")]
    return (
        f"\nGFLOP: a photograph {parts[0]}, its references lean {parts[1]}, the authors' way {parts[2]}; "
        f"with endless photographs a person {endless[0]:.2f}x (authors) and {endless[1]:.2f}x (recompute)."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scales", nargs="+", choices=sorted(SCALES), default=["lab", "eighth"])
    parser.add_argument("--photographs", type=int, nargs="+", default=[1, 4, 8, 32])
    parser.add_argument("--references", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(report.command("benchmarks.reference_cache"), report.machine("torch", "diffusers"), sep="\n")
    for name in given.scales:
        compare(SCALES[name], given.photographs, given.references, given.rounds)
    full, lines = full_size(given.references), []
    for number in given.photographs:
        counted = {flow: full.a_row(flow, number, given.references) for flow in FLOWS}
        lines.append(
            [
                str(number),
                *(f"{counted[flow] / 1e12:.2f}" for flow in FLOWS),
                *(f"{counted[flow] / counted['calotype']:.2f}" for flow in ("authors", "recompute")),
            ]
        )
    print("\npublished size, 512 px, counted and not run: TFLOP a row\n")
    print(report.table(["photographs", "authors", "recompute", "calotype", "authors / calotype", "recompute / calotype"], lines))
    print(_limits(full, given.references))


if __name__ == "__main__":
    main()
