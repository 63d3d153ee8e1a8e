"""Curves as a picture."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from models.lab.curve_plot import write_curves
from models.lab.races import Curve


def test_every_panel_is_drawn_and_another_curve_is_another_picture(tmp_path: Path) -> None:
    one, other = Curve((0, 5), (0.0, 1.0), (0.9, 0.2)), Curve((0, 5), (0.0, 2.0), (0.9, 0.5))
    write_curves(tmp_path / "a.png", {"noir": {"ours": one, "scratch": other}, "all": {"ours": one}}, error="L1", levels={"noir": 0.4})
    write_curves(tmp_path / "b.png", {"noir": {"ours": one, "scratch": one}, "all": {"ours": one}}, error="L1", levels={"noir": 0.4})
    a, b = (Image.open(tmp_path / name) for name in ("a.png", "b.png"))
    assert a.width > 2 * a.height
    assert a.tobytes() != b.tobytes()
