"""Stable Flow (arXiv 2411.14430, CVPR 2025): a picture edited by a new prompt, the rest kept by its source's keys and values.

Every edit is denoised beside a reference row that makes the source again. In the vital layers of a FLUX transformer, those without which its
pictures change most, the edit's image tokens are attended with the reference's keys and values (models/methods/flow_layers.py). Nothing is
trained. A generated source starts from the noise of its seed; a real picture is inverted first: nudged away from the mean (z * 1.15), then led
back along the schedule, and its reference row is set on that path again after every step.

Requests that show the same source share its reference row, sources of one size share the passes. Letters: S sources, B rows of a pass, N image
tokens of D channels, 3 x H x W pixels in [-1, 1].
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.attention import resolve_backend
from models.bases import FlowBase
from models.catalog import is_lab
from models.methods.flow_layers import check_layers, layer_count
from models.methods.flow_rows import Prompts, Row, TextTooLong, longest_text, token_count, velocity_field
from models.methods.flow_schedule import denoise, invert, realigned, shift_of, sigmas
from models.methods.vital_layers import find_vital_layers, published_name
from models.metrics import psnr
from models.sampling import noise, pack, unpack

REAL_GUIDANCE_OF_SOURCE = 1.0  # of inversion and of a real source's reference row
COMPAT = {"authors_index": {"realignment": "authors_index"}}
"""Compat name -> settings that it stands for (spec section 5)."""


class NotInvertible(ArithmeticError):
    """A real picture's path back to noise left the finite numbers."""


class NonCommercialBase(ValueError):
    """A base may not be used commercially, and nobody has accepted that."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides results. None: by the kind of source, generated or real."""

    vital_layers: tuple[int, ...]
    num_inference_steps: int | None = None  # 15 generated, 50 real
    inversion_steps: int | None = None  # of a real source, there and back; None: num_inference_steps
    guidance_scale: float | None = None  # of edits, and of a generated source: 3.5; of edits of a real one: 3
    true_cfg: bool = False  # guidance by an unconditional row where the transformer has no input for it; else it has none
    nudge: float = 1.15  # factor of a real picture's latents
    undo_nudge: bool = False  # divide by it again before decoding
    injection_steps: float = 1.0  # share of the steps, from the first, that inject
    realignment: str = "aligned"  # or authors_index
    text_padding: str = "max_length"  # or packed: padding is not attended
    max_edits_per_pass: int = 8
    return_reference: bool = False
    measure_inversion: bool = True  # one more row a real source: denoised again without being realigned

    def __post_init__(self) -> None:
        choices = {"realignment": ("aligned", "authors_index"), "text_padding": ("max_length", "packed")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose {' or '.join(allowed)}.")
        if not 0 <= self.injection_steps <= 1:
            raise ValueError(f"injection_steps is {self.injection_steps}; it is a share of the steps, from 0 to 1.")
        if self.max_edits_per_pass < 1 or min(self.steps(real=True), self.steps(real=False)) < 1 or self.nudge <= 0:
            raise ValueError("max_edits_per_pass and steps must be at least 1, nudge above 0.")

    def with_compat(self, names: Sequence[str]) -> Settings:
        """The authors' behaviour where these names of COMPAT ask for it. Raises ValueError for an unknown one."""
        unknown = [name for name in names if name not in COMPAT]
        if unknown:
            raise ValueError(f"There is no compat {unknown[0]!r}; there are {', '.join(COMPAT)}.")
        return replace(self, **{key: value for name in names for key, value in COMPAT[name].items()})

    def steps(self, *, real: bool) -> int:
        """Steps of a generated source's edits, or of a real one's inversion and edits."""
        if real:
            return self.inversion_steps or self.num_inference_steps or 50
        return self.num_inference_steps or 15

    def guidance(self, *, real: bool) -> float:
        """Guidance of an edit that names none."""
        return self.guidance_scale if self.guidance_scale is not None else 3.0 if real else 3.5


@dataclass(frozen=True, kw_only=True)
class Request:
    """One edit of one source. Sizes in pixels; None: the picture's own, or the base's for a generated source."""

    source_prompt: str
    edit_prompt: str
    image: Tensor | None = None  # (3,H,W) in [-1, 1]; None: the source is generated
    image_key: str = ""  # a digest of the picture's content, needed with it
    source_seed: int = 0  # noise of a generated source and of all its edits
    height: int | None = None
    width: int | None = None
    guidance_scale: float | None = None  # of this edit; the settings' where None


@dataclass(frozen=True)
class Result:
    """An edit, fp32 on the CPU. `inversion_psnr`: dB between a real source's decoded latents and what its noise leads back to."""

    edited: Tensor  # (3,H,W) in [-1, 1]
    source_key: str
    reference: Tensor | None  # (3,H,W), where settings ask for it
    inversion_psnr: float | None


@dataclass(frozen=True)
class Source:
    """What edits share. Two requests with equal keys have equal sources."""

    prompt: str
    height: int
    width: int
    seed: int
    image: Tensor | None
    image_key: str

    @property
    def key(self) -> str:
        """sha256 of the prompt, the size, and the picture's digest or the seed."""
        origin = f"image {self.image_key}" if self.image is not None else f"seed {self.seed}"
        return hashlib.sha256(f"{self.prompt}\0{self.height}x{self.width}\0{origin}".encode()).hexdigest()


@dataclass
class Group:
    """Sources of one size, all generated or all real, with the numbers of the requests that edit each."""

    sources: list[Source]
    edits: list[list[int]]

    def passes(self, max_edits: int) -> Iterator[list[tuple[int, list[int]]]]:
        """(source, its edits) of each pass: at most `max_edits` edits together; a source is divided only where it has more."""
        room, chosen = max_edits, []
        for source, edits in enumerate(self.edits):
            while edits:
                if room == 0 or (room < len(edits) <= max_edits):
                    yield chosen
                    room, chosen = max_edits, []
                chosen.append((source, edits[:room]))
                edits, room = edits[room:], room - len(edits[:room])
        if chosen:
            yield chosen


class StableFlow:
    """Edits pictures by prompts on a FLUX transformer; a source is computed once for all its edits in a pass, and inverted once a call.

    A result depends on its request and the settings only. Where a source has more edits than a pass takes, its reference row is computed again
    in each. Arithmetic of the networks is in their dtype, latents between the steps are fp32.
    """

    def __init__(self, base: FlowBase, settings: Settings, *, backend: str = "auto") -> None:
        self.base, self.settings, self.backend = base, settings, backend
        check_layers(settings.vital_layers, layer_count(base.transformer))
        width = int(base.transformer.config["attention_head_dim"])
        packed = settings.text_padding == "packed"
        self.attention_backend = resolve_backend(
            base.device, base.dtype, packed=packed, channels=(width, width), backend=backend
        )  # for the log

    @classmethod
    def load(
        cls,
        sources: Mapping[str, str | Path],
        *,
        settings: Mapping[str, Any] | None = None,
        accept_noncommercial: bool = False,
        device: str | None = None,
        dtype: torch.dtype | None = None,
        backend: str = "auto",
    ) -> StableFlow:
        """From local paths: `base` (or `folder`, of a lab model) in diffusers layout, maybe `vital_layers`, a file that was measured for it.

        `settings` that are not None replace the defaults; `compat` is a list of names. Without `vital_layers` among them the measured ones are
        taken. Without `device` CUDA if there is one, without `dtype` bf16 there, else fp32. Raises ValueError (VitalLayersUnknown,
        NonCommercialBase, ModelNotFound, CheckpointMismatch, UnknownLayer) saying what to do.
        """
        folder = Path(sources["base"] if "base" in sources else sources["folder"])
        asked = {name: value for name, value in (settings or {}).items() if value is not None}
        compat = asked.pop("compat", ())
        unknown = sorted(asked.keys() - {field.name for field in fields(Settings)})
        if unknown:
            raise ValueError(f"Stable Flow has no setting {unknown[0]!r}; it has {', '.join(field.name for field in fields(Settings))}.")
        if not accept_noncommercial and published_name(folder) is not None:
            raise NonCommercialBase(f"{folder} may be used for non-commercial purposes only; accept_noncommercial: true says that you do.")
        if "vital_layers" not in asked:
            file = Path(sources["vital_layers"]) if "vital_layers" in sources else None
            asked["vital_layers"] = find_vital_layers(folder, file)
        asked["vital_layers"] = tuple(asked["vital_layers"])
        asked.setdefault("true_cfg", is_lab(folder))  # lab bases are trained with dropped texts and without an input for guidance
        decided = Settings(**asked).with_compat(compat)
        return cls(FlowBase.load(folder, device=device, dtype=dtype), decided, backend=backend)

    @torch.inference_mode()
    def __call__(self, requests: Sequence[Request]) -> list[Result]:
        """One result a request, in order. Raises ValueError (TextTooLong) for a request that cannot be, NotInvertible for a picture that can't.

        The transformer is given back as it was, also after an exception.
        """
        if not requests:
            return []
        sources = [self._source(request) for request in requests]
        texts = [text for request in requests for text in (request.source_prompt, request.edit_prompt)]
        prompts, numbers = Prompts.encode(self.base, texts)
        results: dict[int, Result] = {}
        for group in _groups(sources):
            levels = self._inverted(group, prompts, numbers) if group.sources[0].image is not None else None
            kept: dict[int, tuple[Tensor | None, float | None]] = {}
            for chosen in group.passes(self.settings.max_edits_per_pass):
                results |= self._edited(requests, group, chosen, levels, prompts, numbers, kept)
        return [results[i] for i in range(len(requests))]

    def _inverted(self, group: Group, prompts: Prompts, numbers: Mapping[str, int]) -> list[list[Tensor]]:
        """For each source its latents (N,D) by level of the schedule, from its noise to its nudged picture."""
        schedule, cells = self._schedule(group)
        found: list[list[Tensor]] = []
        for start in range(0, len(group.sources), self.settings.max_edits_per_pass):
            chunk = group.sources[start : start + self.settings.max_edits_per_pass]
            images_S3HW = torch.stack([source.image for source in chunk if source.image is not None])
            x_SND = pack(self.base.encode(images_S3HW)).float() * self.settings.nudge
            rows = [Row(numbers[source.prompt], REAL_GUIDANCE_OF_SOURCE, i) for i, source in enumerate(chunk)]
            with velocity_field(self.base, prompts, rows, cells, packed=self._packed, backend=self.backend) as (velocity, _rows):
                levels = invert(velocity, x_SND, schedule)
            for i, source in enumerate(chunk):
                if not levels[0][i].isfinite().all():
                    raise NotInvertible(
                        f"The source {source.prompt!r} cannot be inverted: its latents are not finite; use a lower nudge or fp32."
                    )
                found.append([level[i] for level in levels])
        return found

    def _edited(
        self,
        requests: Sequence[Request],
        group: Group,
        chosen: Sequence[tuple[int, list[int]]],
        levels: list[list[Tensor]] | None,
        prompts: Prompts,
        numbers: Mapping[str, int],
        kept: dict[int, tuple[Tensor | None, float | None]],
    ) -> dict[int, Result]:
        """One pass. `kept`: what earlier passes found out about a source, its reference picture and its inversion's PSNR."""
        real, settings = levels is not None, self.settings
        rows: list[Row] = []
        starts: list[Tensor] = []
        at_reference: dict[int, int] = {}  # source -> row
        at_plain: dict[int, int] = {}
        at_edit: dict[int, int] = {}  # request -> row
        for s, edits in chosen:
            source, own = group.sources[s], len(rows)
            start = levels[s][0] if levels is not None else self._noise(source)
            of_source = numbers[source.prompt]
            at_reference[s] = own
            rows.append(Row(of_source, REAL_GUIDANCE_OF_SOURCE if real else settings.guidance(real=False), own))
            if real and settings.measure_inversion and s not in kept:
                at_plain[s] = len(rows)
                rows.append(Row(of_source, REAL_GUIDANCE_OF_SOURCE, len(rows)))
            for i in edits:
                at_edit[i] = len(rows)
                scale = requests[i].guidance_scale
                rows.append(Row(numbers[requests[i].edit_prompt], settings.guidance(real=real) if scale is None else scale, own))
            starts += [start] * (len(rows) - own)
        schedule, cells = self._schedule(group)
        paths = {row: levels[s] for s, row in at_reference.items()} if levels is not None else {}
        injected = round(settings.injection_steps * (len(schedule) - 1))
        field = velocity_field(
            self.base,
            prompts,
            rows,
            cells,
            layers=settings.vital_layers,
            true_cfg=settings.true_cfg,
            packed=self._packed,
            backend=self.backend,
        )
        with field as (velocity, shared):

            def after_step(i: int, x_BND: Tensor) -> Tensor:
                shared.injecting = i + 1 < injected
                for row, path in paths.items():
                    x_BND[row] = realigned(path, i, settings.realignment)
                return x_BND

            shared.injecting = injected > 0
            x_BND = denoise(velocity, torch.stack(starts), schedule, after_step)
        self._keep(kept, x_BND, cells, at_reference, at_plain, levels)
        edited_E3HW = self._pixels(x_BND[list(at_edit.values())], cells, real=real)
        source_of = {i: s for s, edits in chosen for i in edits}
        return {i: Result(edited_E3HW[e], group.sources[source_of[i]].key, *kept[source_of[i]]) for e, i in enumerate(at_edit)}

    def _keep(
        self,
        kept: dict[int, tuple[Tensor | None, float | None]],
        x_BND: Tensor,
        cells: tuple[int, int],
        at_reference: Mapping[int, int],
        at_plain: Mapping[int, int],
        levels: list[list[Tensor]] | None,
    ) -> None:
        """Decode what is asked about the sources that this pass shows first."""
        for s, row in at_reference.items():
            if s in kept:
                continue
            reference = self._pixels(x_BND[[row]], cells, real=levels is not None)[0] if self.settings.return_reference else None
            inversion = None
            if levels is not None and s in at_plain:
                pair = self._pixels(torch.stack([levels[s][-1], x_BND[at_plain[s]]]), cells, real=True)
                inversion = psnr(pair[1:], pair[:1]).item()
            kept[s] = (reference, inversion)

    def _schedule(self, group: Group) -> tuple[list[float], tuple[int, int]]:
        source = group.sources[0]
        cells = (source.height // self.base.factor, source.width // self.base.factor)
        mu = shift_of(self.base.scheduler.config, cells[0] * cells[1] // 4)
        return sigmas(self.settings.steps(real=source.image is not None), mu), cells

    def _noise(self, source: Source) -> Tensor:
        shape = (self.base.latent_channels, source.height // self.base.factor, source.width // self.base.factor)
        return pack(noise(shape, source.seed)[None])[0].to(self.base.device)

    def _pixels(self, x_BND: Tensor, cells: tuple[int, int], *, real: bool) -> Tensor:
        if real and self.settings.undo_nudge:
            x_BND = x_BND / self.settings.nudge
        return self.base.decode(unpack(x_BND.to(self.base.dtype), *cells)).float().cpu()

    @property
    def _packed(self) -> bool:
        return self.settings.text_padding == "packed"

    def _source(self, request: Request) -> Source:
        """What a request edits, checked. Raises ValueError."""
        for name, prompt in (("source_prompt", request.source_prompt), ("edit_prompt", request.edit_prompt)):
            if not prompt.strip():
                raise ValueError(f"{name} is empty; say what the picture shows.")
            count, longest = token_count(self.base, prompt), longest_text(self.base)
            if count > longest:
                raise TextTooLong(f"{name} has {count} tokens; this base reads {longest}.")
        own = tuple(request.image.shape[1:]) if request.image is not None else (self.base.image_size, self.base.image_size)
        size = (request.height or own[0], request.width or own[1])
        unit = 2 * self.base.factor
        if min(size) < unit or size[0] % unit or size[1] % unit:
            raise ValueError(f"The size {size[0]} x {size[1]} px is no multiple of {unit}.")
        if request.image is not None:
            if request.image.shape != (3, *size):
                raise ValueError(f"image has shape {tuple(request.image.shape)}, height and width say {size[0]} x {size[1]}.")
            if not request.image_key:
                raise ValueError("A real source needs image_key, a digest of its content.")
        return Source(request.source_prompt, *size, request.source_seed, request.image, request.image_key)


def _groups(sources: Sequence[Source]) -> list[Group]:
    """The different sources, those of one size and kind together, with the requests of each, in order of their first."""
    groups: dict[tuple[int, int, bool], dict[str, tuple[Source, list[int]]]] = {}
    for i, source in enumerate(sources):
        alike = groups.setdefault((source.height, source.width, source.image is not None), {})
        alike.setdefault(source.key, (source, []))[1].append(i)
    return [Group([source for source, _ in alike.values()], [edits for _, edits in alike.values()]) for alike in groups.values()]
