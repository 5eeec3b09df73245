"""Which file system the file of an outbox is on, and which are refused."""

import os
from pathlib import Path

import pytest
from storing import NewOutbox, by_id, put_steps
from support import log_lines

from otel_step_hook.delivery import filesystem

REFUSED = (
    "is on a network file system ({}), where SQLite loses data: choose one on a local disk; meanwhile webhooks are "
    "sent from memory, and what waits there may be lost"
)


def mounted(monkeypatch: pytest.MonkeyPatch, directory: Path, kind: str, *, device: int | None = None) -> None:
    """Let the system's table of mounts say that *directory* is on a file system of this *kind*."""
    # A real network file system needs a server, and rights that tests do not have.
    found = directory.stat().st_dev if device is None else device
    table = directory / "mountinfo"
    table.write_text(
        "22 1 0:999 / / rw shared:1 - nfs4 server:/ rw\n"
        f"36 22 {os.major(found)}:{os.minor(found)} / /mnt rw,noatime shared:1 master:2 - {kind} server:/export rw\n"
    )
    monkeypatch.setattr(filesystem, "_MOUNTS", table)


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs"])
def test_a_network_file_system_is_refused(
    path: Path, new_outbox: NewOutbox, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """It is named, no database is made there, and deliveries go on from memory."""
    mounted(monkeypatch, path.parent, kind)
    store = new_outbox()
    put_steps(store, "step")
    assert set(by_id(store.claim(9))) == {"step"}
    assert not path.exists()
    assert log_lines(caplog) == [f"ERROR the outbox {path} {REFUSED.format(kind)}"]


def test_other_file_systems_are_used(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the same table that the path is not on, local ones, and those of systems without a table."""
    for kind, device in (("ext4", None), ("fuse.other", None), ("nfs4", 12_345)):
        mounted(monkeypatch, path.parent, kind, device=device)
        assert filesystem.network_type(path) == ""
    monkeypatch.setattr(filesystem, "_MOUNTS", path / "nowhere")
    assert filesystem.network_type(path) == ""
    assert filesystem.network_type(path / "missing" / "steps.db") == ""
