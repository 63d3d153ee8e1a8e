"""Training programs: each module has a frozen dataclass `Config` and `train(cfg, out)`, resumable from `out`."""

RECIPES: dict[str, str] = {
    "instant_restore": "models.recipes.instant_restore",
    "identity": "models.recipes.identity",
    "autoencoder": "models.recipes.autoencoder",
    "towers": "models.recipes.towers",
    "reader": "models.recipes.reader",
    "unet": "models.recipes.unet",
    "mmdit": "models.recipes.mmdit",
    "vital_layers": "models.recipes.vital_layers",
    "translator": "models.recipes.translator",
    "identity_space": "models.recipes.identity_space",
    "weight_denoiser": "models.recipes.weight_denoiser",
    "weight_tuning": "models.recipes.weight_tuning",
}
"""Name -> module."""
