"""Where a database may lie: on a file system whose locks hold."""

from __future__ import annotations

import os
from pathlib import Path

from oyez.errors import StoreRefused

_NETWORK = frozenset(
    (
        "nfs nfs4 cifs smb smb2 smb3 smbfs 9p afs ceph glusterfs lustre gpfs ncpfs ocfs2 gfs2 "
        "fuse.sshfs fuse.s3fs fuse.glusterfs fuse.cephfs fuse.gcsfuse fuse.rclone vboxsf drvfs"
    ).split()
)


def refuse_network_file_system(folder: Path, mounts: str = "/proc/self/mountinfo") -> None:
    """Raise StoreRefused when the folder lies on a file system whose locks can't be trusted."""
    try:
        lines = os.fsdecode(Path(mounts).read_bytes()).splitlines()
    except OSError:
        return
    target = folder.resolve()
    best, kind = Path("/"), ""
    for line in lines:
        fields, _, rest = line.partition(" - ")
        escaped = os.fsencode(fields.split(" ")[4])
        point = Path(os.fsdecode(escaped.decode("unicode_escape").encode("latin-1")))
        if (target == point or point in target.parents) and len(point.parts) >= len(best.parts):
            best, kind = point, rest.split(" ")[0]
    if kind in _NETWORK:
        raise StoreRefused(
            f"{folder} is on a network file system ({kind}), where SQLite's locks can't be "
            "trusted: use a local folder, or PostgreSQL"
        )
