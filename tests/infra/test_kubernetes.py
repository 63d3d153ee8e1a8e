"""The manifests against Kubernetes' own schemas, and their shell lines against a `calotype` that only returns a code."""

from __future__ import annotations

import copy
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from orchestration.job import load
from pipelines import find_kind

FOLDER = Path(__file__).parents[2] / "infra" / "kubernetes"
VERSIONS = ("1.34", "1.37")

TEMPLATE = {"type": "object", "required": ["spec"]}  # a PodTemplateSpec: checked with Kubernetes' schema
WORDS = {"type": "object", "additionalProperties": {"type": "string"}}


def record(**fields: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": fields}


# Names and types of RayJob's own fields, from KubeRay's API reference for ray.io/v1.
COUNT, FLAG, TEXT = {"type": "integer", "minimum": 0}, {"type": "boolean"}, {"type": "string"}
HEAD = record(
    template=TEMPLATE,
    headService={"type": "object"},
    enableIngress=FLAG,
    rayStartParams=WORDS,
    serviceType=TEXT,
    resources=WORDS,
    labels=WORDS,
)
WORKERS = record(
    groupName=TEXT,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    numOfHosts=COUNT,
    idleTimeoutSeconds=COUNT,
    suspend=FLAG,
    rayStartParams=WORDS,
    template=TEMPLATE,
    scaleStrategy={"type": "object"},
    resources=WORDS,
    labels=WORDS,
)
CLUSTER = record(
    rayVersion=TEXT,
    suspend=FLAG,
    managedBy=TEXT,
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions={"type": "object"},
    headServiceAnnotations=WORDS,
    gcsFaultToleranceOptions={"type": "object"},
    authOptions=record(mode={"enum": ["disabled", "token"]}, secretName=TEXT, enableK8sTokenAuth=FLAG),
    headGroupSpec={**HEAD, "required": ["template"]},
    workerGroupSpecs={"type": "array", "items": {**WORKERS, "required": ["groupName", "template"]}},
)
RAYJOB = record(
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata={"type": "object"},
    spec={
        **record(
            entrypoint=TEXT,
            runtimeEnvYAML=TEXT,
            jobId=TEXT,
            submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
            entrypointResources=TEXT,
            entrypointNumCpus={"type": "number"},
            entrypointNumGpus={"type": "number"},
            metadata=WORDS,
            clusterSelector=WORDS,
            suspend=FLAG,
            managedBy=TEXT,
            backoffLimit=COUNT,
            activeDeadlineSeconds=COUNT,
            ttlSecondsAfterFinished=COUNT,
            shutdownAfterJobFinishes=FLAG,
            deletionStrategy={"type": "object"},
            submitterConfig=record(backoffLimit=COUNT),
            submitterPodTemplate=TEMPLATE,
            rayClusterSpec={**CLUSTER, "required": ["headGroupSpec"]},
        ),
        "required": ["entrypoint"],
    },
)


def manifest(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / name).read_text())


def ray_templates() -> Iterator[dict[str, Any]]:
    spec = manifest("rayjob.yaml")["spec"]
    yield spec["submitterPodTemplate"]
    yield spec["rayClusterSpec"]["headGroupSpec"]["template"]
    yield from (group["template"] for group in spec["rayClusterSpec"]["workerGroupSpecs"])


def pods() -> list[dict[str, Any]]:
    """The pod specs of both manifests."""
    return [manifest("cronjob.yaml")["spec"]["jobTemplate"]["spec"]["template"]["spec"], *(t["spec"] for t in ray_templates())]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_cronjob_is_one_by_kubernetes_schema(version: str) -> None:
    kubernetes_validate.validate(manifest("cronjob.yaml"), version, strict=True)
    wrong = manifest("cronjob.yaml")
    wrong["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["readOnly"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_pods_of_the_rayjob_are_pods_by_kubernetes_schema(version: str) -> None:
    for template in ray_templates():
        whole = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": template}
        kubernetes_validate.validate(whole, version, strict=True)
        wrong = copy.deepcopy(whole)
        wrong["template"]["spec"]["containers"][0]["volumeMounts"][0]["path"] = "/x"
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(wrong, version, strict=True)


def test_the_rayjob_has_only_fields_that_kuberay_knows() -> None:
    jsonschema.validate(manifest("rayjob.yaml"), RAYJOB)
    wrong = manifest("rayjob.yaml")
    wrong["spec"]["rayClusterSpec"]["rayversion"] = "2.60.0"
    with pytest.raises(jsonschema.ValidationError, match="rayversion"):
        jsonschema.validate(wrong, RAYJOB)


def test_every_pod_runs_as_a_user_on_a_read_only_root_without_rights() -> None:
    for pod in pods():
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 10001  # as in the Dockerfile
        for container in pod["containers"]:
            rights = container["securityContext"]
            assert rights == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            assert mounted <= {volume["name"] for volume in pod["volumes"]}


def test_secrets_come_from_a_secret_and_stand_in_no_manifest() -> None:
    for name in ("cronjob.yaml", "rayjob.yaml", "job.yaml"):
        assert not re.search(r"(?i)(password|token|secret|access_key)\w*\s*[:=]\s*\S*[A-Za-z0-9]{12}", (FOLDER / name).read_text()), name
    for pod in pods():
        for container in pod["containers"]:
            assert all("value" not in variable for variable in container.get("env", []))
            assert all(set(source) == {"secretRef"} for source in container.get("envFrom", []))


def test_one_firing_at_a_time_and_wrong_job_files_are_not_tried_again() -> None:
    spec = manifest("cronjob.yaml")["spec"]
    assert spec["concurrencyPolicy"] == "Forbid"
    job = spec["jobTemplate"]["spec"]
    actions = {code: rule["action"] for rule in job["podFailurePolicy"]["rules"] for code in rule.get("onExitCodes", {}).get("values", [])}
    assert actions == {64: "FailJob", 1: "Count", 75: "Count", 130: "Count", 137: "Count", 143: "Count"}
    lists = [rule["onExitCodes"]["values"] for rule in job["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    assert lists == [sorted(values) for values in lists]  # the API refuses others, the schema does not say so
    names = {rule["onExitCodes"]["containerName"] for rule in job["podFailurePolicy"]["rules"] if "onExitCodes" in rule}
    assert names == {container["name"] for container in job["template"]["spec"]["containers"]}
    assert job["template"]["spec"]["restartPolicy"] == "Never"


def ended(command: list[str], folder: Path, code: int, **environment: str) -> tuple[int, str]:
    """Run a container's command with a `calotype` that notes its arguments and returns `code`."""
    program = folder / "calotype"
    program.write_text(f'#!/bin/sh\necho "$@" > {folder}/said\nexit {code}\n')
    program.chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    done = subprocess.run(command, env={"PATH": path, **environment}, capture_output=True, check=False)
    return done.returncode, (folder / "said").read_text().strip()


CODES = [(0, 0), (2, 0), (64, 64), (75, 75), (1, 1)]


@pytest.mark.parametrize(("code", "exit_code"), CODES)
def test_a_firing_is_named_by_its_minute_and_failed_rows_are_a_success(tmp_path: Path, code: int, exit_code: int) -> None:
    command = manifest("cronjob.yaml")["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["command"]
    minute = 1_795_485_600 // 60  # 2026-11-24 02:00 UTC
    found, said = ended(command, tmp_path, code, JOB_NAME=f"calotype-nightly-{minute}")
    assert found == exit_code
    assert said == "run /jobs/job.yaml --json --schedule nightly --set name=nightly-20261124T020000Z"


@pytest.mark.parametrize(("code", "exit_code"), CODES)
def test_the_rayjob_s_entrypoint_says_the_same(tmp_path: Path, code: int, exit_code: int) -> None:
    found, said = ended(["sh", "-c", manifest("rayjob.yaml")["spec"]["entrypoint"]], tmp_path, code)
    assert (found, said) == (exit_code, "run /jobs/job.yaml --json --engine ray --set name=by-hand")


def test_the_job_file_is_a_job_and_the_configmap_that_both_manifests_mount() -> None:
    named = {v["configMap"]["name"] for pod in pods() for v in pod["volumes"] if "configMap" in v}
    kustomization = manifest("kustomization.yaml")
    assert named == {generator["name"] for generator in kustomization["configMapGenerator"]}
    for name in (*kustomization["resources"], *kustomization["configMapGenerator"][0]["files"]):
        assert (FOLDER / name).exists()
    spec = load(FOLDER / "job.yaml", ["name=nightly-20261124T020000Z"], schedule="nightly")
    assert spec.manifest == "s3://archive/manifests/2026-11-24.parquet"
    find_kind(spec.kind, spec.mode).params.model_validate(spec.params)


def test_ray_is_the_one_that_calotype_is_tested_with() -> None:
    pinned = re.search(r"^ray==(\S+)$", (FOLDER.parents[1] / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert manifest("rayjob.yaml")["spec"]["rayClusterSpec"]["rayVersion"] == pinned[1]
