"""Makes an image smaller, and quick to start. Builds of images run it, in the order of its steps:

``packages FOLDER`` where pip installed, ``interpreter`` and ``code FOLDER`` in what is to run.
"""

from __future__ import annotations

import compileall
import os
import re
import shutil
import struct
import sys
import sysconfig
from pathlib import Path
from py_compile import PycInvalidationMode

_INSTALLERS = ("pip", "setuptools", "wheel", "pkg_resources", "_distutils_hack")
_UNREAD = ("bin", "apsw/tests", "apsw/sqlite_extra_binaries")
"""What nothing that Oyez runs reads, in the folder of packages."""
_SOURCES = (".pyx", ".pxd")
"""What extension modules were made of."""
_DORMANT = re.compile(
    r"/(pygments|markdown_it|pycparser|oyez/(testing|simulation|cli/template)|tests?"
    r"|idlelib|lib2to3|pydoc_data|ensurepip|tkinter|turtledemo|distutils"
    r"|site-packages|dist-packages)/"
    r"|/encodings/(?!__init__|aliases|ascii|idna|latin_1|utf_)"
)
"""Modules that no part imports when it starts: from those the interpreter may make its own code."""
_ELF64 = b"\x7fELF\x02\x01"
_HEAD = struct.Struct("<16xHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")


def packages(folder: Path) -> None:
    """Remove from installed packages what no process reads, and compile the rest."""
    for name in _UNREAD:
        shutil.rmtree(folder / name, ignore_errors=True)
    for path in list(folder.rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        if path.suffix in _SOURCES:
            path.unlink()
        elif ".so" in path.suffixes:
            strip(path)
    _compile(folder)


def interpreter() -> None:
    """Compile the library of this Python, of which images hold only sources; remove installers.

    The file system of what runs can't be written, so every start would compile it anew.
    """
    for name in _INSTALLERS:
        for found in Path(sysconfig.get_path("purelib")).glob(f"{name}*"):
            shutil.rmtree(found, ignore_errors=True)
    _compile(Path(sysconfig.get_path("stdlib")))


def code(folder: Path) -> None:
    """Compile the code of a part. Raises SystemExit if some of it can't be."""
    if not _compile(folder):
        raise SystemExit(1)


def strip(file: Path) -> None:
    """Cut off what a shared library has behind all that is ever loaded: symbols for debuggers.

    What is none, or one for a machine of 32 bits, stays as it is.
    """
    content = file.read_bytes()
    if not content.startswith(_ELF64) or len(content) < _HEAD.size:
        return
    head = list(_HEAD.unpack_from(content))
    at, size, count = head[4], head[8], head[9]
    end = at + size * count
    if not count or size < _SEGMENT.size or end > len(content):
        return
    for place in range(at, end, size):
        segment = _SEGMENT.unpack_from(content, place)
        end = max(end, segment[2] + segment[5])
    if end >= len(content):
        return
    head[5] = head[11] = head[12] = 0  # the table of sections, which was behind all that
    stripped = file.with_name(f"{file.name}.stripped")
    stripped.write_bytes(content[:16] + _HEAD.pack(*head)[16:] + content[_HEAD.size : end])
    shutil.copymode(file, stripped)
    os.replace(stripped, file)  # a new file: this process may have loaded the old one


def _compile(folder: Path) -> bool:
    """Compile a folder's modules, by the hashes of their sources: nothing tells when."""
    mode = PycInvalidationMode.UNCHECKED_HASH
    return bool(
        compileall.compile_dir(folder, quiet=1, rx=_DORMANT, invalidation_mode=mode, maxlevels=99)
    )


def main(step: str, *folders: str) -> None:
    """Take one step."""
    if step == "packages":
        packages(*map(Path, folders))
    elif step == "interpreter":
        interpreter()
    else:
        code(*map(Path, folders))


if __name__ == "__main__":
    main(*sys.argv[1:])
