"""Weights in MLflow's registry: one registered model a family, a version a job, thousands of files behind it.

The files stay where the job wrote them. A version's source is the run's `weights/index.json`, which says where that is and how to find one
of them; its tag `calotype.folder` names the job folder, whose Parquet files say which concept or person each file belongs to.
"""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, Any

from orchestration.folder import JobFolder

if TYPE_CHECKING:
    from mlflow import MlflowClient

NEWEST = "newest"
"""The alias of the version that was registered last; `newest-MODE`, such as `newest-identity`, of the last one that a job of that mode made.
Any other one is the reviewer's to give, such as `production`."""

_URI = re.compile(r"models:/(?P<family>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))$")


class NotRegistered(ValueError):
    """The registry has no such version, or one that calotype did not make."""


def register(client: MlflowClient, run_id: str, family: str, folder: JobFolder, facts: dict[str, Any]) -> str:
    """Make the job of a run a version of `family`; returns its number. A job that is one already keeps it, with new `facts`.

    `facts` become tags and the content of weights/index.json: `kind`, `model`, which also make a new version's description, `files` and `failed`.
    """
    from mlflow.exceptions import MlflowException

    place = shlex.quote(folder.uri)
    index = {"folder": folder.uri, **facts, "find": f"calotype rows {place} --where COLUMN=VALUE", "check": f"calotype verify {place}"}
    client.log_dict(run_id, index, "weights/index.json")
    try:
        client.get_registered_model(family)
    except MlflowException:
        client.create_registered_model(family, description=f"Weights that calotype jobs made: {family}. A version is a job, not a file.")
    mine = [v for v in client.search_model_versions(f"name='{family}'") if v.run_id == run_id]
    said = f"{facts['kind']} with {facts['model']}, in {folder.uri}"  # once: a reviewer may write something else; what may change are tags
    made = mine[0] if mine else client.create_model_version(family, f"runs:/{run_id}/weights", run_id=run_id, description=said)
    for key, value in {"folder": folder.uri, **facts}.items():
        client.set_model_version_tag(family, str(made.version), f"calotype.{key}", str(value))
    if not mine:
        for alias in (NEWEST, f"{NEWEST}-{facts['kind'].rpartition('/')[2]}"):
            client.set_registered_model_alias(family, alias, str(made.version))
    return str(made.version)


def resolve(uri: str, tracking_uri: str | None) -> str:
    """The job folder behind models:/FAMILY@ALIAS or models:/FAMILY/VERSION. Raises NotRegistered where there is none.

    `tracking_uri` None: the environment's MLFLOW_TRACKING_URI.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    named = _URI.match(uri)
    if named is None:
        raise NotRegistered(f"{uri}: write models:/FAMILY@ALIAS, such as models:/translators@{NEWEST}, or models:/FAMILY/VERSION")
    client = mlflow.MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
    try:
        if named["alias"] is not None:
            version = client.get_model_version_by_alias(named["family"], named["alias"])
        else:
            version = client.get_model_version(named["family"], named["version"])
    except MlflowException as error:
        raise NotRegistered(f"{uri}: {error.message}; MLFLOW_TRACKING_URI says where the registry is") from error
    folder = version.tags.get("calotype.folder")
    if folder is None:
        raise NotRegistered(f"{uri} was not registered by calotype: its version has no tag calotype.folder")
    return folder
