"""What it saves to edit a source n times together: Stable Flow on n edits of one source in a call, against one call an edit.

One call an edit is the authors' way: every edit brings its own reference row, and a real picture is inverted again each time. Both ways give
the same pictures, which is checked in the same run. The transformer has the lab's size and random weights: time does not depend on them. For
the published size operations are counted on the meta device, where nothing is computed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextModel

from benchmarks import report
from models.bases import FlowBase
from models.catalog import lab_path
from models.lab.captions import caption, tokenizer
from models.lab.world import UNSEEN, subject
from models.methods.flow_layers import Rows, layer_number, shared_layers
from models.methods.stable_flow import Request, Result, Settings, StableFlow
from models.recipes.mmdit import Config, TextToImage
from models.sampling import positions

VITAL = (0, 1, 4, 5)  # of the lab's ten layers; which ones they are costs nothing
PUBLISHED_DOUBLE, PUBLISHED_SINGLE = (0, 1, 17, 18), (6, 9, 34, 35, 37)


@dataclass(frozen=True)
class Kind:
    """A kind of source."""

    name: str
    real: bool

    def rows(self, edits: int) -> int:
        """Rows of a step's calls for one source: of the inversion, the reference and the edits."""
        return edits + (2 if self.real else 1)


KINDS = (Kind("generated", False), Kind("real", True))


def lab_base() -> FlowBase:
    """The lab's transformer with random weights, on the autoencoder and text tower that ship."""
    vae = AutoencoderKL.from_pretrained(lab_path("autoencoder") / "vae", torch_dtype=torch.float32)
    text = CLIPTextModel.from_pretrained(lab_path("unet") / "text_encoder", torch_dtype=torch.float32)
    torch.manual_seed(0)
    transformer = TextToImage(Config(), text, int(vae.config["latent_channels"])).transformer
    base = FlowBase(vae=vae, scheduler=FlowMatchEulerDiscreteScheduler(), text_encoder=text, tokenizer=tokenizer(), transformer=transformer)
    return base.to("cpu", torch.float32)


def requests(kind: Kind, edits: int, side: int) -> list[Request]:
    """`edits` edits of one source; the picture is noise."""
    image = torch.rand(3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1
    picture = {"image": image, "image_key": "noise"} if kind.real else {}
    prompts = [caption(subject(UNSEEN + i)) for i in range(edits + 1)]
    return [Request(source_prompt=prompts[0], edit_prompt=prompt, source_seed=1, **picture) for prompt in prompts[1:]]


def together(method: StableFlow, rows: Sequence[Request]) -> list[Result]:
    return method(rows)


def one_by_one(method: StableFlow, rows: Sequence[Request]) -> list[Result]:
    return [method([request])[0] for request in rows]


def measure(base: FlowBase, kind: Kind, edits: int, steps: int, rounds: int) -> list[str]:
    """A line of the table: CPU milliseconds an edit both ways, their ratio, the ratio of the rows computed, the largest difference."""
    settings = Settings(
        vital_layers=VITAL,
        num_inference_steps=steps,
        max_edits_per_pass=max(8, edits),
        guidance_scale=1.0,
        measure_inversion=False,  # a row more that the authors' way does not have
    )
    method, rows = StableFlow(base, settings, backend="sdpa"), requests(kind, edits, base.image_size)
    times: dict[str, list[float]] = {"one by one": [], "together": []}
    pictures: dict[str, torch.Tensor] = {}
    for _ in range(rounds):
        for name, way in (("one by one", one_by_one), ("together", together)):
            started = time.process_time()
            results = way(method, rows)
            times[name].append(1e3 * (time.process_time() - started) / edits)
            pictures[name] = torch.stack([result.edited for result in results])
    ratios = [a / b for a, b in zip(times["one by one"], times["together"], strict=True)]
    difference = (pictures["one by one"] - pictures["together"]).abs().max().item()
    computed = edits * kind.rows(1) / kind.rows(edits)
    medians = [f"{median(values):.0f}" for values in times.values()]
    return [kind.name, str(edits), *medians, report.spread(ratios, 2), f"{computed:.2f}", f"{difference:.0e}"]


HEADS = ["source", "edits", "one by one, CPU ms an edit", "together", "ratio", "by rows", "largest difference"]


def published_row() -> float:
    """Floating-point operations of one row of FLUX.1-dev at 1024 px with 512 text tokens, as counted."""
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(guidance_embeds=True).eval()
        image, text = positions(128, 128), torch.zeros(512, 3)
        layers = layer_number(transformer, double=PUBLISHED_DOUBLE, single=PUBLISHED_SINGLE)
        rows = Rows([0], 512, device="meta", backend="sdpa")
        with torch.no_grad(), FlopCounterMode(display=False) as counter, shared_layers(transformer, layers, rows):
            transformer(
                hidden_states=torch.zeros(1, 4096, 64),
                encoder_hidden_states=torch.zeros(1, 512, 4096),
                pooled_projections=torch.zeros(1, 768),
                timestep=torch.zeros(1),
                guidance=torch.zeros(1),
                img_ids=image,
                txt_ids=text,
            )
    return float(counter.get_total_flops())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edits", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(report.command("benchmarks.edits"), report.machine("torch", "diffusers"), sep="\n")
    base = lab_base()
    one_by_one(StableFlow(base, Settings(vital_layers=VITAL, num_inference_steps=2)), requests(KINDS[0], 1, base.image_size))  # warm-up
    before = report.load()
    lines = [measure(base, kind, edits, given.steps, given.rounds) for kind in KINDS for edits in given.edits]
    print(f"\nlab size, {given.steps} steps, no guidance, {given.rounds} rounds; {before} before, {report.load()} after\n")
    print(report.table(HEADS, lines), flush=True)
    row = published_row()
    lines = []
    for kind, steps in zip(KINDS, (15, 50), strict=True):
        for edits in given.edits:
            each = [steps * kind.rows(n) * row / n / 1e15 for n in (1, edits)]
            lines.append([f"{kind.name}, {steps} steps", str(edits), *(f"{x:.2f}" for x in each), f"{each[0] / each[1]:.2f}"])
    print(f"\nFLUX.1-dev at 1024 px, counted and not run: {row / 1e12:.1f} TFLOP a row and step; PFLOP an edit\n")
    print(report.table(["source", "edits", "one by one", "together", "ratio"], lines))


if __name__ == "__main__":
    main()
