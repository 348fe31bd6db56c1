"""Real servers for the tests, the team's own: an S3 store by rclone, and MLflow's server."""

import secrets
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "docker"))  # a script's folder, as when it runs

import processes
from team import BUCKET, make_bucket

__all__ = ["BUCKET", "S3", "Mlflow"]


class S3(processes.S3):
    """It runs already, with its bucket, and keys of its own."""

    def __init__(self) -> None:
        folder = Path(tempfile.mkdtemp(prefix="green-tune-s3-"))
        self.key, self.secret = secrets.token_hex(8), secrets.token_hex(16)
        super().__init__(folder, f"{self.key},{self.secret}", processes.free_port())
        self.start()
        make_bucket(self.url, f"{self.key},{self.secret}")

    def names(self) -> list[str]:
        """The objects that it holds."""
        root = self.data / BUCKET
        return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())

    def path(self, name: str) -> Path:
        """The file behind an object, to tamper with."""
        return self.data / BUCKET / name

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.folder)


class Mlflow(processes.Mlflow):
    """It runs already, on a database and an S3 store; without a login."""

    def __init__(self, database: str, s3: S3, *, proxied: bool = True) -> None:
        folder = Path(tempfile.mkdtemp(prefix="green-tune-server-"))
        port = processes.free_port()
        super().__init__(folder, database, port, s3.environment, proxied=proxied, workers=1)
        self.start()

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.folder)
