"""What the team's server is made of, in containers and without: secrets, places, a command.

`compose.yaml` runs it in its containers and `native.py` imports it, so what the tests start
natively is what the containers run. It starts MLflow's server alone, and knows nothing of Docker.

    python team.py secrets     each secret, made once, for its readers; as root, in a container
    python team.py places      roles, databases and the bucket, where they are not there yet
    python team.py serve       becomes MLflow's server
    python team.py exports     what the admin's shell needs, passwords included
    python team.py member NAME an account for somebody, and what his or her shell needs
"""

import json
import os
import sys
from base64 import b64encode
from collections.abc import Iterable, Mapping
from pathlib import Path
from secrets import token_hex
from shlex import quote
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, Request, build_opener

SECRETS = Path("/secrets")
POSTGRES = "postgres:5432"
STORAGE = "http://storage:9000"
PORT = 5000

SERVER = 1000  # the users of the containers; 999 is PostgreSQL's in its image
STORE = 1001
READERS = {  # who reads a secret, as user and group
    "postgres": (999, 999),  # the password of PostgreSQL's superuser
    "mlflow": (SERVER, SERVER),  # of the role whose databases are MLflow's
    "tuner": (SERVER, SERVER),  # of the role whose database has the studies
    "admin": (SERVER, SERVER),  # of MLflow's first user
    "session": (SERVER, SERVER),  # signs the cookies of MLflow's pages
    "s3": (STORE, SERVER),  # key,secret
}
SHOWN = ("admin", "tuner")
OWNERS = {"tracking": "mlflow", "accounts": "mlflow", "studies": "tuner"}  # of the databases
BUCKET = "adapters"
HOSTS = "MLFLOW_SERVER_ALLOWED_HOSTS"
USER, PASSWORD = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"
Needed = Mapping[str, str]  # variables of a shell
REGION = "us-east-1"  # S3 signs with a region; the storage here has none

# EDIT: who has an account may train, join any study and promote; may delete only what is his or her
# own. A password that was right is taken as right for a minute: checking one takes 0.3 s of CPU.
LOGIN = """[mlflow]
default_permission = EDIT
database_uri = {accounts}
admin_username = admin
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 60
"""


def make_secrets(folder: Path) -> None:
    """Makes each secret that is not there yet, for its owner's eyes alone; the others are kept."""
    for name in READERS:
        if not (folder / name).exists():
            new = folder / f".{name}"
            new.unlink(missing_ok=True)
            secret = f"{token_hex(10)},{token_hex(20)}" if name == "s3" else token_hex(20)
            with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secret)
            new.rename(folder / name)


def read_secrets(folder: Path, names: Iterable[str] = READERS) -> dict[str, str]:
    """Some of them, or all."""
    return {name: (folder / name).read_text() for name in names}


def hand_over(folder: Path, artifacts: Path) -> None:
    """Gives each secret to the user of the container that reads it, and the storage its folder."""
    folder.chmod(0o755)
    for name, (user, group) in READERS.items():
        os.chown(folder / name, user, group)
        (folder / name).chmod(0o440)
    os.chown(artifacts, STORE, STORE)


def make_databases(superuser: str, passwords: Mapping[str, str]) -> None:
    """Roles and databases that are not there yet; a role enters its own databases alone.

    `superuser` is the URL of the database postgres.
    """
    from sqlalchemy import create_engine, text
    from sqlalchemy.pool import NullPool

    engine = create_engine(superuser, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as database:
        roles = set(database.scalars(text("SELECT rolname FROM pg_roles")))
        for role in sorted(set(OWNERS.values()) - roles):
            database.exec_driver_sql(f"CREATE ROLE {role} LOGIN")
        for role in set(OWNERS.values()):  # a database that was restored may know other ones
            database.exec_driver_sql(f"ALTER ROLE {role} PASSWORD '{passwords[role]}'")
        there = set(database.scalars(text("SELECT datname FROM pg_database")))
        for name in OWNERS.keys() - there:
            database.exec_driver_sql(f"CREATE DATABASE {name} OWNER {OWNERS[name]}")
            database.exec_driver_sql(f"REVOKE ALL ON DATABASE {name} FROM PUBLIC")


def make_bucket(storage: str, key: str) -> None:
    """The bucket of all artifacts, where it is not there yet; `key` is key,secret."""
    import boto3  # type: ignore[import-untyped]

    name, secret = key.split(",")
    client = boto3.client(
        "s3", endpoint_url=storage, aws_access_key_id=name, aws_secret_access_key=secret,
        region_name=REGION,
    )  # fmt: skip
    if BUCKET not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
        client.create_bucket(Bucket=BUCKET)


def keys(storage: str, key: str) -> dict[str, str]:
    """The environment of a client of the storage; `key` is key,secret."""
    name, secret = key.split(",")
    return {
        "MLFLOW_S3_ENDPOINT_URL": storage,
        "AWS_ACCESS_KEY_ID": name,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_DEFAULT_REGION": REGION,
    }


def address(database: str, postgres: str) -> str:
    """Of one of MLflow's databases; without the password, which is in the environment."""
    return f"postgresql+psycopg2://{OWNERS[database]}@{postgres}/{database}"


def login(folder: Path, postgres: str, secrets: Mapping[str, str]) -> dict[str, str]:
    """The environment of a server that asks for a password; its settings are put into `folder`."""
    settings = folder / "login.ini"
    settings.write_text(LOGIN.format(accounts=address("accounts", postgres)))
    return {
        "MLFLOW_AUTH_CONFIG_PATH": str(settings),
        "MLFLOW_AUTH_ADMIN_PASSWORD": secrets["admin"],  # read when there is no user yet
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets["session"],
    }


def command(database: str, where: tuple[str, int], *, proxied: bool = True) -> list[str]:
    """MLflow's server on a database, listening at a host and port; without its program's name.

    Proxied, it alone has the storage's keys, else its clients go there themselves.
    """
    place, (host, port) = f"s3://{BUCKET}/mlflow", where
    artifacts = (
        ["--artifacts-destination", place]
        if proxied
        else ["--no-serve-artifacts", "--default-artifact-root", place]
    )
    return ["server", "--backend-store-uri", database, *artifacts,
            "--host", host, "--port", str(port)]  # fmt: skip


def quiet() -> dict[str, str]:
    """Off: telemetry, and the queue of jobs for judging chats, some processes of their own."""
    return {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def needed(url: str, postgres: str, secrets: Mapping[str, str], *, asks: bool = True) -> Needed:
    """The environment of green-tune: the addresses, and the first user's where the server asks."""
    study = f"postgresql://tuner:{secrets['tuner']}@{postgres}/studies"
    login = {USER: "admin", PASSWORD: secrets["admin"]} if asks else {}
    return {"MLFLOW_TRACKING_URI": url, **login, "GREEN_TUNE_STUDY_STORAGE": study}


def exports(told: Needed) -> str:
    """Lines for a shell."""
    return "".join(f"export {name}={quote(text)}\n" for name, text in told.items())


def new_member(url: str, admin: Needed, name: str) -> Needed:
    """Somebody's environment, with an account that the server at `url` has made for the admin.

    Raises:
        HTTPError: the server refuses.
    """
    theirs = {**admin, USER: name, PASSWORD: token_hex(12)}
    said = b64encode(f"{admin[USER]}:{admin[PASSWORD]}".encode()).decode()
    asked = Request(
        f"{url}/api/2.0/mlflow/users/create",
        json.dumps({"username": name, "password": theirs[PASSWORD]}).encode(),
        {"Authorization": f"Basic {said}", "Content-Type": "application/json"},
    )
    build_opener(ProxyHandler({})).open(asked, timeout=30).close()
    return theirs


def _places() -> None:
    secrets = read_secrets(SECRETS)
    superuser = f"postgresql+psycopg2://postgres:{secrets['postgres']}@{POSTGRES}/postgres"
    make_databases(superuser, secrets)
    make_bucket(STORAGE, secrets["s3"])


def hosts(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The names that the server answers to: a list of them would else leave this machine out."""
    if listed := environment.get(HOSTS):
        return {HOSTS: f"{listed},localhost:*,127.0.0.1:*"}
    return {}


def _serve() -> None:
    """Reads only what its user may."""
    secrets = read_secrets(SECRETS, ("mlflow", "admin", "session", "s3"))
    environment = keys(STORAGE, secrets["s3"]) | login(Path.cwd(), POSTGRES, secrets) | hosts()
    os.environ |= environment | quiet() | {"PGPASSWORD": secrets["mlflow"]}
    arguments = command(address("tracking", POSTGRES), ("0.0.0.0", PORT))
    os.execvp("mlflow", ["mlflow", *arguments, "--app-name", "basic-auth"])


def _admin() -> Needed:
    """The admin's environment: this shell's, or what a container knows of where it is run."""
    if PASSWORD in os.environ:
        names = ("MLFLOW_TRACKING_URI", USER, PASSWORD, "GREEN_TUNE_STUDY_STORAGE")
        return {name: os.environ[name] for name in names if name in os.environ}
    outside = os.environ.get("GREEN_TUNE_PORT", str(PORT))
    database = f"127.0.0.1:{os.environ.get('GREEN_TUNE_STUDY_PORT', '5432')}"
    return needed(f"http://127.0.0.1:{outside}", database, read_secrets(SECRETS, SHOWN))


def _member(name: str) -> None:
    admin = _admin()
    inside = f"http://127.0.0.1:{PORT}" if PASSWORD not in os.environ else ""
    try:
        told = new_member(inside or admin["MLFLOW_TRACKING_URI"], admin, name)
    except HTTPError as error:
        sys.exit(f"error: no account for {name}: {_refusal(error.read().decode())}")
    except URLError as error:
        sys.exit(f"error: no account for {name}: the server does not answer ({error.reason})")
    sys.stdout.write(exports(told))


def _refusal(body: str) -> str:
    """The server's own words, without the database's: those show the hash of the password."""
    try:
        message: str = json.loads(body)["message"]
    except ValueError:
        return body
    return message.partition(" Error: ")[0]


def main(asked: str = "", *names: str) -> None:
    """One of the commands above."""
    if asked == "secrets":
        make_secrets(SECRETS)
        hand_over(SECRETS, Path("/artifacts"))
    elif asked == "places":
        _places()
    elif asked == "serve":
        _serve()
    elif asked == "exports":
        sys.stdout.write(exports(_admin()))
    elif asked == "member" and len(names) == 1:
        _member(names[0])
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(*sys.argv[1:])
