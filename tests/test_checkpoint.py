import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from green_tune import heartbeat
from green_tune.checkpoint import Checkpoint, claim, identity
from green_tune.errors import ConfigError, MeasurementError, Stopped, StoreError
from green_tune.footprint import Basis, Segment
from green_tune.job import Job
from green_tune.ranks import Rank

MakeJob = Callable[..., Job]
ROOT = Path(__file__).parents[1]
RUN = "a" * 32
OTHER = "b" * 32
STATE = b"a state" * 1000


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "state" / "green-tune" / "checkpoints"


def left(job: Job, run_id: str = RUN, state: bytes = STATE) -> None:
    """What a session leaves that was stopped."""
    kept = Checkpoint(job)
    with pytest.raises(Stopped), kept.until_the_end():
        assert kept.write(run_id, state)
        raise Stopped(15)


def test_the_same_command_goes_on_with_the_last_state(make_job: MakeJob, home: Path) -> None:
    left(make_job())
    kept = claim(make_job())
    assert (kept.run_id, kept.read()) == (RUN, STATE)
    assert kept.write(RUN, b"the next")
    assert kept.read() == b"the next"
    assert {path.name for path in (home / RUN).iterdir()} == {
        "identity.json", "state.pt", "worker"
    }  # fmt: skip


def test_without_a_checkpoint_or_asked_not_to_a_training_starts_anew(
    make_job: MakeJob, home: Path
) -> None:
    assert claim(make_job()).read() is None
    left(make_job())
    assert claim(make_job(resume="never")).run_id == ""
    assert (home / RUN / "state.pt").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"gpu": "auto"},
        {"checkpoint_minutes": 0.5},
        {"quality_examples": 0},
        {"resume": RUN},
        {"resume": RUN[:8]},
    ],
)
def test_what_shapes_no_number_may_change(make_job: MakeJob, options: dict[str, object]) -> None:
    job = make_job()
    left(job)
    assert claim(replace(job, config=replace(job.config, **options))).run_id == RUN  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"learning_rate": 1e-3}, "learning_rate=0.0002, now it is 0.001"),
        ({"country": "FRA"}, "country=world, now it is FRA"),
        ({"micro_batch_tokens": 64}, "micro_batch_tokens=0, now it is 64"),
        ({"seed": 1}, "seed=0, now it is 1"),
    ],
)
def test_another_config_starts_anew_and_by_id_says_what_differs(
    make_job: MakeJob, options: dict[str, object], named: str
) -> None:
    left(make_job())
    assert claim(make_job(**options)).run_id == ""
    with pytest.raises(ConfigError, match=f"run {RUN} was trained with {named}; give the same"):
        claim(make_job(resume=RUN, **options))


def test_another_device_plan_data_or_store_is_another_training(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job()
    left(job)
    device = replace(job.device, kind="cuda", name="Tesla T4")
    data = replace(job.data, train=job.data.train[1:])
    for other, name in [
        (replace(job, devices=(device,)), "gpu_type"),
        (replace(job, plan=replace(job.plan, precision="bf16")), "plan.precision"),
        (replace(job, data=data), "data_digest"),
        (replace(job, commit="0123"), "base_model_commit"),
    ]:
        assert claim(other).run_id == ""
        asked = replace(other, config=replace(other.config, resume=RUN))
        with pytest.raises(ConfigError, match=f"was trained with {name}="):
            claim(asked)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@host:5000/path?token=secret")
    assert claim(job).run_id == ""
    assert "secret" not in json.dumps(identity(job))


def test_a_model_in_a_folder_that_has_changed_is_another_one(
    make_job: MakeJob, tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(b"one")
    job = make_job()
    job = replace(job, source=replace(job.source, kind="folder", place=str(tmp_path / "model")))
    before = identity(job)
    assert identity(job) == before
    weights.write_bytes(b"another")
    assert identity(job) != before


def test_an_id_without_a_checkpoint_is_answered_with_those_that_have_one(
    make_job: MakeJob,
) -> None:
    with pytest.raises(ConfigError, match=r"resume=0123: no run of this id .* one: none here"):
        claim(make_job(resume="0123"))
    left(make_job())
    with pytest.raises(ConfigError, match=f"those that have one: {RUN}"):
        claim(make_job(resume=OTHER))
    left(make_job(), RUN[:8] + OTHER[8:])
    with pytest.raises(ConfigError, match="several runs begin so"):
        claim(make_job(resume="aa"))


def test_the_youngest_state_of_the_same_training_is_taken(make_job: MakeJob, home: Path) -> None:
    left(make_job(), OTHER)
    left(make_job(), RUN)
    os.utime(home / RUN / "state.pt", (1, 1))
    assert claim(make_job()).run_id == OTHER


def test_a_training_under_way_is_nobody_elses(make_job: MakeJob, home: Path) -> None:
    left(make_job())
    first = claim(make_job())
    assert first.run_id == RUN
    assert claim(make_job()).run_id == ""
    with pytest.raises(ConfigError, match=f"{RUN} is still being trained by process {os.getpid()}"):
        claim(make_job(resume=RUN))
    first.remove()
    assert not (home / RUN).exists()


CLAIM = """
import sys
from green_tune import checkpoint, job
from green_tune.config import TrainConfig
asked = job.prepare(TrainConfig(gpu="cpu", max_train_examples=48, max_eval_examples=12, evals=2))
print("ready", flush=True)
sys.stdin.readline()
print(checkpoint.claim(asked).run_id or "anew", flush=True)
sys.stdin.readline()
"""


def test_of_equal_commands_that_start_at_once_one_goes_on_and_a_kill_frees_it(
    make_job: MakeJob,
) -> None:
    left(make_job())
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", CLAIM], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        for _ in range(3)
    ]  # fmt: skip
    assert [answer(racer) for racer in racers] == ["ready"] * 3
    for racer in racers:
        say(racer)
    found = [answer(racer) for racer in racers]
    assert sorted(found) == [RUN, "anew", "anew"]
    racers[found.index(RUN)].kill()
    racers[found.index(RUN)].wait()
    assert claim(make_job()).run_id == RUN
    for racer in racers:
        racer.kill()
        racer.communicate()


def answer(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def say(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.mark.parametrize("file", ["state.pt", "identity.json"])
@pytest.mark.parametrize("size", [0, 10, 100])
def test_a_damaged_checkpoint_starts_anew_and_by_id_is_refused(
    make_job: MakeJob, home: Path, caplog: pytest.LogCaptureFixture, file: str, size: int
) -> None:
    left(make_job())
    os.truncate(home / RUN / file, size)
    with pytest.raises(ConfigError, match=f"the checkpoint of run {RUN} is damaged"):
        claim(make_job(resume=RUN))
    assert claim(make_job()).run_id == ""
    assert f"the checkpoint of run {RUN} is damaged and was removed" in caplog.text
    assert not (home / RUN).exists()


def test_one_wrong_bit_is_damage(make_job: MakeJob, home: Path) -> None:
    left(make_job())
    state = bytearray((home / RUN / "state.pt").read_bytes())
    state[len(state) // 2] ^= 1
    (home / RUN / "state.pt").write_bytes(state)
    assert claim(make_job()).read() is None


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A real disk of 64 KiB under the state folder, where this user may mount one."""
    state = tmp_path / "small"
    state.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(state)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user may mount nothing; the fake full disk is tested instead")
    monkeypatch.setenv("XDG_STATE_HOME", str(state))
    yield state
    subprocess.run(["umount", "--lazy", str(state)], check=True)


def test_a_disk_that_fills_during_a_save_keeps_the_last_good_checkpoint(
    make_job: MakeJob, small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = Checkpoint(make_job())
    assert kept.write(RUN, STATE)
    for _ in range(3):
        assert not kept.write(RUN, bytes(2**20))
    assert kept.read() == STATE
    assert caplog.text.count(NO_SPACE) == 1
    folder = small_disk / "green-tune" / "checkpoints" / RUN
    assert {path.name for path in folder.iterdir()} == {"identity.json", "state.pt", "worker"}
    assert kept.write(RUN, b"there is room for this")
    assert kept.read() == b"there is room for this"


NO_SPACE = "the checkpoint could not be written (No space left on device); the one before stays"


@pytest.mark.parametrize("written", [0, 1])
def test_a_fake_full_disk_keeps_the_last_good_checkpoint(
    make_job: MakeJob,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    written: int,
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    kept = Checkpoint(make_job())
    for _ in range(written):
        assert kept.write(RUN, STATE)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert not kept.write(RUN, b"the next")
    assert NO_SPACE in caplog.text
    assert kept.read() == (STATE if written else None)
    assert not list(home.glob("*/*.new"))
    assert kept.write(RUN, b"the next")
    assert kept.read() == b"the next"


@pytest.mark.parametrize(
    ("error", "stays"),
    [
        (None, False),
        (MeasurementError("no figure"), False),
        (Stopped(15), True),
        (KeyboardInterrupt(), True),
        (StoreError("the server is down"), True),
        (ValueError("a bug"), True),
    ],
)
def test_a_checkpoint_lives_until_its_run_has_ended_for_good(
    make_job: MakeJob, home: Path, error: BaseException | None, stays: bool
) -> None:
    kept = Checkpoint(make_job())

    def train() -> None:
        with kept.until_the_end():
            kept.write(RUN, STATE)
            if error:
                raise error

    if error:
        with pytest.raises(type(error)):
            train()
    else:
        train()
    assert home.joinpath(RUN).exists() == stays
    assert claim(make_job()).run_id == (RUN if stays else "")


def test_several_processes_have_no_checkpoints(make_job: MakeJob) -> None:
    left(make_job())
    several = replace(make_job(), rank=Rank(world=2, here=2))
    assert not claim(several).wanted
    assert claim(several).run_id == ""
    asked = replace(several, config=replace(several.config, resume=RUN))
    with pytest.raises(ConfigError, match="several processes have no checkpoints"):
        claim(asked)
    assert not claim(make_job(checkpoint_minutes=0)).wanted


def test_a_claim_leaves_the_heartbeats_of_the_session_before_to_be_paid(
    make_job: MakeJob,
) -> None:
    left(make_job())
    basis = Basis(g_per_kwh=1.0, methods={"cpu": "measured", "gpu": "none", "ram": "none"})
    for second in range(2):
        part = Segment(
            phase="train", started_s=1.8e9 + second, runtime_h=1 / 3600, energy_cpu_kwh=1.0,
            energy_gpu_kwh=0.0, energy_ram_kwh=0.0,
        )  # fmt: skip
        heartbeat.beat(RUN, basis, [part])
        assert claim(make_job()).run_id == RUN or second
    spent = heartbeat.last(RUN)
    assert spent is not None
    assert spent.total.energy_kwh == 1.0  # not that of the session under way
    assert heartbeat.of_the_dead() == [RUN]
    heartbeat.forget(RUN)
    assert heartbeat.of_the_dead() == []
    assert heartbeat.last(RUN) is not None
