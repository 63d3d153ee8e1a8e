"""The lab proof of neural weights on a tiny random translator: it runs, goes on where it stopped, and measures what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from models.lab.concepts import held_out_concepts, training_concepts
from models.lab.proof_neural_weights import Sizes, prove
from models.lab.translation_races import Track, race_loras, race_scratch
from models.lab.weight_starts import ARMS, Starts, trained_on
from models.lora_files import lora_bytes
from models.methods.weight_diffusion import Denoiser
from models.nets.translator import Translator
from models.nets.weight_blocks import concatenated
from models.recipes import weight_denoiser
from models.training.weight_denoising import read_collection
from tests.models.methods.tiny_neural_weights import tiny_translator

SMALL = Sizes(raced=2, seeds=2, seen=8, held=4, scratch_steps=4, lora_steps=4, scratch_every=2, lora_every=2, no_index_steps=2, shown=2)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A translator, LoRAs of eight training concepts, and a denoiser that learnt a little of them."""
    folder = tmp_path_factory.mktemp("proof")
    base = Translator.load(tiny_translator(folder / "translator"))
    for seed, concept in enumerate(training_concepts(8)):
        generator = torch.Generator().manual_seed(seed)
        lora = {name: value + 0.05 * torch.randn(value.shape, generator=generator) for name, value in base.start_lora().items()}
        file = folder / "job" / "artifacts" / "aa" / f"{seed}.safetensors"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(lora_bytes(lora, {"concept": concept.text, "base_hash": base.base_hash}))
    cfg = weight_denoiser.Config(
        data=folder / "job", translator=str(folder / "translator"), validation=1, widths=(8, 8, 16), heads=(2, 2, 2), batch=4, steps=3
    )
    weight_denoiser.train(cfg, folder)
    return folder


@pytest.fixture(scope="module")
def track(job: Path) -> Track:
    return Track.of(Translator.load(job / "translator"), held_out_concepts()[:2], seen=8, held=4)


def test_the_proof_measures_every_arm_and_goes_on_where_it_stopped(job: Path, tmp_path: Path) -> None:
    told: list[str] = []
    prove(tmp_path, job / "job", told.append, job / "weight-denoiser", SMALL)
    report = (tmp_path / "report.md").read_text()
    assert all(arm in report for arm in ARMS)
    assert sum(line.startswith(("holds", "DOES NOT HOLD")) for line in told) == 10
    errors = json.loads((tmp_path / "scores.json").read_text())["errors at step 0"]
    assert all(len(values) == 20 for values in errors.values())
    assert errors["random"] != errors["ours"] != errors["wrong text"]
    assert (tmp_path / "curves.png").stat().st_size > 1000
    curves = json.loads((tmp_path / "curves.json").read_text())
    assert [len(curves[f"{arm} 1"]) for arm in SMALL.timed] == [2] * 4
    assert "no index 1" not in curves
    kept = (tmp_path / "curves.json").stat().st_mtime_ns
    prove(tmp_path, job / "job", told.append, job / "weight-denoiser", SMALL)
    assert (tmp_path / "curves.json").stat().st_mtime_ns == kept
    assert (tmp_path / "report.md").read_text() == report


def test_a_proof_without_its_job_or_with_another_is_refused(job: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--data JOB is missing"):
        prove(tmp_path, None, print, job / "weight-denoiser", SMALL)
    other = tmp_path / "other"
    for file in sorted((job / "job").rglob("*.safetensors"))[:3]:
        (other / file.name).parent.mkdir(parents=True, exist_ok=True)
        (other / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match=r"lacks \d of the 7 concepts"):
        prove(tmp_path, other, print, job / "weight-denoiser", SMALL)


def test_arms_begin_where_they_say(job: Path, track: Track) -> None:
    base, denoiser = track.base, Denoiser.load(job / "weight-denoiser")
    starts = Starts(base, denoiser, trained_on(job / "weight-denoiser", read_collection(job / "job", base.base_hash)), denoiser)
    texts = track.texts
    assert torch.equal(track.errors(starts.lora("random", texts, 0)), track.errors(concatenated([base.start_lora()] * 2)))
    mean = starts.lora("mean", texts, 0)
    for name, values in starts.collection.lora.items():
        torch.testing.assert_close(mean[name][0], values.mean(0), atol=1e-5, rtol=0)
    ours, wrong = starts.lora("ours", texts, 0), starts.lora("wrong text", texts, 0)
    assert not torch.equal(ours["down.0.lora_B"], wrong["down.0.lora_B"])
    regressed = starts.lora("regression", list(starts.collection.concepts), 0)
    distance = sum((regressed[name] - value).square().sum() for name, value in starts.collection.lora.items())
    from_mean = sum((mean[name][0] - value).square().sum() for name, value in starts.collection.lora.items())
    assert distance < from_mean


def test_a_race_is_checked_from_the_start_and_the_error_falls(track: Track) -> None:
    start = concatenated([track.base.start_lora()] * 2)
    for checks in race_loras(track, start, seed=0, steps=12, every=5):
        assert checks.steps == (0, 5, 10, 12)
        assert checks.errors[-1] < checks.errors[0]
        assert checks.timed(0.5, 2.0).seconds == (2.0, 4.5, 7.0, 8.0)
    scratch = race_scratch(track.only(1), seed=0, steps=4, every=2)
    assert scratch.steps == (0, 2, 4)


def test_only_pixels_that_an_edit_changes_count(track: Track) -> None:
    assert (track.untouched() > 0.02).all()  # the mean change of a changed pixel is above what counts as one
