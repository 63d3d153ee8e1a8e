"""The job file: what may stand in it, how it is read and overridden, and what it means."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from orchestration.tracking import TrackingSettings
from workers import storage

_TEMPLATES = ("name", "manifest", "output", "reuse", "where", "tracking")  # keys in which {date} and {schedule} are filled in


class JobFileError(ValueError):
    """A job file or an override that cannot be run; says which key and what to write instead."""


class Settings(BaseModel):
    """Base of everything that stands in a job file: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSpec(Settings):
    """A full-size model: the method, its base in diffusers layout, the authors' checkpoint. Local paths or s3:// URIs."""

    method: str
    base: str
    checkpoint: str | None = None
    vae: str | None = None
    vital_layers: str | None = None  # stable_flow: what was measured for the base, where it does not lie in its folder


class Resources(Settings):
    """What a job may use. Nothing here changes a result, and nothing here is part of the fingerprint."""

    replicas: int | Literal["auto"] = "auto"  # copies of the model
    cpus_per_replica: float | None = Field(default=None, gt=0)  # None: the machine's cores shared between the replicas
    gpus_per_replica: float | None = Field(default=None, ge=0)  # None: 1 where the cluster has GPUs
    block_rows: int | Literal["auto"] = "auto"  # rows committed together
    micro_batch: int | None = Field(default=None, ge=1)  # rows in one call of the model; None: the kind's own
    row_timeout_s: float | None = Field(default=None, gt=0)  # kills a replica that needs longer for a row; None: no limit
    stall_timeout_s: float = Field(default=1800, gt=0)  # no row finished for so long: the job stops, resumable
    lease_ttl_s: float = Field(default=60, ge=1)  # a driver that is silent for so long may be replaced
    ray_address: str | None = None  # None: RAY_ADDRESS, else a cluster of this machine's own
    reference_cache_bytes: int = Field(default=2**30, ge=0)  # a replica's memory for references' keys and values
    allowed_roots: tuple[str, ...] = ()  # prefixes that manifests may name; empty: local paths and s3://
    max_file_bytes: int = Field(default=256 * 2**20, gt=0)
    max_pixels: int = Field(default=100_000_000, gt=0)
    price_per_hour: float | None = Field(default=None, ge=0)  # of one replica, for the cost on the review page


class JobSpec(Settings):
    """One job: a kind of pipeline over a manifest. `calotype init KIND` writes a commented file of this shape."""

    kind: str
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    manifest: str
    output: str
    model: str | ModelSpec
    mode: str | None = None
    seed: int = 0
    params: dict[str, Any] = {}
    where: dict[str, Any] = {}  # column: value or list of values
    limit: int | None = Field(default=None, ge=1)
    sample: float | None = Field(default=None, gt=0, le=1)  # share of the rows, drawn by a hash of row_id
    reuse: str | None = None  # a job folder, or last: leave out rows that are ok there
    schedule: str | None = None  # that started it; `calotype schedule` fills it in
    media: Literal["files", "columns"] = "files"
    on_bad_source: Literal["fail", "skip"] = "fail"
    accept_unlicensed_weights: bool = False
    accept_noncommercial: bool = False
    engine: Literal["ray", "inline"] = "ray"
    resources: Resources = Resources()
    tracking: TrackingSettings = TrackingSettings()

    @field_validator("manifest", "output")
    @classmethod
    def _absolute(cls, uri: str) -> str:
        return str(storage.local_path(uri)) if storage.scheme(uri) == "file" else uri.rstrip("/")

    @field_validator("reuse")
    @classmethod
    def _absolute_unless_last(cls, value: str | None) -> str | None:
        return value if value in (None, "last") else cls._absolute(value)


def load(path: str | Path, overrides: Sequence[str] = (), **more: Any) -> JobSpec:
    """Read a job file. `overrides` are `dotted.key=value` (values in YAML); `more` are keys given as options.

    Paths in the file are relative to the working directory. `{date}` and `{schedule}` are filled in, see `parse`.
    Raises JobFileError with the key, the reason, and the nearest known name of an unknown key.
    """
    try:
        content = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise JobFileError(f"{path} cannot be read: {error.strerror or error}. `calotype init restore -o {path}` writes one.") from error
    except yaml.YAMLError as error:
        raise JobFileError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise JobFileError(f"{path} holds no job. `calotype init restore -o {path}` writes one.")
    for item in overrides:
        key, found, value = item.partition("=")
        if not found or not key:
            raise JobFileError(f"--set {item}: write key=value, such as --set params.max_references=2")
        try:
            put(content, key.split("."), yaml.safe_load(value))
        except yaml.YAMLError as error:
            raise JobFileError(f"--set {item}: the value is not YAML: {error}") from error
    for key, value in more.items():
        if value is not None:
            put(content, key.split("."), value)
    return parse(content, str(path))


def put(content: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    """Set a nested key, making the mappings on the way."""
    for key in keys[:-1]:
        inner = content.get(key)
        content[key] = content = dict(inner) if isinstance(inner, Mapping) else {}
    content[keys[-1]] = value


def parse(content: Mapping[str, Any], where: str = "the job") -> JobSpec:
    """A job from a mapping. Raises JobFileError.

    In `name`, `manifest`, `output`, `reuse`, `where` and `tracking`, `{date}` stands for the day (UTC, 2026-11-24) on which its schedule fired, or
    today, and `{schedule}` for the schedule's name.
    """
    content = {k: _filled(v, k, content) if k in _TEMPLATES else v for k, v in content.items()}
    try:
        return JobSpec.model_validate(content)
    except ValidationError as error:
        raise JobFileError(explain(error, JobSpec, where)) from error


def _filled(value: Any, key: str, job: Mapping[str, Any]) -> Any:
    if isinstance(value, Mapping):
        return {inner: _filled(v, f"{key}.{inner}", job) for inner, v in value.items()}
    if isinstance(value, list):
        return [_filled(v, key, job) for v in value]
    if not isinstance(value, str):
        return value
    schedule = job.get("schedule")
    if "{schedule}" in value and schedule is None:
        raise JobFileError(f"{key}: `{{schedule}}` is known only where a schedule runs the job; pass --schedule NAME to run it by hand")
    return value.replace("{date}", _day(job)).replace("{schedule}", str(schedule))


def _day(job: Mapping[str, Any]) -> str:
    """The day of the fire time in a firing's name, so that it stays the same whenever the firing is resumed; else today."""
    fired = re.fullmatch(rf"{re.escape(str(job.get('schedule')))}-(\d{{4}})(\d\d)(\d\d)T\d{{6}}Z", str(job.get("name")))
    return "-".join(fired.groups()) if fired else datetime.now(UTC).strftime("%Y-%m-%d")


def explain(error: ValidationError, model: type[BaseModel], where: str) -> str:
    """A pydantic error as lines for a person: the key, what is wrong, and for an unknown key the nearest known one."""
    lines = []
    for problem in error.errors():
        location = [str(part) for part in problem["loc"] if str(part) not in ("ModelSpec", "str")]
        key = ".".join(location)
        if problem["type"] == "extra_forbidden":
            names = _known(model, location[:-1])
            near = difflib.get_close_matches(location[-1], names, n=1, cutoff=0.5)
            hint = f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(sorted(names))}"
            lines.append(f"{key}: unknown key; {hint}")
        elif problem["type"] == "missing":
            lines.append(f"{key}: required, and missing")
        else:
            lines.append(f"{key}: {re.sub('^Value error, ', '', problem['msg'])} (got {problem['input']!r})")
    return f"{where}: " + "; ".join(dict.fromkeys(lines))


def _known(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    for part in path:
        field = model.model_fields.get(part)
        annotations = [] if field is None else [field.annotation, *getattr(field.annotation, "__args__", ())]
        inner = [a for a in annotations if isinstance(a, type) and issubclass(a, BaseModel)]
        if not inner:
            return []
        model = inner[0]
    return list(model.model_fields)
