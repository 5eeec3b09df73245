"""Which file system a path is on."""

import os
from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")  # Linux alone; elsewhere nothing is known
_NETWORK = ("nfs", "cifs", "smb", "afs", "ceph", "gluster", "lustre", "fuse.sshfs", "fuse.s3", "fuse.gcsfuse")


def network_type(path: Path) -> str:
    """Return the type of the network file system that *path* is on; empty for any other, and where it is not known."""
    try:
        device = path.parent.stat().st_dev
        mounts = _MOUNTS.read_text().splitlines()
    except OSError:
        return ""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in mounts:  # id, parent, major:minor, root, mount point, options…, "-", type, …
        fields = line.split()
        kind = fields[fields.index("-") + 1]
        if fields[2] == wanted and kind.startswith(_NETWORK):
            return kind
    return ""
