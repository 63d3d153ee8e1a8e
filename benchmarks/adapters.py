"""Different adapters in one batch against switching them with peft, on the same model (lab/unet) in one run.

Every identity is a rank-1 adapter of its own on the 28 to_q and to_v layers and gets one picture, 20 steps with guidance. Arms, interleaved:
one batch with batched low-rank products (calotype); peft with all adapters resident, one made active before each picture; peft loading each
adapter from its file and taking it out again, as one must where they are too many to hold; and peft's own mixed batch (`adapter_names`).
CPU seconds of this process (one thread), text and decoding included. Pictures are compared as well.

    python -m benchmarks.adapters [--identities 1 8 32] [--rounds 3]
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.utils import set_peft_model_state_dict
from torch import Tensor

from benchmarks import report
from models.bases import UNetBase
from models.catalog import lab_path
from models.methods.weights2weights import Request, Settings, Weights2Weights
from models.methods.weights2weights_files import Start, adapter_bytes
from models.methods.weights2weights_layout import Layout
from models.methods.weights2weights_space import fit_space
from models.sampling import Request as Sampled
from models.sampling import Step, denoise, encode_prompts, prompts_of, sample

PROMPT = "portrait of a person"
STEPS, SCALE = 20, 3.0
HEADS = ["identities", "calotype, CPU ms a picture", "peft, switching", "peft, loading each", "peft, mixed batch",
         "switching / calotype", "loading / calotype", "mixed batch / calotype", "largest difference"]  # fmt: skip


def identities(layout: Layout, count: int) -> Tensor:
    """(m,n) random adapters about one start, about as large as trained ones."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(layout.size, generator=generator) * 0.05
    return start + torch.randn(count, layout.size, generator=generator) * 0.02


def asked(count: int) -> list[Sampled]:
    return [Sampled(prompt=PROMPT, seed=row, steps=STEPS, guidance_scale=SCALE) for row in range(count)]


class Peft:
    """A copy of the base's U-Net in peft's hands, with all adapters resident, or none."""

    def __init__(self, base: UNetBase, layout: Layout, weights_mn: Tensor) -> None:
        self.base = copy.copy(base)
        self.base.unet = copy.deepcopy(base.unet)
        config = LoraConfig(r=layout.rank, lora_alpha=int(layout.alpha), target_modules=list(layout.targets))
        self.model: Any = get_peft_model(self.base.unet, config, "row0")  # pyright: ignore[reportArgumentType]
        for row, weights_n in enumerate(weights_mn):
            if row:
                self.model.add_adapter(f"row{row}", config)
            set_peft_model_state_dict(self.model, layout.unflatten(weights_n), f"row{row}")
        self.model.eval().requires_grad_(False)

    @torch.inference_mode()
    def switching(self, count: int) -> list[Tensor]:
        """One picture after the other, its adapter made active before it."""
        pictures = []
        for row, request in enumerate(asked(count)):
            self.model.base_model.set_adapter(f"row{row}", inference_mode=True)
            pictures += sample(self.base, [request])
        return pictures

    @torch.inference_mode()
    def mixed(self, count: int) -> list[Tensor]:
        """One batch, in which peft looks for each adapter's rows in every layer."""
        requests = asked(count)
        text, indices = encode_prompts(self.base, requests)
        conditional, unconditional = (text.take([indices[prompt] for prompt in prompts]) for prompts in prompts_of(requests))
        with ExitStack() as hooks:

            def before_step(step: Step) -> Tensor:
                hooks.close()
                names = [f"row{row}" for row in (*step.unconditional, *step.rows)]
                hooks.enter_context(self.model.base_model._enable_peft_forward_hooks(adapter_names=names))
                return step.latents

            latents_BChw = denoise(self.base, requests, conditional, unconditional, before_step=before_step)
        return list(self.base.decode(latents_BChw))


def loading(base: UNetBase, folder: Path, count: int) -> list[Tensor]:
    """One picture after the other, its adapter loaded from its file before it and taken out after it, by diffusers and peft."""
    pictures = []
    for row, request in enumerate(asked(count)):
        base.unet.load_lora_adapter(str(folder), weight_name=f"{row}.safetensors", prefix="base_model.model", adapter_name="person")
        pictures += sample(base, [request])
        base.unet.delete_adapters("person")
    base.unet.unload_lora()
    return pictures


def ours(method: Weights2Weights, weights_mn: Tensor, count: int) -> list[Tensor]:
    """All pictures in one batch."""
    requests = [Request(prompt=PROMPT, seed=row, start=Start(weights_n=weights_mn[row])) for row in range(count)]
    return [result.image for result in method(requests)]


def compare(counts: Sequence[int], rounds: int) -> None:
    """Interleaved rounds of all arms for each number of identities; prints the table."""
    base = UNetBase.load(lab_path("unet"), device="cpu", dtype=torch.float32)
    layout = Layout.of(base.unet)
    weights_mn = identities(layout, max(counts))
    method = Weights2Weights(
        base, fit_space(identities(layout, 8), layout), Settings(num_inference_steps=STEPS, guidance_scale=SCALE, negative_prompt="")
    )
    before, lines = report.load(), []
    with tempfile.TemporaryDirectory() as kept:
        folder = Path(kept)
        for row, weights_n in enumerate(weights_mn):
            (folder / f"{row}.safetensors").write_bytes(adapter_bytes(layout, weights_n, {}))
        alone = copy.copy(base)
        alone.unet = copy.deepcopy(base.unet)
        for count in counts:
            peft = Peft(base, layout, weights_mn[:count])
            arms: dict[str, Callable[[], list[Tensor]]] = {
                "calotype": partial(ours, method, weights_mn, count),
                "switching": partial(peft.switching, count),
                "loading": partial(loading, alone, folder, count),
                "mixed": partial(peft.mixed, count),
            }
            ours(method, weights_mn, 1)  # warm-up
            times: dict[str, list[float]] = {arm: [] for arm in arms}
            difference = 0.0
            for number in range(rounds):
                pictures = {}
                for arm in list(arms)[:: 1 if number % 2 else -1]:  # no arm always profits from the one before it
                    started = time.process_time()
                    pictures[arm] = arms[arm]()
                    times[arm].append((time.process_time() - started) / count)
                theirs = [made for arm, made in pictures.items() if arm != "calotype"]
                pairs = [(a, b) for made in theirs for a, b in zip(pictures["calotype"], made, strict=True)]
                difference = max(difference, *((a - b).abs().max().item() for a, b in pairs))
            ratios = {arm: [a / b for a, b in zip(times[arm], times["calotype"], strict=True)] for arm in arms}
            lines.append(
                [
                    str(count),
                    *(f"{1e3 * median(times[arm]):.0f}" for arm in arms),
                    *(report.spread(ratios[arm], 2) for arm in arms if arm != "calotype"),
                    f"{difference:.1e}",
                ]
            )
    print(f"\nlab/unet, {rounds} rounds; {before} before, {report.load()} after\n")
    print(report.table(HEADS, lines), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--identities", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(report.command("benchmarks.adapters"), report.machine("torch", "diffusers", "peft"), sep="\n")
    compare(given.identities, given.rounds)


if __name__ == "__main__":
    main()
