"""`calotype prove` and `calotype train`: methods and recipes by name, from their plain registries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from orchestration.job import JobFileError


def snake(name: str) -> str:
    """instant-restore and instant_restore name the same thing."""
    return name.replace("-", "_")


def prove_golden(method: str, file: Path) -> Sequence[Any]:
    """Every compared tensor with its largest difference. Raises JobFileError for an unknown method or a file that is none of it."""
    from models import proofs

    try:
        return proofs.golden(snake(method), file)
    except (ValueError, FileNotFoundError, ImportError) as error:
        raise JobFileError(str(error)) from error


def prove_claim(method: str, output: Path, data: Path | None, say: Callable[[str], None]) -> bool:
    """Run the lab proof of a method; True if every gate holds."""
    from models import proofs

    try:
        return bool(proofs.claim(snake(method), output, data, say))
    except (ValueError, FileNotFoundError, ImportError) as error:
        raise JobFileError(str(error)) from error


def train_recipe(recipe: str, output: Path, data: Path | None, sets: Sequence[str], say: Callable[[str], None]) -> None:
    """Train by a recipe. `sets` are `key=value` of its Config."""
    from models.recipes import RECIPES

    name = snake(recipe)
    if name not in RECIPES:
        raise JobFileError(f"{recipe} is no recipe; recipes are {', '.join(sorted(RECIPES))}")
    module = import_module(RECIPES[name])
    known = {f.name for f in fields(module.Config)}
    values: dict[str, Any] = {"data": str(data)} if data is not None and "data" in known else {}
    for item in sets:
        key, found, value = item.partition("=")
        if not found or key not in known:
            raise JobFileError(f"--set {item}: write key=value; {recipe} knows {', '.join(sorted(known))}")
        values[key] = yaml.safe_load(value)
    try:
        config = TypeAdapter(module.Config).validate_python(values)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise JobFileError(f"{recipe}: {wrong}; --data FOLDER names what is trained on, --set key=value all else") from error
    say(f"training {recipe} into {output}; the same command goes on where it stops")
    module.train(config, output)
