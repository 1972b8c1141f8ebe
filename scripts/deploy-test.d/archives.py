"""Images as archives of the OCI, made of files: no engine and no registry take part."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Image:
    """What an image consists of: layers as tar files, and how a container of it begins."""

    layers: Sequence[bytes]
    entrypoint: Sequence[str]
    user: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: str = "/"


def layer(files: Mapping[str, bytes]) -> bytes:
    """Return a layer of executable files, the same bytes for the same files."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, content in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755
            tar.addfile(entry, io.BytesIO(content))
    return made.getvalue()


def archive(path: Path, name: str, image: Image) -> Path:
    """Write an image under a name, as an archive that containerd imports; return the path."""
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "Entrypoint": list(image.entrypoint),
            "User": image.user,
            "WorkingDir": image.folder,
            "Env": [f"{key}={value}" for key, value in image.environment.items()],
        },
        "rootfs": {"type": "layers", "diff_ids": [_digest(each) for each in image.layers]},
    }
    blobs = [json.dumps(config).encode(), *image.layers]
    kinds = ["config.v1+json", *("layer.v1.tar" for _ in image.layers)]
    described = [_described(kind, blob) for kind, blob in zip(kinds, blobs, strict=True)]
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": described[0],
            "layers": described[1:],
        }
    ).encode()
    entry = _described("manifest.v1+json", manifest) | {
        "annotations": {"io.containerd.image.name": name}
    }
    index = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
    files = {f"blobs/sha256/{_digest(blob)[7:]}": blob for blob in [*blobs, manifest]}
    files |= {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": index}
    path.write_bytes(layer(files))
    return path


def _digest(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


def _described(kind: str, blob: bytes) -> dict[str, Any]:
    media = f"application/vnd.oci.image.{kind}"
    return {"mediaType": media, "digest": _digest(blob), "size": len(blob)}
