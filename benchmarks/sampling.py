"""Sampling against diffusers' own pipelines: one request after the other, and in their own batch where they can batch.

Even rows have one step count and guidance scale; mixed rows have several, which diffusers takes one by one only. Same weights, seeds and
prompts; CPU seconds of this process (one thread), arms interleaved, text encoding and decoding included. Pictures are compared as well.

    python -m benchmarks.sampling [--models unet mmdit] [--rows 16] [--rounds 3]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from torch import Tensor

from benchmarks import report
from models.bases import FlowBase, UNetBase, load_base
from models.catalog import lab_path
from models.lab.captions import caption
from models.lab.world import UNSEEN, subject
from models.sampling import Request, sample

EVEN = ((20, 3.0),)
MIXED = ((20, 3.0), (20, 1.0), (12, 3.0), (16, 5.0))  # steps, guidance scale; rows take them in turn
HEADS = [
    "rows",
    "calotype, CPU ms a picture",
    "diffusers, one by one",
    "diffusers, batch",
    "one by one / calotype",
    "batch / calotype",
    "largest difference",
]


def requests(count: int, asked: Sequence[tuple[int, float]]) -> list[Request]:
    """Prompts of pictures never trained on."""
    prompts = [caption(subject(UNSEEN + row)) for row in range(count)]
    settings = [asked[row % len(asked)] for row in range(count)]
    return [
        Request(prompt=prompt, seed=row, steps=steps, guidance_scale=scale)
        for row, (prompt, (steps, scale)) in enumerate(zip(prompts, settings, strict=True))
    ]


def pipeline_of(base: UNetBase | FlowBase) -> Any:
    """diffusers' own pipeline around the same networks."""
    if isinstance(base, UNetBase):
        made = StableDiffusionPipeline(
            base.vae, base.text_encoder, base.tokenizer, base.unet, base.scheduler, None, None, requires_safety_checker=False
        )  # fmt: skip
    else:
        if base.vae.config["shift_factor"] is None:
            base.vae.register_to_config(shift_factor=0.0)  # which it means; FluxPipeline would add None
        made = FluxPipeline(
            base.scheduler, base.vae, base.text_encoder, base.tokenizer, base.text_encoder_2, base.tokenizer_2, base.transformer
        )
    made.set_progress_bar_config(disable=True)
    return made


def by_diffusers(base: UNetBase | FlowBase, pipeline: Any, rows: Sequence[Request]) -> list[Tensor]:
    """Rows of one step count and guidance scale in one call of the pipeline: (3,H,W) in [-1, 1] each."""
    options: dict[str, Any] = {
        "num_inference_steps": rows[0].steps,
        "generator": [torch.Generator().manual_seed(row.seed) for row in rows],
        "height": base.image_size,
        "width": base.image_size,
        "output_type": "pt",
    }
    prompts, negative = [row.prompt for row in rows], [row.negative_prompt for row in rows]
    if isinstance(base, UNetBase):
        options |= {"prompt": prompts, "negative_prompt": negative, "guidance_scale": rows[0].guidance_scale}
    else:  # its own encoding wants T5, which the lab model does without
        text, none = base.encode_text(prompts), base.encode_text(negative)
        options |= {"prompt_embeds": text.states, "pooled_prompt_embeds": text.pooled, "true_cfg_scale": rows[0].guidance_scale}
        options |= {"negative_prompt_embeds": none.states, "negative_pooled_prompt_embeds": none.pooled}
    return list(pipeline(**options).images * 2 - 1)


def seconds(call: Callable[[], list[Tensor]]) -> tuple[float, list[Tensor]]:
    """CPU seconds of a call, and what it returned."""
    started = time.process_time()
    pictures = call()
    return time.process_time() - started, pictures


def compare(name: str, rows: int, rounds: int) -> None:
    """Interleaved rounds of all arms on one model; prints the table."""
    base = load_base(lab_path(name), device="cpu", dtype=torch.float32)
    pipeline, before, lines = pipeline_of(base), report.load(), []
    for label, asked in (("even", EVEN), ("mixed", MIXED)):
        wanted = requests(rows, asked)
        arms: dict[str, Callable[[], list[Tensor]]] = {
            "calotype": lambda wanted=wanted: sample(base, wanted),
            "one": lambda wanted=wanted: [picture for row in wanted for picture in by_diffusers(base, pipeline, [row])],
        }
        if len(asked) == 1:
            arms["batch"] = lambda wanted=wanted: by_diffusers(base, pipeline, wanted)
        sample(base, wanted[:1])  # warm-up
        times: dict[str, list[float]] = {arm: [] for arm in arms}
        difference = 0.0
        for number in range(rounds):
            pictures = {}
            for arm in list(arms)[:: 1 if number % 2 else -1]:  # no arm always profits from the one before it
                taken, pictures[arm] = seconds(arms[arm])
                times[arm].append(taken / rows)
            theirs = [pictures[arm] for arm in arms if arm != "calotype"]
            difference = max(
                difference, *((a - b).abs().max().item() for other in theirs for a, b in zip(pictures["calotype"], other, strict=True))
            )
        ratios = {arm: [a / b for a, b in zip(times[arm], times["calotype"], strict=True)] for arm in arms}
        lines.append(
            [
                f"{rows} {label}",
                f"{1e3 * median(times['calotype']):.0f}",
                f"{1e3 * median(times['one']):.0f}",
                f"{1e3 * median(times['batch']):.0f}" if "batch" in arms else "cannot",
                report.spread(ratios["one"], 2),
                report.spread(ratios["batch"], 2) if "batch" in arms else "",
                f"{difference:.1e}",
            ]
        )
    print(f"\nlab/{name}, {rounds} rounds; {before} before, {report.load()} after\n")
    print(report.table(HEADS, lines), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=["unet", "mmdit"], default=["unet", "mmdit"])
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(report.command("benchmarks.sampling"), report.machine("torch", "diffusers"), sep="\n")
    for name in given.models:
        compare(name, given.rows, given.rounds)


if __name__ == "__main__":
    main()
