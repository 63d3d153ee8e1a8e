"""The exactness list of the specification (section 6) on small random networks, and what the method promises around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from models.attention import attention_probabilities
from models.keys_values import LayerKeysValues, References, adain
from models.methods.instant_restore import (
    InstantRestore,
    Networks,
    Request,
    Settings,
    attached,
    capture_keys_values,
    clean_latents,
    mix_noise,
    noisy_latents,
    predict_noise,
    reference_keys_values,
    restore_latents,
    shared_layers,
    shared_noise,
)
from models.training.losses import landmark_target
from tests.models.methods.tiny_instant_restore import SETTINGS, SIDE, pixels, tiny_method, tiny_networks, tiny_request


def generators(count: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + i) for i in range(count)]


def eps_of(rows: Sequence[Sequence[int]], settings: Settings = SETTINGS, networks: Networks | None = None) -> Tensor:
    """eps of row b's image (always the same for a row's number) with its references out of four."""
    networks = networks or tiny_networks()
    keys_values = reference_keys_values(networks, pixels(7, 4), generators(4), settings)
    x_t = noisy_latents(networks, pixels(8, len(rows)), generators(len(rows), 50), settings)
    return shared_noise(networks, x_t, References(keys_values, rows), settings)


def restored(method: InstantRestore, requests: Sequence[Request]) -> Tensor:
    return torch.stack([result.restored for result in method(requests)])


def difference(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()


# --- the specification's list ---


def test_1_padding_up_to_the_maximum_changes_nothing_when_masked() -> None:
    few, many = replace(SETTINGS, max_references=2), replace(SETTINGS, max_references=4)
    assert difference(eps_of([[0, 1]], few), eps_of([[0, 1]], many)) < 1e-5


def test_1_padding_up_to_the_maximum_leaks_when_zeroed_as_the_authors_did() -> None:
    few, many = (replace(SETTINGS, max_references=n).with_compat(["zeroed"]) for n in (2, 4))
    assert difference(eps_of([[0, 1]], few), eps_of([[0, 1]], many)) > 1e-4


@pytest.mark.parametrize("own_kv", [False, True])
def test_2_a_row_alone_equals_the_row_in_a_batch_of_mixed_counts(own_kv: bool) -> None:
    settings = replace(SETTINGS, own_kv=own_kv)
    rows = [[0], [1, 2, 3], [], [2, 0]]
    together = eps_of(rows, settings)
    networks = tiny_networks()
    keys_values = reference_keys_values(networks, pixels(7, 4), generators(4), settings)
    x_t = noisy_latents(networks, pixels(8, len(rows)), generators(len(rows), 50), settings)
    for b, row in enumerate(rows):
        alone = shared_noise(networks, x_t[b : b + 1], References(keys_values, [row]), settings)
        assert difference(alone, together[b : b + 1]) < 1e-5


def test_3_the_order_of_references_does_not_matter() -> None:
    assert difference(eps_of([[0, 1, 2, 3]]), eps_of([[2, 0, 3, 1]])) < 1e-5


def test_3_but_which_references_they_are_does() -> None:
    assert difference(eps_of([[0, 1]]), eps_of([[2, 3]])) > 1e-4


def test_4_cached_keys_and_values_equal_recomputed_ones() -> None:
    requests = [tiny_request(1, 2), tiny_request(2, 2), tiny_request(3, 3)]
    caching, forgetful = tiny_method(), InstantRestore(tiny_networks(latent=True), SETTINGS, cache_bytes=0)
    for _ in range(2):
        assert difference(restored(caching, requests), restored(forgetful, requests)) < 1e-6
    assert caching.cache.hits == 3
    assert forgetful.cache.hits == 0


@pytest.mark.parametrize("freeu", [False, True])
def test_5_with_own_keys_and_no_reference_it_is_the_plain_unet(freeu: bool) -> None:
    networks, settings = tiny_networks(), replace(SETTINGS, own_kv=True, freeu=freeu)
    x_t = noisy_latents(networks, pixels(8, 2), generators(2), settings)
    shared = shared_noise(networks, x_t, References([], [[], []]), settings)
    with attached(networks.unet, {}, freeu=freeu):
        assert difference(shared, predict_noise(networks.unet, x_t, settings.timestep, networks.caption)) < 1e-6


def test_6_the_landmark_target_of_x_3_y_11_is_token_179_of_256() -> None:
    at = torch.tensor([[3.5, 11.5]]) / 16 * 2 - 1
    assert landmark_target(at, 16).argmax().item() == 11 * 16 + 3 == 179


def test_7_after_adain_a_reference_has_the_own_values_mean_and_deviation() -> None:
    references = LayerKeysValues.of(torch.randn(3, 40, 8), torch.randn(3, 40, 8) * 5 + 2)
    own = torch.randn(3, 40, 8) * 0.5 - 1
    normalised = adain(references, own)
    assert_close(normalised.mean(1), own.mean(1), atol=1e-4, rtol=0)
    assert_close(normalised.std(1), own.std(1), atol=1e-4, rtol=0)


# --- the formulas ---


def test_the_clean_latents_undo_the_mixing_of_noise() -> None:
    networks, z = tiny_networks(), torch.randn(2, 48, 8, 8)
    x_t = mix_noise(networks, z, SETTINGS.timestep, 1.0, generators(2))
    noise = torch.stack([torch.randn(48, 8, 8, generator=g) for g in generators(2)])
    assert_close(clean_latents(networks, x_t, noise, SETTINGS), z, atol=1e-5, rtol=0)
    assert difference(mix_noise(networks, z, 249, 0.0, ()), mix_noise(networks, z, 249, 1.0, generators(2))) > 0.1


def test_keys_are_the_raw_projections_and_the_probe_sees_what_attends() -> None:
    networks = tiny_networks()
    references = References(reference_keys_values(networks, pixels(7, 4), generators(4), SETTINGS), [[0], [1, 2], []])
    x_t = noisy_latents(networks, pixels(8, 3), generators(3), SETTINGS)
    seen: dict[int, tuple[Tensor, list[int]]] = {}

    def probe(layer: int, q: Tensor, k: Tensor, kv_lens: list[int]) -> None:
        assert attention_probabilities(q[:1], k[:, : kv_lens[0]]).sum(-1).allclose(torch.ones(()))
        seen[layer] = (k, kv_lens)

    shared_noise(networks, x_t, references, SETTINGS, probe=probe)
    assert list(seen) == list(range(len(shared_layers(networks.unet)))) == [0, 1, 2, 3]
    for layer, (k, kv_lens) in seen.items():
        N = references.layers[layer].k.shape[1]
        assert kv_lens == [N, 2 * N, N]
        assert torch.equal(k[0, : 3 * N].flatten(1), references.layers[layer].k[:3].flatten(0, 1))


def test_the_reference_pass_keeps_what_a_full_pass_computes() -> None:
    networks = tiny_networks()
    x_1 = torch.randn(2, 48, 8, 8)
    full: list[Tensor] = []
    hooks = [
        layer.to_v.register_forward_hook(lambda _m, _i, out: full.append(out))  # pyright: ignore[reportOptionalMemberAccess]
        for layer in shared_layers(networks.reference_unet).values()
    ]
    with attached(networks.reference_unet, {}, freeu=True):
        predict_noise(networks.reference_unet, x_1, 1, networks.caption)
    for hook in hooks:
        hook.remove()
    captured = capture_keys_values(networks, x_1, SETTINGS)
    assert len(captured) == len(full)
    for layer, v in zip(captured, full, strict=True):
        assert_close(layer.v, v, atol=1e-6, rtol=0)


def test_the_loss_reaches_both_networks() -> None:
    networks = tiny_networks()
    for unet in (networks.unet, networks.reference_unet):
        unet.requires_grad_(True)
    keys_values = reference_keys_values(networks, pixels(7, 2), generators(2), SETTINGS)
    x_t = noisy_latents(networks, pixels(8, 2), generators(2), SETTINGS)
    restore_latents(networks, x_t, References(keys_values, [[0], [1]]), SETTINGS).square().mean().backward()
    for unet in (networks.unet, networks.reference_unet):
        layer = next(iter(shared_layers(unet).values()))
        assert layer.to_v is not None
        assert layer.to_q.weight.grad is not None
    gradient = next(iter(shared_layers(networks.reference_unet).values())).to_k.weight.grad  # pyright: ignore[reportOptionalMemberAccess]
    assert gradient is not None
    assert gradient.abs().max() > 0


# --- settings ---


@pytest.mark.parametrize(
    "change", [{"timestep": 499}, {"adain": False}, {"own_kv": True}, {"reference_padding": "zeroed"}, {"freeu": False}, {"noise": 0.0}]
)
def test_every_setting_has_an_effect(change: dict[str, Any]) -> None:
    assert difference(eps_of([[0, 1]], replace(SETTINGS, **change)), eps_of([[0, 1]])) > 1e-4


def test_only_the_first_references_up_to_the_maximum_are_used() -> None:
    method = InstantRestore(tiny_networks(latent=True), replace(SETTINGS, max_references=2))
    many, two = tiny_request(1, 4), tiny_request(1, 2)
    results = method([many, two])
    assert [result.n_references for result in results] == [2, 2]
    assert difference(results[0].restored, results[1].restored) < 1e-6


def test_settings_that_do_not_exist_are_named() -> None:
    with pytest.raises(ValueError, match=r"no compat 'zero'.*zeroed"):
        SETTINGS.with_compat(["zero"])
    with pytest.raises(ValueError, match="no setting 'timesteps'"):
        SETTINGS.with_options({"timesteps": 3})
    with pytest.raises(ValueError, match="choose masked or zeroed"):
        Settings(reference_padding="none")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="timestep 1000"):
        Settings(timestep=1000)


# --- the base is given back ---


def state_of(unet: nn.Module) -> list[Any]:
    return [[layer.processor for layer in shared_layers(unet).values()], [sorted(block.__dict__) for block in unet.up_blocks]]  # pyright: ignore


def test_nothing_stays_attached_after_a_call() -> None:
    method = tiny_method()
    unets = (method.networks.unet, method.networks.reference_unet)
    before = [state_of(unet) for unet in unets]
    method([tiny_request(1, 2)])
    assert [state_of(unet) for unet in unets] == before


def test_nothing_stays_attached_after_an_exception_in_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    method = tiny_method()
    unets = (method.networks.reference_unet, method.networks.unet)
    before = [state_of(unet) for unet in unets]
    expected = restored(tiny_method(), [tiny_request(1, 2)])

    def out_of_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    for unet in unets:
        with monkeypatch.context() as patch:
            patch.setattr(list(shared_layers(unet).values())[1].to_q, "forward", out_of_memory)
            with pytest.raises(torch.OutOfMemoryError):
                method([tiny_request(1, 2)])
        assert [state_of(unet) for unet in unets] == before
    assert difference(restored(method, [tiny_request(1, 2)]), expected) < 1e-6


def test_freeu_that_the_base_had_comes_back() -> None:
    networks = tiny_networks()
    networks.unet.enable_freeu(s1=0.5, s2=0.6, b1=1.1, b2=1.2)
    with attached(networks.unet, {}, freeu=True):
        assert networks.unet.up_blocks[0].b1 == 1.4
    assert networks.unet.up_blocks[0].b1 == 1.1


# --- references once ---


def reference_images_computed(method: InstantRestore) -> list[int]:
    """Sizes of the reference U-Net's batches from now on."""
    batches: list[int] = []
    method.networks.reference_unet.conv_in.register_forward_hook(lambda _m, _i, out: batches.append(out.shape[0]))
    return batches


def test_a_persons_references_are_computed_once_for_all_photographs_and_calls() -> None:
    method = tiny_method()
    batches = reference_images_computed(method)
    method([tiny_request(seed, 3, person=1) for seed in range(3)])
    method([tiny_request(seed, 3, person=1) for seed in range(3, 5)])
    assert batches == [3]
    method([tiny_request(9, 3, person=1), tiny_request(9, 2, person=2)])
    assert batches == [3, 2]


def test_missing_references_are_computed_in_passes_of_a_bounded_size() -> None:
    method = InstantRestore(tiny_networks(latent=True), SETTINGS, references_a_pass=3)
    batches = reference_images_computed(method)
    requests = [tiny_request(person, 4, person) for person in range(2)]
    together = restored(method, requests)
    assert batches == [3, 3, 2]
    assert difference(together, restored(tiny_method(), requests)) < 1e-5


def test_the_cache_keeps_its_bound_and_results_do_not_depend_on_it() -> None:
    probe = tiny_method()
    probe([tiny_request(0, 1)])
    one = probe.cache.bytes
    method = InstantRestore(tiny_networks(latent=True), SETTINGS, cache_bytes=2 * one)
    requests = [tiny_request(person, 2, person) for person in range(3)]
    first, second = restored(method, requests), restored(method, requests)
    assert method.cache.bytes <= 2 * one
    assert len(method.cache) == 2
    assert difference(first, second) < 1e-5


# --- a row is its own ---


def test_a_rows_noise_comes_from_its_seed() -> None:
    method = tiny_method()
    a, b = restored(method, [tiny_request(1, 1), replace(tiny_request(1, 1), seed=2)])
    assert difference(a, b) > 1e-3


def test_a_request_of_a_wrong_shape_is_refused_by_name() -> None:
    method = tiny_method()
    with pytest.raises(ValueError, match=rf"references\[1\] has shape \(3, 4, 4\); this model takes \(3, {SIDE}, {SIDE}\)"):
        method([replace(tiny_request(1, 2), references=[pixels(0), torch.zeros(3, 4, 4)])])
    with pytest.raises(ValueError, match="2 references need as many reference_keys, not 1"):
        method([replace(tiny_request(1, 2), reference_keys=["a"])])


def test_a_unet_without_decoder_attention_is_refused() -> None:
    with pytest.raises(ValueError, match="CrossAttnUpBlock2D"):
        shared_layers(nn.Linear(1, 1))
