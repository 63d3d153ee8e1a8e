"""Restoring a person's damaged photographs by clean ones of the same person: the whole job, from a manifest's row to a picture with its score."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache, partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import pyarrow as pa
from pydantic import Field

from models.catalog import lab_path
from pipelines import pictures
from pipelines.job_file import job_file
from pipelines.model_source import resolve_model
from pipelines.pasted import paste_photographs
from pipelines.pipeline import Context, Kind, Model, Params, Pipeline, Score, Shown
from pipelines.rows import BadRow, row_seed
from workers.crops import align_face, crop_box, resize_square
from workers.media import Picture, Pixels, decode_image
from workers.replica import Replica
from workers.stage import MapRows
from workers.storage import Reader

if TYPE_CHECKING:  # torch is loaded by replicas, never by the driver
    from models.methods.instant_restore import InstantRestore, Request, Result

ROWS = pa.schema(
    [
        pa.field("row_id", pa.string(), nullable=False),
        ("image", pa.binary()),  # the damaged face, or a photograph with face_box; exactly one of the two
        ("image_uri", pa.string()),
        ("face_box", pa.list_(pa.float32())),  # x0, y0, x1, y1 in pixels of the upright picture; one row is one face
        ("reference_images", pa.list_(pa.binary())),  # 1-16 clean photographs; exactly one of the two
        ("reference_image_uris", pa.list_(pa.string())),
        ("person_id", pa.string()),  # brings a person's photographs together
        ("landmarks", pa.list_(pa.float32())),  # 5 points x, y: eyes, nose tip, corners of the mouth
        ("reference_landmarks", pa.list_(pa.list_(pa.float32()))),
        ("seed", pa.int64()),
    ]
)
DECODED = pa.schema(
    [
        ("pixels", pa.binary()),  # (S, S, 3) uint8, as the model sees it
        ("crop_matrix", pa.list_(pa.float64())),  # 2 x 3, photograph to crop
        ("reference_pixels", pa.list_(pa.binary())),
        ("reference_keys", pa.list_(pa.string())),  # digests of their content: keys and values are computed once
        ("kept_references", pa.list_(pa.int32())),
        ("icc_profile", pa.binary()),
        ("exif", pa.binary()),
    ]
)
RESTORED = pa.schema([("restored_pixels", pa.binary()), ("n_references", pa.int32())])


class RestoreParams(Params):
    """Job parameters; None: as the model was made (a lab model's card, a checkpoint's configuration, else the paper's)."""

    timestep: int | None = Field(None, ge=0, le=999)
    max_references: int | None = Field(None, ge=1, le=16)
    adain: bool | None = None
    own_kv: bool | None = None
    reference_padding: Literal["masked", "zeroed"] | None = None
    freeu: bool | None = None
    noise: float | None = Field(None, ge=0, le=1)
    image_size: int | None = Field(None, ge=32, le=1024)
    compat: tuple[Literal["zeroed"], ...] = ()
    crop: Literal["auto", "none", "box", "landmarks", "detector"] = "auto"
    paste_back: bool = False
    on_bad_reference: Literal["fail", "skip"] = "fail"
    on_no_reference: Literal["fail", "plain"] = "fail"
    identity: Literal["auto", "none", "faces", "lab"] = "auto"
    format: Literal["png", "jpeg", "webp", "tiff"] = "png"


METHOD_SETTINGS = ("timestep", "max_references", "adain", "own_kv", "reference_padding", "freeu", "noise", "image_size")


def restore(params: RestoreParams, context: Context) -> Pipeline:
    """One row is one damaged face with its references; what comes back is the restored face and how much it looks like the references."""
    scored = () if params.identity == "none" else (Score("identity_similarity", "Identity"),)
    return Pipeline(
        name="restore",
        rows=ROWS,
        one_of=[("image", "image_uri"), ("reference_images", "reference_image_uris")],
        sort_by=["person_id"],
        stages=[
            MapRows("decode", partial(decode, params, context), adds=DECODED, drops=("image", "reference_images", "reference_landmarks")),
            Replica(
                "restore",
                partial(load, params, context),
                request=partial(request, params, context.seed),
                columns=columns,
                adds=RESTORED,
                drops=("pixels",),
                micro_batch=context.micro_batch or 16,
                gpus=1,
            ),
            *_identity_stage(params),
            MapRows(
                "encode", partial(encode, params, context), adds=_encoded(context.media), drops=("restored_pixels", "reference_pixels")
            ),
        ],
        outputs=pa.schema(
            [
                *_encoded(context.media),
                ("n_references", pa.int32()),
                ("kept_references", pa.list_(pa.int32())),
                ("identity_similarity", pa.float32()),
                ("crop_matrix", pa.list_(pa.float64())),
            ]
        ),
        shown=Shown(before="image", after="restored", references="reference_images", scores=scored, group="person_id"),
        finish=partial(paste_photographs, params.format, context) if params.paste_back else None,
    )


def decode(params: RestoreParams, context: Context, row: Mapping[str, Any]) -> dict[str, Any]:
    """Read the photograph and its references, crop the face, count what can be used. Raises BadRow, ImageBroken, ImageTooLarge, OSError."""
    assert params.image_size is not None
    assert params.max_references is not None
    picture = decode_image(pictures.needed(row, "image", context.reader), max_pixels=context.max_pixels)
    crop, matrix = crop_face(picture, params, row.get("face_box"), row.get("landmarks"))
    references, keys, kept = [], [], []
    for index, (data, uri, landmarks) in enumerate(_references(row)):
        if len(kept) == params.max_references:
            break
        try:
            pixels, key = _cropped_reference(params, context.reader, context.max_pixels, data, uri, landmarks)
        except (ValueError, FileNotFoundError) as error:
            if params.on_bad_reference == "fail":
                raise BadRow(f"reference {index}: {error} (or set on_bad_reference: skip)") from error
            continue
        references.append(pixels)
        keys.append(key)
        kept.append(index)
    if not kept and params.on_no_reference == "fail":
        raise BadRow("no usable reference; give a clean photograph of this person, or set on_no_reference: plain to restore without")
    return {
        "pixels": crop.tobytes(),
        "crop_matrix": matrix.ravel().tolist(),
        "reference_pixels": references,
        "reference_keys": keys,
        "kept_references": kept,
        "icc_profile": picture.icc_profile,
        "exif": picture.exif,
    }


def crop_face(
    picture: Picture, params: RestoreParams, box: Sequence[float] | None, landmarks: Sequence[float] | None
) -> tuple[Pixels, Any]:
    """The face at the model's size and the 2 x 3 matrix from picture to crop, by landmarks, box, detector, or the whole picture.

    `auto` takes landmarks where the row has them, else its box, else the whole picture. Raises BadRow, BadCrop, or the detector's errors.
    """
    assert params.image_size is not None
    how = params.crop
    if how == "auto":
        how = "landmarks" if landmarks else "box" if box else "none"
    if how == "detector":
        landmarks = _only_face(picture.pixels)
    if how in ("landmarks", "detector"):
        if not landmarks:
            raise BadRow("crop is landmarks, but the row has none; give 5 points, or set crop: box, detector or none")
        return align_face(picture.pixels, landmarks, params.image_size)
    if how == "box":
        if not box:
            raise BadRow("crop is box, but the row has no face_box; give x0, y0, x1, y1, or set crop: landmarks, detector or none")
        return crop_box(picture.pixels, box, params.image_size)
    return resize_square(picture.pixels, params.image_size)


def load(params: RestoreParams, context: Context) -> InstantRestore:
    """The method with its networks; called in the replica's process."""
    from models.methods.instant_restore import InstantRestore

    settings = {name: getattr(params, name) for name in METHOD_SETTINGS}
    accepted = context.model.tier == "full"  # resolving the model has asked for it
    return InstantRestore.load(
        context.model.sources, settings=settings, cache_bytes=context.cache_bytes, accept_unlicensed_weights=accepted
    )


def request(params: RestoreParams, seed: int, row: Mapping[str, Any]) -> Request:
    """A row as the method wants it: pixels in [-1, 1], content keys, its own seed."""
    from models.methods.instant_restore import Request

    assert params.image_size is not None
    return Request(
        image=pictures.to_tensor(row["pixels"], params.image_size, params.image_size),
        references=[pictures.to_tensor(data, params.image_size, params.image_size) for data in row["reference_pixels"]],
        reference_keys=row["reference_keys"],
        seed=row_seed(row, seed),
    )


def columns(result: Result) -> dict[str, Any]:
    """The restored face as uint8 pixels."""
    return {"restored_pixels": pictures.from_tensor(result.restored), "n_references": result.n_references}


def encode(params: RestoreParams, context: Context, row: Mapping[str, Any]) -> dict[str, Any]:
    """The restored face as a picture file that says how it came about; written before the row is committed."""
    assert params.image_size is not None
    return {
        **pictures.keep(
            pictures.to_pixels(row["restored_pixels"], params.image_size, params.image_size),
            "restored",
            row["row_id"],
            context,
            format=params.format,
            source=row.get("image_uri"),
            icc_profile=row["icc_profile"],
            exif=row["exif"],
        ),
        "height": params.image_size,
        "width": params.image_size,
        "seed": row_seed(row, context.seed),
    }


def settle(params: RestoreParams, model: Model) -> RestoreParams:
    """The parameters with nothing left open. Raises ValueError where the model can't do what is asked."""
    decided = {k: v for k, v in model.settings.items() if k in METHOD_SETTINGS and getattr(params, k) is None}
    if "zeroed" in params.compat:
        decided["reference_padding"] = "zeroed"
    if params.identity == "auto":
        decided["identity"] = "faces" if find_spec("dlib") else "none"
    elif params.identity == "faces" and not find_spec("dlib"):
        raise ValueError("params.identity: faces needs the extra; pip install 'calotype[faces]'")
    elif params.identity == "lab":
        lab_path("identity")
    settled = params.model_copy(update=decided)
    size = model.settings.get("image_size")
    if model.tier == "lab" and settled.image_size != size:
        raise ValueError(f"params.image_size: {model.name} works at {size} pixels")
    return settled


def _identity_stage(params: RestoreParams) -> Sequence[MapRows]:
    if params.identity == "none":
        return ()
    adds = pa.schema([("identity_similarity", pa.float32())])
    return (MapRows("identity", partial(score_identity, params), adds=adds, threads=1),)


def score_identity(params: RestoreParams, row: Mapping[str, Any]) -> dict[str, Any]:
    """Mean cosine between the restored face and its references, by a face network that no method here was trained on; null without either."""
    assert params.image_size is not None
    embed = _embedder(params.identity)
    restored = embed(pictures.to_pixels(row["restored_pixels"], params.image_size, params.image_size))
    found = [
        _embed_reference(params.identity, params.image_size, key, data)
        for key, data in zip(row["reference_keys"], row["reference_pixels"], strict=True)
    ]
    cosines = [float(np.dot(restored, other)) for other in found if other is not None] if restored is not None else []
    return {"identity_similarity": float(np.mean(cosines)) if cosines else None}


@lru_cache(maxsize=256)
def _embed_reference(kind: str, side: int, key: str, data: bytes) -> Any:
    return _embedder(kind)(pictures.to_pixels(data, side, side))


@cache
def _embedder(kind: str) -> Any:
    """Pixels (S, S, 3) uint8 of an aligned face -> unit vector, or None where there is no face to be seen."""
    if kind == "faces":
        from workers.faces import FaceEmbedder

        return FaceEmbedder().embed_aligned
    from models.nets.identity import IdentityNet

    net = IdentityNet.load(lab_path("identity"))
    return lambda pixels: net.embed(pictures.to_tensor(pixels.tobytes(), *pixels.shape[:2])[None])[0].numpy()


def _encoded(media: str) -> pa.Schema:
    return pa.schema([*pictures.kept("restored", media), ("height", pa.int32()), ("width", pa.int32()), ("seed", pa.int64())])


def _references(row: Mapping[str, Any]) -> list[tuple[bytes | None, str | None, Sequence[float] | None]]:
    images, uris = row.get("reference_images"), row.get("reference_image_uris")
    if images and uris:
        raise BadRow("give either reference_images or reference_image_uris, not both")
    count = len(images or uris or [])
    if count > 16:
        raise BadRow(f"{count} references; 1 to 16 are allowed")
    landmarks = row.get("reference_landmarks") or [None] * count
    if len(landmarks) != count:
        raise BadRow(f"{len(landmarks)} reference_landmarks for {count} references; give one entry each, null where there is none")
    return list(zip(images or [None] * count, uris or [None] * count, landmarks, strict=True))


def _cropped_reference(
    params: RestoreParams, reader: Reader, max_pixels: int, data: bytes | None, uri: str | None, landmarks: Sequence[float] | None
) -> tuple[bytes, str]:
    points = tuple(landmarks) if landmarks else None
    if uri is not None:
        return _reference_at(
            cast(Any, params), reader, max_pixels, uri, points
        )  # frozen, so hashable; a person's photographs show the same files again and again
    if data is None:
        raise BadRow("it is null")
    return _crop_reference(params, max_pixels, data, points)


@lru_cache(maxsize=64)
def _reference_at(params: RestoreParams, reader: Reader, max_pixels: int, uri: str, points: tuple[float, ...] | None) -> tuple[bytes, str]:
    return _crop_reference(params, max_pixels, reader.read(uri), points)


def _crop_reference(params: RestoreParams, max_pixels: int, data: bytes, points: tuple[float, ...] | None) -> tuple[bytes, str]:
    how = params if params.crop == "detector" else params.model_copy(update={"crop": "auto"})
    crop, _ = crop_face(decode_image(data, max_pixels=max_pixels), how, None, points)
    pixels = crop.tobytes()
    return pixels, hashlib.sha256(pixels).hexdigest()


def _only_face(pixels: Pixels) -> Sequence[float]:
    faces = _finder().find(pixels)
    if len(faces) != 1:
        raise BadRow(f"crop is detector, and it found {len(faces)} faces; give face_box or landmarks for the one that is meant")
    return faces[0].landmarks5


@cache
def _finder() -> Any:
    from workers.faces import FaceFinder

    return FaceFinder()


TEMPLATE = job_file(
    "damaged photographs, restored by clean photographs of the same people.",
    """
  crop: auto                   # landmarks where a row has them, else its face_box, else the whole picture; or none, box, landmarks, detector
  paste_back: false            # true: also one picture per photograph with its restored faces in place
  on_bad_reference: fail       # or skip: use the references that can be read
  on_no_reference: fail        # or plain: restore without
  identity: auto               # who scores likeness: faces (extra), lab, none
  format: png                  # or jpeg, webp, tiff
  # max_references: 4          # a row's first ones are used
""",
    kind="restore",
    name="archive",
    manifest="calotype manifest restore PHOTOS --references REFS -o manifest.parquet",
    model="""
model: lab/instant-restore     # calotype models lists them; a full-size one:
# model: {method: instant_restore, base: /models/sd-turbo, vae: /models/sd-vae-ft-mse, checkpoint: /models/final_model_ckpt.pt}
# accept_unlicensed_weights: true   # the authors' weights state no licence
""",
    where="person_id: [anna, boris]",
    roots="/archive",
)

RESTORE = Kind(
    name="restore",
    params=RestoreParams,
    resolve=partial(resolve_model, "restore"),
    build=restore,
    settle=settle,
    template=TEMPLATE,
)
