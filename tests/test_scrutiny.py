import os
from pathlib import Path
from typing import Any

import pytest

from green_tune import scrutiny
from green_tune.errors import AdapterError


@pytest.mark.parametrize(
    "value",
    ["x" * 10_000, "a\nb\x1b[2J", "\u202egnp", "аdapter", "\ud800", 16**5000, [[[[[[[[1]]]]]]]],
     {"a": "b" * 10_000}, None],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_whatever_is_shown_is_one_short_line_of_ascii(value: Any) -> None:
    line = scrutiny.shown(value)
    assert line.isascii()
    assert line.isprintable()
    assert 0 < len(line) < 150


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")
    with scrutiny.opened(tmp_path / "file") as file:
        assert file.read() == b"content"
    for name in ("link", "pipe", "nowhere", "."):
        with pytest.raises(AdapterError):
            scrutiny.opened(tmp_path / name)
    with pytest.raises(AdapterError):
        scrutiny.opened(Path("/dev/zero"))


def test_a_file_is_read_to_its_limit_and_no_further(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert scrutiny.read(tmp_path / "file", 5) == b"12345"
    with pytest.raises(AdapterError, match="over 4 bytes"):
        scrutiny.read(tmp_path / "file", 4)


def test_names_are_listed_in_the_folders_that_were_asked_for(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "b").touch()
    (tmp_path / "a").touch()
    assert sorted(scrutiny.files(tmp_path, ["in", "not_there"])) == ["a", "in/b"]
    with pytest.raises(AdapterError, match="holds 'in', a folder"):
        scrutiny.files(tmp_path, [])
    with pytest.raises(AdapterError, match="no folder"):
        scrutiny.files(tmp_path / "a", [])


def test_compiled_code_that_python_left_behind_is_to_be_deleted(tmp_path: Path) -> None:
    (tmp_path / "code" / "__pycache__").mkdir(parents=True)
    with pytest.raises(AdapterError, match="compiled code that nobody has seen: delete it"):
        scrutiny.files(tmp_path, ["code"])


def test_one_and_true_are_not_the_same() -> None:
    assert scrutiny.same(1, 1)
    assert not scrutiny.same(1, True)
    assert not scrutiny.same(0, False)
    assert not scrutiny.same(1, 1.0)
