"""Real servers for the tests, on the loopback: an S3 store by rclone, and MLflow's own server."""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

import boto3  # type: ignore[import-untyped]
from postgres import _end_with_the_tests, _free_port

PATIENCE_S = 90.0
BUCKET = "adapters"


class Server:
    """A process that answers at `url`; it ends with the tests."""

    def __init__(self, command: list[str], url: str, environment: Mapping[str, str] = {}) -> None:
        self.url = url
        self.folder = Path(tempfile.mkdtemp(prefix="green-tune-server-"))
        self._command = command
        self._environment = {**os.environ, **environment}

    def start(self) -> None:
        """Returns when it answers.

        Raises:
            RuntimeError: it ended, or never answered; with what it wrote.
        """
        with self._log.open("ab") as out:
            self._process = subprocess.Popen(
                self._command,
                stdout=out,
                stderr=out,
                cwd=self.folder,
                env=self._environment,
                start_new_session=True,
                preexec_fn=_end_with_the_tests,
            )
        until = time.monotonic() + PATIENCE_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                self.stop()
                raise RuntimeError(f"{self._command} did not start:\n{self._log.read_text()}")
            time.sleep(0.1)

    def stop(self) -> None:
        """Ends it with all of its workers."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, 15)
            self._process.wait(PATIENCE_S)

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.folder)

    @property
    def _log(self) -> Path:
        return self.folder / "log"

    def _answers(self) -> bool:
        try:
            build_opener(ProxyHandler({})).open(f"{self.url}/health", timeout=2).close()
        except URLError as error:
            return hasattr(error, "code")  # it answers, with a refusal
        except OSError:
            return False
        return True


class S3(Server):
    """An S3 store with one bucket, and keys of its own."""

    def __init__(self) -> None:
        self.key, self.secret = secrets.token_hex(8), secrets.token_hex(16)
        self._data = Path(tempfile.mkdtemp(prefix="green-tune-s3-"))
        port = _free_port()
        rclone = str(Path(sys.executable).with_name("rclone"))
        command = [rclone, "serve", "s3", str(self._data), "--addr", f"127.0.0.1:{port}",
                   "--auth-key", f"{self.key},{self.secret}", "--config", os.devnull]  # fmt: skip
        super().__init__(command, f"http://127.0.0.1:{port}")
        self.start()
        boto3.client("s3", **self._keys(), endpoint_url=self.url).create_bucket(Bucket=BUCKET)

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs to use it."""
        return {
            "MLFLOW_S3_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def names(self) -> list[str]:
        """The objects that it holds."""
        root = self._data / BUCKET
        return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())

    def path(self, name: str) -> Path:
        """The file behind an object, to tamper with."""
        return self._data / BUCKET / name

    def close(self) -> None:
        super().close()
        shutil.rmtree(self._data)

    def _keys(self) -> dict[str, str]:
        return {
            "aws_access_key_id": self.key,
            "aws_secret_access_key": self.secret,
            "region_name": "us-east-1",
        }


class Mlflow(Server):
    """An MLflow server on a database, with its artifacts in S3.

    Proxied, it alone has the keys; else its clients go to S3 themselves.
    """

    def __init__(self, database: str, s3: S3, *, proxied: bool = True) -> None:
        port = _free_port()
        place = f"s3://{BUCKET}/mlflow"
        where = (
            ["--artifacts-destination", place]
            if proxied
            else ["--no-serve-artifacts", "--default-artifact-root", place]
        )
        mlflow = str(Path(sys.executable).with_name("mlflow"))
        command = [mlflow, "server", "--backend-store-uri", database, *where,
                   "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]  # fmt: skip
        super().__init__(command, f"http://127.0.0.1:{port}", s3.environment)
        self.start()
