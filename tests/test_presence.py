import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from green_tune.presence import BOOT_ID, KEPT_S, Presence

ROOT = Path(__file__).parents[1]


class Clock:
    """A time that all meters of a test share."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


Make = Callable[..., Presence]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "meters"


@pytest.fixture
def make(folder: Path, clock: Clock) -> Iterator[Make]:
    made = []

    def make(*gpus: str) -> Presence:
        made.append(Presence(gpus, folder, clock))
        return made[-1]

    yield make
    for meter in made:
        meter.leave()


def test_a_meter_that_is_alone_has_all(make: Make, clock: Clock) -> None:
    meter = make("GPU-1")
    meter.enter()
    clock.now_s += 1
    shares = meter.shares(1000, 1001)
    assert (shares.machine, shares.gpus, shares.others) == (1.0, {"GPU-1": 1.0}, 0)


def test_two_meters_split_only_the_time_and_the_gpus_that_they_share(
    make: Make, clock: Clock
) -> None:
    one, two = make("GPU-1", "GPU-2"), make("GPU-2", "GPU-3")
    one.enter()
    clock.now_s = 1006
    two.enter()
    clock.now_s = 1010
    shares = one.shares(1000, 1010)
    assert shares.machine == pytest.approx(0.8)
    assert shares.gpus == pytest.approx({"GPU-1": 1.0, "GPU-2": 0.8})
    assert shares.others == 1
    assert two.shares(1006, 1010).gpus == {"GPU-2": 0.5, "GPU-3": 1.0}


def test_a_meter_that_came_and_went_between_two_samples_is_not_overlooked(
    make: Make, clock: Clock
) -> None:
    long, short = make(), make()
    long.enter()
    clock.now_s = 1002
    short.enter()
    clock.now_s = 1006
    assert short.shares(1002, 1006).machine == 0.5
    short.leave()
    clock.now_s = 1010
    assert long.shares(1000, 1010).machine == pytest.approx(0.8)
    assert long.shares(1006, 1010).machine == 1.0


def test_a_stretch_without_length_has_the_share_of_its_moment(make: Make, clock: Clock) -> None:
    one, two = make(), make()
    one.enter()
    two.enter()
    clock.now_s += 1
    assert one.shares(1001, 1001).machine == 0.5


TIMES = st.floats(0, 100, allow_nan=False).map(lambda time_s: 1000 + time_s)
METERS = st.tuples(
    st.lists(TIMES, min_size=2, max_size=6, unique=True).map(sorted),  # enter, samples, leave
    st.sets(st.sampled_from(["GPU-1", "GPU-2", "GPU-3"])),
)


def union(lives: Iterable[tuple[float, float]]) -> float:
    """The time in which at least one was there."""
    total, until_s = 0.0, float("-inf")
    for start_s, end_s in sorted(lives):
        total += max(0.0, end_s - max(start_s, until_s))
        until_s = max(until_s, end_s)
    return total


@settings(deadline=None, max_examples=150)
@given(st.lists(METERS, min_size=1, max_size=4))
def test_nothing_is_counted_twice_or_lost_whoever_samples_when(
    meters: list[tuple[list[float], set[str]]],
) -> None:
    clock, spent = Clock(), {"machine": 0.0}
    with tempfile.TemporaryDirectory() as folder:
        there = [Presence(sorted(gpus), Path(folder), clock) for _, gpus in meters]
        for time_s, which, sample in sorted(
            (time_s, which, sample)
            for which, (times, _) in enumerate(meters)
            for sample, time_s in enumerate(times)
        ):
            clock.now_s, times = time_s, meters[which][0]
            if sample == 0:
                there[which].enter()
                continue
            since_s = times[sample - 1]
            shares = there[which].shares(since_s, time_s)
            for name, share in {"machine": shares.machine, **shares.gpus}.items():
                spent[name] = spent.get(name, 0.0) + share * (time_s - since_s)
            if sample == len(times) - 1:
                there[which].leave()
    for name, total in spent.items():
        users = [(t[0], t[-1]) for t, gpus in meters if name == "machine" or name in gpus]
        assert total == pytest.approx(union(users), rel=0, abs=1e-9)


METER = """
import json, random, sys, time
from pathlib import Path
from green_tune.presence import Presence

folder, seconds, longest_s = Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
meter, total = Presence(["GPU-1"], folder), 0.0
meter.enter()
started = since = time.monotonic()
while since < started + seconds:
    time.sleep(random.uniform(0, longest_s))
    now = time.monotonic()
    shares = meter.shares(since, now)
    total += shares.machine * (now - since)
    since = now
    print(json.dumps([started, now, total, shares.machine]), flush=True)
meter.leave()
"""


def start(folder: Path, *arguments: object, code: str = METER) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, str(folder), *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def end(process: subprocess.Popen[str]) -> list[float]:
    """Start, end, time counted and share at last, as it wrote them down last."""
    last = process.communicate()[0].rpartition("\n")[0].splitlines()[-1]
    known: list[float] = json.loads(last)
    return known


def test_real_processes_add_up_to_the_time_in_which_one_was_there(folder: Path) -> None:
    started = []
    for seconds, longest_s in ((1.6, 0.3), (0.8, 0.01), (1.2, 0.05)):
        started.append(start(folder, seconds, longest_s))
        time.sleep(0.3)
    ended = [end(process) for process in started]
    truth, counted = union((x[0], x[1]) for x in ended), sum(x[2] for x in ended)
    assert counted < sum(x[1] - x[0] for x in ended) - 0.3  # they did overlap
    assert 0.98 * truth <= counted <= truth + 1e-9


def test_after_kill_9_the_survivor_has_all_and_never_more_than_was_there(folder: Path) -> None:
    survivor, killed = start(folder, 2.0, 0.1), start(folder, 60, 0.1)
    for process in (survivor, killed):
        assert process.stdout
        process.stdout.readline()
    time.sleep(0.5)
    killed.kill()
    ended = [end(killed), end(survivor)]
    assert [x[3] for x in ended] == [0.5, 1.0]
    truth, counted = union((x[0], x[1]) for x in ended), sum(x[2] for x in ended)
    assert truth - 0.3 <= counted <= truth + 1e-9


FORK = """
import os, sys, time
from pathlib import Path
from green_tune.presence import Presence

meter = Presence(folder=Path(sys.argv[1]))
meter.enter()
child = os.fork()
if child == 0:
    meter.leave()  # its parent's, not its own
else:
    print(child, flush=True)
time.sleep(60)
"""


def test_a_fork_neither_ends_the_life_of_its_parent_nor_prolongs_it(folder: Path) -> None:
    parent, meter = start(folder, code=FORK), Presence(folder=folder)
    assert parent.stdout
    child = int(parent.stdout.readline())
    meter.enter()
    try:
        time.sleep(0.3)
        assert meter.shares(time.monotonic() - 0.01, time.monotonic()).machine == 0.5
        parent.kill()
        parent.wait()
        assert meter.shares(time.monotonic() - 0.01, time.monotonic()).machine == 0.5
        since_s = time.monotonic()
        assert meter.shares(since_s, since_s + 0.01).machine == 1.0
        os.kill(child, 0)  # it still lives
    finally:
        os.kill(child, signal.SIGKILL)
        parent.kill()
        parent.communicate()
        meter.leave()


def write(path: Path, *lines: object) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def begun(started_s: float, boot: str | None = None) -> dict[str, object]:
    return {"boot": boot or BOOT_ID.read_text().strip(), "gpus": [], "started_s": started_s}


def test_who_was_killed_before_counts_for_nothing(make: Make, folder: Path, clock: Clock) -> None:
    write(folder / "dead.json", begun(900.0))
    meter = make()
    meter.enter()
    clock.now_s += 1
    assert meter.shares(1000, 1001).machine == 1.0


def test_who_is_found_dead_was_there_until_then(make: Make, folder: Path, clock: Clock) -> None:
    meter = make()
    meter.enter()
    dead = write(folder / "dead.json", begun(1000.0))
    clock.now_s = 1001
    assert meter.shares(1000, 1001).machine == 0.5
    clock.now_s = 1002
    assert meter.shares(1001, 1002).machine == 1.0
    assert meter.shares(1000, 1002).machine == 0.75
    dead.unlink()
    assert meter.shares(1000, 1002).machine == 0.75


def test_whose_file_vanishes_was_there_until_then(make: Make, folder: Path, clock: Clock) -> None:
    one, two = make(), make()
    one.enter()
    (file,) = folder.glob("*.json")
    two.enter()
    clock.now_s = 1001
    assert two.shares(1000, 1001).machine == 0.5
    file.unlink()
    clock.now_s = 1002
    assert two.shares(1001, 1002).machine == 0.5
    clock.now_s = 1003
    assert two.shares(1002, 1003).machine == 1.0


@pytest.mark.parametrize("whole", [False, True])
def test_who_finds_its_own_file_removed_announces_itself_again(
    whole: bool, make: Make, folder: Path, clock: Clock
) -> None:
    one, two = make(), make()
    one.enter()
    for file in folder.iterdir():
        file.unlink()
    if whole:
        folder.rmdir()
    one.shares(999, 1000)
    two.enter()
    clock.now_s += 1
    assert one.shares(1000, 1001).machine == two.shares(1000, 1001).machine == 0.5


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]\n", "null\n", "1\n2\n", '{"boot": "x"}\n', "\xff\n", "[" * 9000 + "\n",
     '{"boot": null, "gpus": 3, "started_s": 0}\n', '{"started_s": 1'],
)  # fmt: skip
def test_a_file_of_somebody_else_is_left_alone(text: str, make: Make, folder: Path) -> None:
    folder.mkdir()
    (folder / "strange.json").write_text(text, encoding="latin-1")
    os.mkfifo(folder / "pipe.json")
    (folder / "folder.json").mkdir()
    (folder / "link.json").symlink_to("/dev/zero")
    before = set(folder.iterdir())
    meter = make()
    meter.enter()
    assert meter.shares(999, 1000).others == 0
    assert before < set(folder.iterdir())


def test_an_end_that_is_half_written_is_none(make: Make, folder: Path, clock: Clock) -> None:
    one, two = make(), make()
    one.enter()
    (file,) = folder.glob("*.json")
    with file.open("a") as half:
        half.write('{"ended_s": 1')
    two.enter()
    clock.now_s += 1
    assert two.shares(1000, 1001).machine == 0.5


def test_stamps_from_before_a_reboot_mean_nothing(make: Make, folder: Path, clock: Clock) -> None:
    meter = make()
    meter.enter()
    write(folder / "other.json", begun(10.0, "another boot"), {"ended_s": 5000.0})
    clock.now_s += 1
    assert meter.shares(1000, 1001).others == 0


def test_files_are_removed_once_nobody_can_still_need_them(
    make: Make, folder: Path, clock: Clock
) -> None:
    now_s = clock.now_s
    old = [
        write(folder / "killed.json", begun(now_s - KEPT_S - 1)),
        write(folder / "ended.json", begun(0.0), {"ended_s": now_s - KEPT_S - 1}),
    ]
    new = [
        write(folder / "new-killed.json", begun(now_s - 1)),
        write(folder / "new-ended.json", begun(0.0), {"ended_s": now_s - 1}),
    ]
    living = make()
    living.enter()
    clock.now_s += KEPT_S / 2
    make().enter()
    assert not any(path.exists() for path in old)
    assert all(path.exists() for path in new)
    clock.now_s += KEPT_S
    make().enter()
    assert not any(path.exists() for path in new)
    assert living.shares(clock.now_s - 1, clock.now_s + 1).others == 2


def test_where_no_file_can_be_made_a_meter_says_so_once_and_counts_alone(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    meter = Presence(["GPU-1"], tmp_path / "file" / "meters", clock)
    meter.enter()
    for _ in range(3):
        shares = meter.shares(999, 1000)
        assert (shares.machine, shares.gpus, shares.others) == (1.0, {"GPU-1": 1.0}, 0)
    meter.leave()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "other runs on this machine cannot be seen" in caplog.text


def test_all_users_write_into_the_folder_and_read_the_files(make: Make, folder: Path) -> None:
    before = os.umask(0o077)
    try:
        make().enter()
    finally:
        os.umask(before)
    assert oct(folder.stat().st_mode & 0o7777) == "0o1777"
    assert [oct(path.stat().st_mode & 0o777) for path in folder.iterdir()] == ["0o644"]


def test_the_environment_names_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREEN_TUNE_METERS", str(tmp_path / "ours"))
    meter = Presence()
    meter.enter()
    meter.leave()
    assert len(list((tmp_path / "ours").iterdir())) == 1
