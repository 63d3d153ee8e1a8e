from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from models.methods.stable_flow import NonCommercialBase, StableFlow
from models.methods.vital_layers import (
    FILE,
    VitalLayers,
    VitalLayersUnknown,
    find_vital_layers,
    most_vital,
    published_name,
    transformer_hash,
)
from tests.models.tiny_bases import save, tiny_flow_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tiny_flow_base(), tmp_path_factory.mktemp("bases") / "own")


@pytest.fixture
def measured(base: Path) -> VitalLayers:
    return VitalLayers("own", transformer_hash(base), "net", "digest", scores=(0.3, 0.1, 0.2), chosen=(0, 2))


def test_a_base_that_was_never_measured_is_refused_with_the_command_that_measures_it(base: Path) -> None:
    with pytest.raises(VitalLayersUnknown, match=f"calotype train vital-layers -o {base} --set base={base}"):
        StableFlow.load({"base": base}, device="cpu")


def test_layers_named_in_the_settings_need_no_measurement(base: Path) -> None:
    method = StableFlow.load({"base": base}, settings={"vital_layers": [1], "nudge": None, "compat": ["authors_index"]}, device="cpu")
    assert method.settings.vital_layers == (1,)
    assert (method.settings.nudge, method.settings.realignment, method.settings.true_cfg) == (1.15, "authors_index", False)
    with pytest.raises(ValueError, match="Stable Flow has no setting 'layers'; it has vital_layers, num_inference_steps"):
        StableFlow.load({"base": base}, settings={"layers": [1]}, device="cpu")


def test_a_measurement_beside_the_base_or_elsewhere_is_used(base: Path, measured: VitalLayers, tmp_path: Path) -> None:
    measured.write(tmp_path / "elsewhere.json")
    assert StableFlow.load({"base": base, "vital_layers": tmp_path / "elsewhere.json"}, device="cpu").settings.vital_layers == (0, 2)
    measured.write(base / FILE)
    try:
        assert transformer_hash(base) == measured.base_hash
        assert find_vital_layers(base) == (0, 2)
    finally:
        (base / FILE).unlink()


def test_a_measurement_of_another_transformer_or_a_damaged_one_is_refused(base: Path, measured: VitalLayers, tmp_path: Path) -> None:
    file = tmp_path / "vital.json"
    replace(measured, base_hash="0" * 64).write(file)
    with pytest.raises(VitalLayersUnknown, match="was measured on another transformer"):
        find_vital_layers(base, file)
    file.write_text('{"scores": [1]}')
    with pytest.raises(VitalLayersUnknown, match="is no measurement of vital layers"):
        find_vital_layers(base, file)
    file.write_text(json.dumps({"scores": []})[:-3])
    with pytest.raises(VitalLayersUnknown, match="measure again"):
        find_vital_layers(base, file)


def test_the_published_set_is_known_by_the_bases_name_and_its_licence_is_asked_for(tmp_path: Path) -> None:
    cached = tmp_path / "models--black-forest-labs--FLUX.1-dev" / "snapshots" / "0ef5fff"
    for folder in (tmp_path / "FLUX.1-dev", cached):
        folder.mkdir(parents=True)
        assert find_vital_layers(folder) == (0, 1, 17, 18, 25, 28, 53, 54, 56)
        with pytest.raises(NonCommercialBase, match="accept_noncommercial: true"):
            StableFlow.load({"base": folder})
    assert published_name(tmp_path / "FLUX.1-dev-distilled") is None
    assert published_name(tmp_path / "FLUX.1-schnell") is None


def test_the_most_vital_layers_are_those_with_the_highest_scores() -> None:
    assert most_vital([0.1, 0.5, 0.2, 0.4], 2) == (1, 3)
    assert most_vital([0.1, 0.5], 9) == (0, 1)
