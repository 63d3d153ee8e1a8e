from __future__ import annotations

import configparser
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

INFRA = Path(__file__).parents[2] / "infra"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((INFRA / "mlflow" / "compose.yaml").read_text())


def test_every_secret_of_the_composition_comes_from_the_environment_file(compose: dict[str, Any]) -> None:
    needed = set(re.findall(r"\$\{(\w+):\?", (INFRA / "mlflow" / "compose.yaml").read_text()))
    offered = dict(line.split("=", 1) for line in (INFRA / "mlflow" / "environment.example").read_text().splitlines() if "=" in line)
    assert needed == set(offered)
    assert [name for name, value in offered.items() if value and re.search("PASSWORD|KEY", name)] == []
    for service in compose["services"].values():
        for name, value in service.get("environment", {}).items():
            assert not re.search("PASSWORD|SECRET", name) or value.startswith("${"), name


def test_the_mlflow_server_asks_for_a_password_checks_hosts_and_listens_on_this_machine_only(compose: dict[str, Any]) -> None:
    server = compose["services"]["mlflow"]
    assert "--app-name basic-auth" in server["command"]
    assert "--allowed-hosts" in server["command"]
    assert "--disable-security-middleware" not in server["command"]
    assert server["read_only"] is True
    assert all(port.startswith("127.0.0.1:") for port in server["ports"])
    auth = configparser.ConfigParser()
    auth.read(INFRA / "mlflow" / "auth.ini")
    assert auth["mlflow"]["default_permission"] == "NO_PERMISSIONS"


def test_volumes_and_services_that_are_named_exist(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        assert {v.split(":")[0] for v in service.get("volumes", [])} <= set(compose["volumes"])
        assert set(service.get("depends_on", [])) <= set(compose["services"])


def test_the_server_image_has_the_mlflow_that_calotype_is_tested_with() -> None:
    pinned = re.search(r"^mlflow==(\S+)$", (INFRA.parent / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert f"mlflow=={pinned[1]}" in (INFRA / "mlflow" / "Dockerfile").read_text()


@pytest.mark.parametrize("folder", ["mlflow", "container"])
def test_containers_run_as_a_user(folder: str) -> None:
    lines = (INFRA / folder / "Dockerfile").read_text().splitlines()
    assert "USER 10001" in lines


def test_what_the_image_copies_is_in_the_repository() -> None:
    copied = re.findall(r"^COPY (.+) \S+$", (INFRA / "container" / "Dockerfile").read_text(), re.MULTILINE)
    for name in " ".join(copied).split():
        assert (INFRA.parent / name).exists(), name
