from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from models.methods import stable_flow
from models.methods.flow_rows import Prompts, Row, TextTooLong, velocity_field
from models.methods.stable_flow import Group, NotInvertible, Request, Settings, StableFlow
from tests.models.methods.tiny_stable_flow import LAYERS, generated, real, tiny_method, tiny_requests
from tests.models.tiny_bases import tiny_flow_base

PROMPTS = ["a red star", "a blue star", "a green dog on the left"]


def velocity(layers: Sequence[int], prompts: Sequence[str] = PROMPTS, **options: Any) -> Tensor:
    """One velocity (B,16,16) of rows with the same noise, all injected by row 0."""
    base = tiny_flow_base(guidance_embeds=True, t5=options.pop("t5", False))
    encoded, numbers = Prompts.encode(base, prompts)
    rows = [Row(numbers[prompt], 1.0 if i == 0 else 3.0, 0) for i, prompt in enumerate(prompts)]
    x = torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(5)).expand(len(rows), -1, -1)
    with torch.inference_mode(), velocity_field(base, encoded, rows, (8, 8), layers=layers, backend="sdpa", **options) as (field, _rows):
        return field(x, 0.7)


def largest(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()


def test_the_reference_row_is_plain_sampling_bit_for_bit() -> None:
    injected, plain = velocity(LAYERS), velocity(())
    assert torch.equal(injected[0], plain[0])
    assert largest(injected[1], plain[1]) > 1e-4


def test_edits_in_one_batch_equal_edits_in_pairs_with_their_source() -> None:
    together = velocity(LAYERS)
    for i in (1, 2):
        assert_close(velocity(LAYERS, [PROMPTS[0], PROMPTS[i]])[1], together[i], atol=1e-5, rtol=0)


def test_without_vital_layers_every_edit_is_the_picture_of_its_prompt() -> None:
    base = tiny_flow_base(guidance_embeds=True)
    edit = tiny_method(base, vital_layers=(), guidance_scale=3.5)([generated("a blue star")])[0].edited
    source = tiny_method(base, vital_layers=(), return_reference=True)([generated("a dog", source="a blue star")])[0].reference
    assert source is not None
    assert_close(edit, source, atol=1e-5, rtol=0)


@pytest.mark.parametrize("guidance", ["distilled", "true_cfg", "none"])
def test_an_edit_that_says_what_its_source_says_is_its_source(guidance: str) -> None:
    base = tiny_flow_base(guidance_embeds=guidance == "distilled")
    method = tiny_method(base, vital_layers=(0, 1, 2), true_cfg=guidance == "true_cfg", return_reference=True)
    (same, other) = method([generated("a red star"), generated("a blue dog")])
    assert same.reference is not None
    assert_close(same.edited, same.reference, atol=1e-5, rtol=0)
    assert largest(other.edited, same.edited) > 1e-4


def test_packed_equals_padded_where_texts_are_as_long_as_the_tower_reads() -> None:
    long = ["a red star and " + "a dog " * 7, "a blue star and " + "a cat " * 7]
    assert len(long[0].split()) == len(long[1].split()) == 18  # and two ends: 20 tokens
    assert_close(velocity(LAYERS, long, packed=True), velocity(LAYERS, long), atol=1e-5, rtol=0)


@pytest.mark.parametrize("t5", [False, True])
def test_a_packed_row_does_not_depend_on_how_long_its_neighbours_texts_are(t5: bool) -> None:
    mixed = velocity(LAYERS, packed=True, t5=t5)
    assert_close(velocity(LAYERS, PROMPTS[:2], packed=True, t5=t5), mixed[:2], atol=1e-5, rtol=0)
    assert largest(mixed, velocity(LAYERS, t5=t5)) > 1e-5  # padding is looked at where it is not packed


@pytest.mark.parametrize("how", ["aligned", "authors_index"])
def test_a_real_reference_walks_its_own_path_of_inversion(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    levels: list[Tensor] = []
    plain_denoise, plain_invert = stable_flow.denoise, stable_flow.invert

    def watched(velocity: Any, x: Tensor, schedule: Any, after_step: Any) -> Tensor:
        def keep(i: int, y: Tensor) -> Tensor:
            y = after_step(i, y)
            seen.append(y[0].clone())
            return y

        return plain_denoise(velocity, x, schedule, keep)

    def kept(*args: Any) -> list[Tensor]:
        levels.extend(plain_invert(*args))
        return levels

    monkeypatch.setattr(stable_flow, "denoise", watched)
    monkeypatch.setattr(stable_flow, "invert", kept)
    tiny_method(realignment=how)([real("a blue star")])
    expected = [1, 2, 3, 4] if how == "aligned" else [3, 0, 1, 2]
    assert all(torch.equal(seen[i], levels[level][0]) for i, level in enumerate(expected))
    assert all(largest(a, b) > 1e-4 for a, b in pairwise(levels))


def test_the_aligned_reference_ends_as_the_nudged_source() -> None:
    base, request = tiny_flow_base(), real("a blue star")
    assert request.image is not None
    (result,) = tiny_method(base, return_reference=True, nudge=1.3)([request])
    with torch.inference_mode():
        nudged = base.decode(1.3 * base.encode(request.image[None]))
    assert result.reference is not None
    assert_close(result.reference, nudged[0], atol=1e-6, rtol=0)
    (undone,) = tiny_method(base, return_reference=True, nudge=1.3, undo_nudge=True)([request])
    assert undone.reference is not None
    with torch.inference_mode():
        assert_close(undone.reference, base.decode(base.encode(request.image[None]))[0], atol=1e-5, rtol=0)


def test_the_inversion_of_more_steps_leads_back_closer() -> None:
    coarse, fine = (tiny_method(inversion_steps=steps)([real("a blue star")])[0].inversion_psnr for steps in (2, 40))
    assert coarse is not None
    assert fine is not None
    assert fine > coarse + 10
    assert tiny_method(measure_inversion=False)([real("a blue star")])[0].inversion_psnr is None
    assert tiny_method()([generated("a blue star")])[0].inversion_psnr is None


def test_injection_in_no_step_is_no_injection_and_in_some_lies_between() -> None:
    base = tiny_flow_base(guidance_embeds=True)
    none, half, all_ = (tiny_method(base, injection_steps=share)([generated("a blue star")])[0].edited for share in (0.0, 0.5, 1.0))
    plain = tiny_method(base, vital_layers=())([generated("a blue star")])[0].edited
    assert_close(none, plain, atol=1e-6, rtol=0)
    assert min(largest(half, none), largest(half, all_)) > 1e-5


def count_calls(method: StableFlow, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every call of the transformer from now on."""
    rows: list[int] = []
    forward = method.base.transformer.forward

    def counting(**inputs: Any) -> Any:
        rows.append(len(inputs["hidden_states"]))
        return forward(**inputs)

    monkeypatch.setattr(method.base.transformer, "forward", counting)
    return rows


def test_a_source_is_computed_once_for_all_its_edits_and_sources_share_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    method = tiny_method(max_edits_per_pass=4)
    rows = count_calls(method, monkeypatch)
    method([generated(edit) for edit in ("a blue star", "a cat", "a dog")])
    assert rows == [4] * 4  # one reference, three edits, four steps
    rows.clear()
    method([generated("a blue star"), generated("a cat", source="a dog"), generated("a circle")])
    assert rows == [5] * 4  # two references
    rows.clear()
    method([real(edit) for edit in ("a blue star", "a cat")])
    assert rows == [1] * 4 + [4] * 4  # inverted once; a reference, a row that measures the inversion, two edits


def test_guidance_by_unconditional_rows_is_paid_only_where_it_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    for true_cfg, guidance, expected in ((True, 3.5, 4), (True, 1.0, 2), (False, 3.5, 2)):
        method = tiny_method(tiny_flow_base(), true_cfg=true_cfg, guidance_scale=guidance)
        rows = count_calls(method, monkeypatch)
        method([generated("a blue star")])
        assert rows == [expected] * 4


def test_edits_of_a_source_do_not_depend_on_how_many_fit_in_a_pass() -> None:
    requests = [generated(edit) for edit in ("a blue star", "a cat", "a dog", "a circle")] + [real("a cat"), real("a dog")]
    base = tiny_flow_base(guidance_embeds=True)
    narrow, wide = (tiny_method(base, max_edits_per_pass=n, return_reference=True)(requests) for n in (1, 8))
    for a, b in zip(narrow, wide, strict=True):
        assert_close(a.edited, b.edited, atol=1e-5, rtol=0)
        assert a.reference is not None
        assert b.reference is not None
        assert_close(a.reference, b.reference, atol=1e-5, rtol=0)
        assert a.source_key == b.source_key
        assert a.inversion_psnr == (None if b.inversion_psnr is None else pytest.approx(b.inversion_psnr, abs=0.01))


def test_passes_divide_a_source_only_where_it_has_more_edits_than_a_pass_takes() -> None:
    sources: list[Any] = [None] * 3
    group = Group(sources, [[0, 1], [2, 3], [4, 5, 6, 7, 8]])
    assert list(group.passes(3)) == [[(0, [0, 1])], [(1, [2, 3]), (2, [4])], [(2, [5, 6, 7])], [(2, [8])]]
    assert list(group.passes(4)) == [[(0, [0, 1]), (1, [2, 3])], [(2, [4, 5, 6, 7])], [(2, [8])]]


def test_sources_differ_by_prompt_size_seed_and_picture_and_by_nothing_else() -> None:
    method = tiny_method()
    same = [generated("a cat"), generated("a dog", guidance_scale=2.0), real("a cat"), real("a dog", source_seed=3)]
    keys = [result.source_key for result in method(same)]
    assert keys[0] == keys[1] != keys[2] == keys[3]
    others = [generated("a cat", source="a dog"), generated("a cat", seed=2), generated("a cat", height=8), real("a cat", seed=2)]
    assert len({*keys, *(result.source_key for result in method(others))}) == 6


def test_pictures_of_any_size_are_edited_at_their_size() -> None:
    tall = generated("a cat", height=24, width=16)
    results = tiny_method()([tall, real("a cat", side=24), generated("a cat")])
    assert [tuple(result.edited.shape) for result in results] == [(3, 24, 16), (3, 24, 24), (3, 16, 16)]
    assert_close(tiny_method()([tall])[0].edited, results[0].edited, atol=1e-5, rtol=0)


def test_the_transformer_comes_back_untouched_also_after_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    method = tiny_method()
    before = dict(method.base.transformer.attn_processors)
    method(tiny_requests())
    assert method.base.transformer.attn_processors == before
    monkeypatch.setattr(stable_flow, "denoise", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        method(tiny_requests())
    assert method.base.transformer.attn_processors == before


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (generated(" "), "edit_prompt is empty"),
        (generated("a cat", source=""), "source_prompt is empty"),
        (generated("a cat", height=10), "10 x 16 px is no multiple of 4"),
        (real("a cat", height=24), r"image has shape \(3, 16, 16\), height and width say 24 x 16"),
        (Request(source_prompt="a", edit_prompt="a", image=torch.zeros(3, 16, 16)), "needs image_key"),
    ],
)
def test_a_request_that_cannot_be_says_why(request_: Request, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_method()([generated("a cat"), request_])


def test_a_prompt_that_is_too_long_is_refused_with_its_length() -> None:
    with pytest.raises(TextTooLong, match="edit_prompt has 22 tokens; this base reads 20"):
        tiny_method()([generated("a " * 20)])


def test_a_picture_that_cannot_be_inverted_is_named() -> None:
    method = tiny_method()
    torch.nn.init.constant_(method.base.transformer.proj_out.bias, float("inf"))
    with pytest.raises(NotInvertible, match="'a red star' cannot be inverted"):
        method([real("a cat")])


def test_settings_that_make_no_sense_are_refused_and_compat_sets_what_it_names() -> None:
    with pytest.raises(ValueError, match="realignment is 'index'; choose aligned or authors_index"):
        Settings(vital_layers=(), realignment="index")
    with pytest.raises(ValueError, match="injection_steps is 3; it is a share"):
        Settings(vital_layers=(), injection_steps=3)
    assert Settings(vital_layers=()).with_compat(["authors_index"]).realignment == "authors_index"
    with pytest.raises(ValueError, match="There is no compat 'zeroed'; there are authors_index"):
        Settings(vital_layers=()).with_compat(["zeroed"])
    with pytest.raises(ValueError, match="There is no layer 3; this transformer has 0 to 2"):
        tiny_method(vital_layers=(0, 3))
    assert (Settings(vital_layers=()).steps(real=True), Settings(vital_layers=()).steps(real=False)) == (50, 15)
    assert Settings(vital_layers=(), num_inference_steps=4).steps(real=True) == 4
