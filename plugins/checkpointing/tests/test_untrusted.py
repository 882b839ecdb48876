"""A file that anybody may have written is read once, and what is checked is what is used."""

from __future__ import annotations

import json
import os
import pickle

import pytest

from trainer_core import InvalidCheckpointError, printable
from trainer_core_checkpointing.untrusted import (
    CHUNK,
    check_memory,
    check_seal,
    check_size,
    count_values,
    opened,
    parse_json,
    read_bytes,
    read_json,
)


@pytest.fixture
def file(tmp_path):
    (tmp_path / "file").write_bytes(bytes(range(256)) * 10)
    return tmp_path / "file"


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
def test_what_fits_its_seal_is_given(size, tmp_path, seal_of):
    content = os.urandom(size)
    (tmp_path / "file").write_bytes(content)
    check_seal(tmp_path / "file", seal_of(content))
    assert read_bytes(tmp_path / "file", seal_of(content)) == content


def test_a_file_that_may_grow_is_read_to_its_size_only(file, refusal, seal_of):
    content = file.read_bytes()
    with file.open("ab") as longer:
        longer.write(b"more")
    assert read_bytes(file, seal_of(content, grows=True)) == content
    check_size(file, seal_of(content, grows=True))
    told = f"{file}: is damaged, it has 2564 bytes instead of 2560. Use another checkpoint."
    assert refusal(read_bytes, file, seal_of(content)) == told
    assert refusal(check_size, file, seal_of(content)) == told


def test_that_a_file_is_damaged_comes_before_what_was_found_in_it(file, refusal, seal_of):
    seal = seal_of(b'{"a": 1}')
    file.write_bytes(b'{"a": 2}')

    def look():
        with opened(file, seal) as content:
            content.read(3)
            raise InvalidCheckpointError(file, "holds nonsense")

    assert refusal(look) == f"{file}: is damaged, its checksum does not fit. Use another checkpoint."
    assert refusal(read_json, file, seal) == f"{file}: is damaged, its checksum does not fit. Use another checkpoint."
    file.write_bytes(b'{"a": 1}')
    assert refusal(look) == f"{file}: holds nonsense. Use another checkpoint."


def test_a_file_that_is_cut_while_it_is_read_is_found(file, refusal):
    def look():
        with opened(file) as content:
            content.read(2000)
            os.truncate(file, 2100)
            content.read(500)

    assert refusal(look) == f"{file}: is cut short, it has 2100 bytes. Use another checkpoint."


def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path, refusal):
    (tmp_path / "link").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "folder", "pipe"):
        text = refusal(read_bytes, tmp_path / name)
        assert text == f"{tmp_path / name}: is no regular file. Remove it, or use another checkpoint."
    assert refusal(read_bytes, tmp_path / "no").endswith("/no: is missing. Use another checkpoint.")
    assert "is no name of a file" in refusal(read_bytes, tmp_path / "a\0b")


def test_a_file_beyond_a_limit_is_not_read(file, monkeypatch, refusal):
    told = f"{file}: is too large, 2560 bytes, over 2559. Use another checkpoint."
    assert refusal(read_bytes, file, max_bytes=2559) == told
    monkeypatch.setattr(os, "sysconf", lambda name: 40)
    check_memory(file, 1600)
    assert refusal(check_memory, file, 1601) == (
        f"{file}: needs more memory than the machine has, 1601 bytes. Use another checkpoint."
    )


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (b"{", "cannot be read as JSON, Expecting property name"),
        (b"", "cannot be read as JSON, Expecting value"),
        (b"\xff", "cannot be read as JSON, 'utf-8' codec can't decode"),
        (b'{"a":1,"a":2}', "cannot be read as JSON, an object has a key twice"),
        (b"[NaN]", "cannot be read as JSON, NaN is no number of JSON"),
        (b"[-Infinity]", "cannot be read as JSON, -Infinity is no number of JSON"),
        (b"[-1e999]", "cannot be read as JSON, a number is too large"),
        (b"[" * 100_000, "cannot be read as JSON, maximum recursion depth"),
        (b"9" * 5000, "cannot be read as JSON, Exceeds the limit"),
        (b"[1,2,3]", "holds more than 3 values"),
    ],
)
def test_what_is_no_plain_json_is_refused(text, what, tmp_path, refusal):
    assert refusal(parse_json, text, tmp_path / "x", 3 if what.startswith("holds") else 2**20).startswith(
        f"{tmp_path / 'x'}: {what}"
    )


@pytest.mark.parametrize("value", [None, 1, "a,b[{", [], {}, [[], [1, 2]], {"a": {"b": [1, 2, {}]}, "c": None}])
def test_values_are_never_counted_too_low(value):
    def number(inner):
        inside = inner.values() if isinstance(inner, dict) else inner if isinstance(inner, list) else ()
        return 1 + sum(number(item) for item in inside)

    assert count_values(json.dumps(value).encode()) >= number(value)


def test_names_of_others_are_escaped_and_cut():
    assert printable("a\x1b[2J\n\ud800é") == "a\\x1b[2J\\n\\ud800é"
    assert len(printable("a" * 10_000)) == 601
    assert len(str(InvalidCheckpointError("x" * 10_000, "y" * 10_000))) < 1300


def test_an_error_goes_through_a_pipe_between_processes(tmp_path):
    error = InvalidCheckpointError(tmp_path / "a", "is wrong", "Mend it.")
    again = pickle.loads(pickle.dumps(error))
    assert (again.file, again.what, str(again)) == (tmp_path / "a", "is wrong", f"{tmp_path / 'a'}: is wrong. Mend it.")
