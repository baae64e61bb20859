"""Files are whole or not there: processes that are killed, and disks that are full."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lightning_attngrad.reporting import files
from lightning_attngrad.reporting.files import write_atomically

#: Runs the file alone: importing the package, and torch with it, would take seconds in every process.
LOADS = """
import sys
from pathlib import Path
from runpy import run_path
write_atomically = run_path(sys.argv[2])["write_atomically"]
"""

#: Writes two contents in turn, for ever.
WRITES_IN_A_LOOP = f"""{LOADS}
import json
from itertools import count
path = Path(sys.argv[1])
contents = [json.dumps({{"writer": letter, "rows": [letter * 99] * 40_000}}).encode() for letter in "ab"]
for turn in count():
    write_atomically(path, contents[turn % 2])
    if turn == 0:
        print("first", flush=True)
"""

#: Writes 4 MiB where no file may grow beyond 1 MiB.
WRITES_TOO_MUCH = f"""{LOADS}
import errno, resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
try:
    write_atomically(Path(sys.argv[1]), bytes(2**22))
except OSError as error:
    print(errno.errorcode[error.errno])
"""


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_new_files_replace_old_ones_and_folders_are_made(tmp_path):
    path = tmp_path / "attngrad" / "audit" / "epoch-3.json"
    for content in (b"one", b"", b"a longer one" * 1000, b"two"):
        write_atomically(path, content)
        assert path.read_bytes() == content
        assert names(tmp_path) == ["attngrad/audit/epoch-3.json"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_killed_process_leaves_no_part_of_a_file(tmp_path):
    path = tmp_path / "report.json"
    for delay in (0.0, 0.003, 0.01, 0.02, 0.035, 0.06, 0.1, 0.15):
        path.unlink(missing_ok=True)
        with subprocess.Popen(
            [sys.executable, "-c", WRITES_IN_A_LOOP, path, files.__file__], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout.readline() == "first\n"
            time.sleep(delay)
            assert process.poll() is None
            process.kill()
        assert process.returncode < 0
        found = json.loads(path.read_bytes())
        assert found["rows"] == [found["writer"] * 99] * 40_000
        assert set(names(tmp_path)) <= {"report.json", f".report.json.{process.pid}"}
        (tmp_path / f".report.json.{process.pid}").unlink(missing_ok=True)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on the size of files")
@pytest.mark.parametrize("old", [b'{"epoch": 3}', None])
def test_a_write_that_fails_half_way_leaves_the_old_file_alone(tmp_path, old):
    path = tmp_path / "report.json"
    if old is not None:
        path.write_bytes(old)
    done = subprocess.run(
        [sys.executable, "-c", WRITES_TOO_MUCH, path, files.__file__],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "EFBIG\n", done.stderr
    assert names(tmp_path) == ([] if old is None else ["report.json"])
    assert old is None or path.read_bytes() == old


@pytest.mark.parametrize("error", [OSError("Input/output error"), KeyboardInterrupt()])
def test_content_reaches_the_disk_before_the_name_does(tmp_path, monkeypatch, error):
    path = tmp_path / "report.json"
    write_atomically(path, b"old")
    synchronised = []

    def broken_disk(descriptor: int) -> None:
        synchronised.append(os.fstat(descriptor).st_size)
        raise error

    monkeypatch.setattr(os, "fsync", broken_disk)
    with pytest.raises(type(error)):
        write_atomically(path, b"new and longer")
    assert synchronised == [len(b"new and longer")]
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["report.json"]


def test_the_hidden_file_stands_in_the_same_folder_and_is_of_this_process(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(os, "fsync", lambda _: seen.extend(names(tmp_path)))
    write_atomically(tmp_path / "report.json", b"content")
    assert seen == [f".report.json.{os.getpid()}"]


def test_a_name_that_is_a_folder_is_refused_and_nothing_is_left(tmp_path):
    (tmp_path / "report.json").mkdir()
    with pytest.raises(OSError, match="report"):
        write_atomically(tmp_path / "report.json", b"content")
    assert names(tmp_path) == []
