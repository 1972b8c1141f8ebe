"""With OYEZ_COMPILED=1 in the environment, the wheel's hot modules are compiled by mypyc.

Pure Python stays the source, and what works everywhere: see docs/guide/performance.md. Compiling
takes a C compiler, and mypy as `requirements/dev.txt` pins it: nothing is installed for it. With
OYEZ_COMPILED_LEVEL=0 it is quicker, and what is made slower: for tests.
"""

import os
import platform
import sys

from setuptools import setup

COMPILED = (
    "access",
    "apart",
    "app",
    "edge",
    "exchange",
    "flows/begin",
    "forward",
    "heads",
    "health",
    "http1",
    "identity",
    "limits/buckets",
    "limits/counted",
    "limits/rates",
    "limits/shedding",
    "permission",
    "routing",
    "sessions",
    "upstream",
)
"""The modules of `oyez.gateway` that every request runs through, or that extend one of those."""


def compiled() -> dict[str, object]:
    """Return what makes the wheel one for this Python, processor and C library.

    It needs no library but that, so every system that has it as new will do (PEP 600).
    """
    from mypyc.build import mypycify

    sources = [f"src/oyez/gateway/{name}.py" for name in COMPILED]
    # Without debug_level the bytes would name the folder that they were built in.
    modules = mypycify(
        ["--follow-imports=silent", "--ignore-missing-imports", *sources],
        opt_level=os.environ.get("OYEZ_COMPILED_LEVEL", "2"),
        debug_level="0",
        group_name="oyez_gateway",
    )
    made: dict[str, object] = {"ext_modules": modules}
    library, version = platform.libc_ver()
    if library == "glibc":
        tag = f"manylinux_{version.replace('.', '_')}_{platform.machine()}"
        made["options"] = {"bdist_wheel": {"plat_name": tag}}
    return made


wanted = os.environ.get("OYEZ_COMPILED") == "1" and {"bdist_wheel", "build_ext"} & {*sys.argv}
setup(**(compiled() if wanted else {}))
