from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.attention import attention_probabilities
from models.checkpoints import CheckpointMismatch
from models.keys_values import References
from models.methods.instant_restore import (
    Settings,
    attached,
    capture_keys_values,
    clean_latents,
    predict_noise,
    shared_layers,
    shared_noise,
)
from models.methods.instant_restore_checkpoint import build_networks
from models.nets.codecs import LatentCodec
from models.proofs import GoldenFileError, golden
from tests.models.methods.tiny_authors_checkpoint import tiny_parts, unet, vae

FOLDERS = [Path(os.environ.get("CALOTYPE_GOLDEN", "")), Path(__file__).parents[4] / "shared" / "golden"]
AUTHORS = next((folder / "instant_restore.safetensors" for folder in FOLDERS if (folder / "instant_restore.safetensors").is_file()), None)


@pytest.mark.skipif(AUTHORS is None, reason="no golden file; set CALOTYPE_GOLDEN to the folder that holds instant_restore.safetensors")
def test_every_tensor_of_the_authors_code_is_met_in_all_four_settings() -> None:
    assert AUTHORS is not None
    comparisons = golden("instant-restore", AUTHORS)
    stored = [name for name in load_file(AUTHORS) if name.startswith("adain=") and "_t1" not in name and "_t249" not in name]
    assert {c.name.split(" ")[0] for c in comparisons} == {*stored}
    assert [c for c in comparisons if not c.ok] == []
    assert any("masked, rows 0" in c.name for c in comparisons)


@pytest.mark.skipif(AUTHORS is None, reason="no golden file; set CALOTYPE_GOLDEN to the folder that holds instant_restore.safetensors")
def test_the_wrong_setting_would_be_seen(tmp_path: Path) -> None:
    assert AUTHORS is not None
    tensors = load_file(AUTHORS)
    swapped = {
        name.replace("adain=0", "adain=x").replace("adain=1", "adain=0").replace("adain=x", "adain=1"): t for name, t in tensors.items()
    }
    save_file(swapped, tmp_path / "swapped.safetensors")
    wrong = {c.name.split(" ")[0]: c.max_abs for c in golden("instant_restore", tmp_path / "swapped.safetensors") if not c.ok}
    assert min(value for name, value in wrong.items() if name.endswith("restored")) > 0.05


def keep_map(tensors: dict[str, Tensor], group: str, rows: int, layer: int, q: Tensor, k: Tensor, kv_lens: list[int]) -> None:
    tensors[f"{group}attention_map.{layer}"] = attention_probabilities(q, k.reshape(rows, kv_lens[0], *k.shape[2:]))


@torch.no_grad()
def own_file(rows: int, references: int, valid: list[int]) -> dict[str, Tensor]:
    """A file of the layout in other sizes, its results computed by the code under test: it proves the comparing, not the mathematics."""
    parts, generator = tiny_parts(), torch.Generator().manual_seed(1)
    caption = torch.randn(1, 5, 12, generator=generator)
    networks = build_networks(unet().config, vae().config, parts, caption, "test")
    assert isinstance(networks.codec, LatentCodec)
    tensors = {f"weights/{part}.{key}": value for part, state in parts.items() for key, value in state.items()}
    degraded = torch.rand(rows, 3, 64, 64, generator=generator) * 2 - 1
    tensors |= {"inputs/degraded": degraded, "inputs/references": torch.zeros(rows, references, 3, 64, 64), "inputs/caption": caption}
    tensors["inputs/valid_references"] = torch.tensor(valid)
    for adain in (0, 1):
        for own_kv in (0, 1):
            x_1, x_t = torch.randn(rows * references, 4, 8, 8, generator=generator), torch.randn(rows, 4, 8, 8, generator=generator)
            settings = Settings(adain=bool(adain), own_kv=bool(own_kv), max_references=references).with_compat(["zeroed"])
            group = f"adain={adain},own_kv={own_kv}/"

            keep = partial(keep_map, tensors, group, rows)
            looked_at = References(
                capture_keys_values(networks, x_1, settings), [range(b * references, b * references + n) for b, n in enumerate(valid)]
            )
            with attached(networks.reference_unet, {}, freeu=True):
                tensors[f"{group}reference_eps"] = predict_noise(networks.reference_unet, x_1, 1, caption)
            eps = shared_noise(networks, x_t, looked_at, settings, probe=keep)
            restored = networks.codec.decode(clean_latents(networks, x_t, eps, settings)).clamp(-1, 1)
            results = {"eps": eps, "restored": restored, "degraded_moments": networks.codec.vae.encoder(degraded)}
            stored = {"reference_latents_t1": x_1, "noisy_latents_t249": x_t, **results}
            tensors |= {group + name: tensor for name, tensor in stored.items()}
    assert sum(name.startswith("adain=0,own_kv=0/attention_map.") for name in tensors) == len(shared_layers(networks.unet))
    return {name: tensor.contiguous().clone() for name, tensor in tensors.items()}


@pytest.fixture(scope="module")
def other_sizes() -> dict[str, Tensor]:
    return own_file(rows=3, references=2, valid=[2, 1, 0])


def test_a_file_of_other_widths_heads_rows_and_references_is_read_from_its_shapes(other_sizes: dict[str, Tensor], tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    other_sizes["adain=1,own_kv=0/eps"][2, 0, 0, 0] += 1e-3
    other_sizes["adain=0,own_kv=1/restored"][0, 0, 0, 0] = float("nan")
    save_file(other_sizes, file)
    failed = [c.name for c in golden("instant_restore", file) if not c.ok]
    assert failed == [
        "adain=0,own_kv=1/restored (zeroed, all rows)",
        "adain=0,own_kv=1/restored (masked, rows 0)",
        "adain=1,own_kv=0/eps (zeroed, all rows)",
    ]


def test_what_is_missing_from_a_file_or_foreign_to_it_is_named(other_sizes: dict[str, Tensor], tmp_path: Path) -> None:
    file = tmp_path / "golden.safetensors"
    save_file({name: tensor for name, tensor in other_sizes.items() if name != "adain=1,own_kv=1/eps"}, file)
    with pytest.raises(GoldenFileError, match=r"1 tensors missing \(adain=1,own_kv=1/eps\)"):
        golden("instant_restore", file)
    save_file({**other_sizes, "adain=2/eps": torch.zeros(1)}, file)
    with pytest.raises(GoldenFileError, match=r"1 unknown \(adain=2/eps\)"):
        golden("instant_restore", file)
    save_file({name: tensor for name, tensor in other_sizes.items() if name != "weights/unet.conv_out.base_layer.bias"}, file)
    with pytest.raises(CheckpointMismatch, match=r"missing conv_out\.base_layer\.bias"):
        golden("instant_restore", file)
    save_file({"inputs/degraded": torch.zeros(1)}, file)
    with pytest.raises(GoldenFileError, match="is no golden file of this method"):
        golden("instant_restore", file)


def test_a_file_that_was_cut_off_and_a_method_without_proof_are_named(other_sizes: dict[str, Tensor], tmp_path: Path) -> None:
    file = tmp_path / "golden.safetensors"
    save_file(other_sizes, file)
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(GoldenFileError, match="no complete safetensors file"):
        golden("instant_restore", file)
    with pytest.raises(GoldenFileError, match="There is no weight file"):
        golden("instant_restore", tmp_path / "absent.safetensors")
    with pytest.raises(ValueError, match=r"no golden proof for 'stable_flw'; methods that have one: .*instant_restore"):
        golden("stable_flw", file)
