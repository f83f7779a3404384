"""Data folders, atomic writes and downloads."""

import hashlib
import os
import socket
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest

from nadkit import files
from nadkit.files import DataError, atomic_write, fetch, sha256

CONTENT = bytes(range(256)) * 1000
CHECKSUM = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of its own, no NADKIT_DATA, and no proxy between the tests and their server."""
    monkeypatch.delenv("NADKIT_DATA", raising=False)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(files, "user_cache_path", lambda name, **_: tmp_path / "cache" / name)
    return tmp_path / "cache" / "nadkit"


@pytest.fixture
def server() -> Iterator[str]:
    """The address of a server that sends CONTENT, whole or not, for /whole, /broken, /chunked and /silent."""
    done = Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/silent":
                done.wait()
                return
            known = self.path in ("/whole", "/broken", "/chunked")
            self.send_response(200 if known else 404)
            if self.path != "/chunked":
                self.send_header("Content-Length", str(len(CONTENT) if known else 0))
            self.end_headers()
            if known:
                self.wfile.write(CONTENT[:1000] if self.path == "/broken" else CONTENT)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}).start()
        yield f"http://127.0.0.1:{running.server_port}"
        done.set()
        running.shutdown()


# Data folders


def test_a_folder_is_held_by_one_at_a_time(tmp_path):
    folder = tmp_path / "new" / "one"
    first, second, third = (files.held(folder, KeyError(name)) for name in ("first", "second", "third"))
    with first, pytest.raises(KeyError, match="second"), second:
        raise AssertionError("it was not held")
    with third:
        assert folder.is_dir()


def test_data_folders_are_the_chosen_one_then_the_cache(tmp_path, cache, monkeypatch):
    assert files.data_folders() == [cache]
    monkeypatch.setenv("NADKIT_DATA", str(tmp_path / "mine"))
    assert files.data_folders() == [tmp_path / "mine", cache]


def test_home_is_expanded_in_the_chosen_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NADKIT_DATA", "~/data")
    assert files.data_folders()[0] == tmp_path / "data"


def test_find_prefers_the_chosen_folder_and_falls_back_to_the_cache(tmp_path, cache, monkeypatch):
    monkeypatch.setenv("NADKIT_DATA", str(tmp_path / "mine"))
    assert files.find("a/b.txt") is None
    for folder in (cache, tmp_path / "mine"):
        (folder / "a").mkdir(parents=True)
        (folder / "a" / "b.txt").write_text("b")
        assert files.find("a/b.txt") == folder / "a" / "b.txt"


def test_folder_with_wants_every_file_in_one_folder(tmp_path, cache, monkeypatch):
    monkeypatch.setenv("NADKIT_DATA", str(tmp_path))
    cache.mkdir(parents=True)
    (tmp_path / "one").touch()
    (cache / "two").touch()
    assert files.folder_with(["one", "two"]) is None
    (cache / "one").touch()
    assert files.folder_with(["one", "two"]) == cache


def test_search_is_described_with_files_and_folders(tmp_path, cache, monkeypatch):
    monkeypatch.setenv("NADKIT_DATA", str(tmp_path))
    expected = f"looked for a, b in {tmp_path} and in {cache} (no such folder)"
    assert files.describe_search(["a", "b"]) == expected


def test_downloads_go_to_the_chosen_folder_which_is_made(tmp_path, monkeypatch):
    monkeypatch.setenv("NADKIT_DATA", str(tmp_path / "new" / "data"))
    assert files.download_folder() == tmp_path / "new" / "data"
    assert (tmp_path / "new" / "data").is_dir()


def test_downloads_go_to_the_cache_if_the_chosen_folder_is_read_only(tmp_path, cache, monkeypatch):
    monkeypatch.setenv("NADKIT_DATA", str(tmp_path / "mine"))
    # Not chmod, because the tests may run as root, whom it does not stop.
    monkeypatch.setattr(files.os, "access", lambda folder, mode: folder != tmp_path / "mine")
    assert files.download_folder() == cache


def test_downloads_go_to_the_cache_if_the_chosen_folder_cannot_be_made(tmp_path, cache, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("NADKIT_DATA", str(tmp_path / "file" / "data"))
    assert files.download_folder() == cache


def test_no_folder_to_write_to_names_them_and_the_remedy(monkeypatch, cache):
    monkeypatch.setattr(files.os, "access", lambda folder, mode: False)
    with pytest.raises(DataError, match=f"cannot write to {cache}; set NADKIT_DATA"):
        files.download_folder()


# Atomic writes


def test_atomic_write_makes_folders_and_leaves_only_the_file(tmp_path):
    with atomic_write(tmp_path / "a" / "b.txt") as temporary:
        temporary.write_text("new")
        assert not (tmp_path / "a" / "b.txt").exists()
        inode = temporary.stat().st_ino
    assert (tmp_path / "a" / "b.txt").stat().st_ino == inode, "a copy would be seen half-written"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.txt"]
    assert (tmp_path / "a" / "b.txt").read_text() == "new"


def test_atomic_write_keeps_the_suffix_that_np_save_would_append(tmp_path):
    with atomic_write(tmp_path / "x.npy") as temporary:
        np.save(temporary, np.arange(3))
    assert np.load(tmp_path / "x.npy").tolist() == [0, 1, 2]


def test_atomic_write_gives_the_usual_permissions(tmp_path):
    (tmp_path / "usual").touch()
    with atomic_write(tmp_path / "file") as temporary:
        temporary.touch()
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write_half() -> None:
        with atomic_write(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device without space")
def test_a_full_disk_names_the_file_and_the_folder(tmp_path):
    def write() -> None:
        with atomic_write(tmp_path / "file.bin") as temporary:
            temporary.symlink_to("/dev/full")
            temporary.write_bytes(CONTENT)

    with pytest.raises(DataError, match=f"cannot write file.bin in {tmp_path}: No space left on device; make room"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(DataError, match=f"cannot write x.txt in {tmp_path / 'file' / 'folder'}: Not a directory"),
        atomic_write(tmp_path / "file" / "folder" / "x.txt"),
    ):
        pass


def test_other_errors_in_the_block_are_not_disguised(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "x.txt"):
        (tmp_path / "elsewhere" / "y").read_text()


# Downloads


def test_sha256_is_that_of_the_content(tmp_path):
    (tmp_path / "file").write_bytes(CONTENT)
    assert sha256(tmp_path / "file") == CHECKSUM


@pytest.mark.parametrize("kind", ["whole", "chunked"])
def test_fetch_writes_what_the_server_sends(server, tmp_path, kind):
    path = fetch(f"{server}/{kind}", tmp_path / "a" / "file", CHECKSUM)
    assert path == tmp_path / "a" / "file"
    assert path.read_bytes() == CONTENT


def test_fetch_shows_a_bar_unless_told_not_to(server, tmp_path, capsys):
    fetch(f"{server}/whole", tmp_path / "file.bin", progress=False)
    assert capsys.readouterr().err == ""
    fetch(f"{server}/whole", tmp_path / "file.bin")
    assert "file.bin: 100%" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "checksum", "problem"),
    [
        ("broken", None, "broke off after 1,000 of 256,000 bytes"),
        ("whole", "0" * 64, f"has the SHA-256 {CHECKSUM}, expected 0000"),
        ("absent", None, "HTTP Error 404"),
    ],
)
def test_a_bad_download_says_what_to_do_and_leaves_what_was_there(server, tmp_path, kind, checksum, problem):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(DataError, match=problem) as caught:
        fetch(f"{server}/{kind}", path, checksum, progress=False)
    assert f"{server}/{kind}" in str(caught.value)
    assert f"fetch it by hand and put it at {path}" in str(caught.value)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_unreachable_server_says_what_to_do(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(DataError, match=rf"could not download http://127.0.0.1:{port}/x: .*try again"):
        fetch(f"http://127.0.0.1:{port}/x", tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_a_silent_server_is_given_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "TIMEOUT", 0.1)
    start = time.monotonic()
    with pytest.raises(DataError, match="timed out"):
        fetch(f"{server}/silent", tmp_path / "x")
    assert time.monotonic() - start < 5


def test_a_refusal_does_not_keep_the_connection(server, tmp_path):
    with pytest.raises(DataError) as caught:
        fetch(f"{server}/absent", tmp_path / "x")
    assert caught.value.__cause__.closed


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device without space")
def test_a_full_disk_is_told_from_a_bad_network(server, tmp_path, monkeypatch):
    stream = files._stream

    def to_full_disk(url: str, target: Path, *rest: object) -> int | None:
        os.symlink("/dev/full", target)
        return stream(url, target, *rest)

    monkeypatch.setattr(files, "_stream", to_full_disk)
    with pytest.raises(DataError, match=r"cannot write file in .* No space left"):
        fetch(f"{server}/whole", tmp_path / "file", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_killed_processes_are_removed_and_nothing_else(tmp_path):
    names = ["a-0123abcd.json", ".hidden.json", ".lock", ".a.checkpoints", "a.json"]
    for name in names:
        (tmp_path / name).write_text("kept")
    with files.atomic_write(tmp_path / "b.json") as part:
        part.write_text("half")
        files.remove_leftovers(tmp_path)
        assert not part.exists()
        part.write_text("whole")
    with files.atomic_write(tmp_path / "no_suffix") as part:
        part.write_text("half")
        files.remove_leftovers(tmp_path)
        part.write_text("whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*names, "b.json", "no_suffix"])
