"""A file written through `replacing` is the old one or the new one, never something between."""

import hashlib
import os

import pytest

from trtkit import files


def test_the_new_file_takes_the_place_of_the_old_one(tmp_path):
    path = tmp_path / "table.json"
    path.write_text("old")
    with files.replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old" and temporary.parent == path.parent
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "table.json"
    path.write_text("old")
    with pytest.raises(type(error)), files.replacing(path) as temporary:
        temporary.write_text("ne")
        raise error
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_the_bytes_are_on_the_disk_before_they_get_the_name(tmp_path, monkeypatch):
    path, synced = tmp_path / "a.plan", []

    def fsync(descriptor):
        synced.append((os.fstat(descriptor).st_ino, path.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    with files.replacing(path) as temporary:
        temporary.write_bytes(b"engine")
        assert temporary.name == f"a.plan.{os.getpid()}.tmp"        # whoever cleans up knows whose it is
    assert synced == [(path.stat().st_ino, False)]


def test_sha256_is_that_of_the_bytes(tmp_path):
    (tmp_path / "x").write_bytes(b"trtkit")
    assert files.sha256(tmp_path / "x") == hashlib.sha256(b"trtkit").hexdigest()
