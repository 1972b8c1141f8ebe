"""What is left out of images, and what is compiled in them."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from oyez.deploy import slim

CORE = Path(str(msgspec._core.__file__))


def installed(folder: Path, content: dict[str, str]) -> Path:
    """Return the folder with these files, and msgspec's real extension module."""
    for name, text in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    shutil.copytree(CORE.parent, folder / "msgspec", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def compiled(source: Path) -> Path:
    return Path(importlib.util.cache_from_source(str(source)))


def with_symbols(library: Path) -> bytes:
    """Return a library as it is built without `strip`: with more behind what is loaded."""
    return library.read_bytes() + b"symbol\0" * 1000


def test_what_no_process_reads_is_left_out_and_the_rest_works(tmp_path: Path) -> None:
    unread = ("bin/pip", "apsw/tests/all.py", "loop/loop.pyx", "loop/loop.pxd")
    kept = ("loop/__init__.py", "loop/loop.h", "loop/loop.pyi", "loop/tests/__init__.py")
    folder = installed(tmp_path, dict.fromkeys((*unread, *kept), ""))
    library = folder / "msgspec" / CORE.name
    library.write_bytes(with_symbols(library))
    library.chmod(0o755)
    slim.packages(folder)
    assert [name for name in unread if (folder / name).exists()] == []
    assert [name for name in kept if not (folder / name).exists()] == []
    assert library.stat().st_size < CORE.stat().st_size
    assert library.stat().st_mode & 0o777 == 0o755
    code = "import msgspec; print(msgspec.__file__, msgspec.json.decode(b'[1]', type=list[int]))"
    ran = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.split() == [str(folder / "msgspec" / "__init__.py"), "[1]"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"INPUT(libx.so.1)",
        b"\x7fELF\x02\x01",
        b"\x7fELF\x01\x01" + bytes(100),
        b"\x7fELF\x02\x01" + bytes(100),
        b"\x7fELF\x02\x01" + b"\xff" * 100,
    ],
)
def test_what_is_no_library_stays_as_it_is(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "libx.so"
    file.write_bytes(content)
    slim.strip(file)
    assert file.read_bytes() == content


def test_all_that_is_loaded_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "libx.so.1"
    file.write_bytes(with_symbols(CORE))
    slim.strip(file)
    once = file.read_bytes()
    original = CORE.read_bytes()
    # Behind the head, where the table of sections was named, nothing differs.
    assert once[slim._HEAD.size :] == original[slim._HEAD.size : len(once)]
    slim.strip(file)
    assert file.read_bytes() == once


def test_modules_are_compiled_once_for_all_starts(tmp_path: Path) -> None:
    names = ("part/service.py", "pygments/lexer.py", "part/tests/test_service.py", "contest/it.py")
    folder = installed(tmp_path, dict.fromkeys(names, "answer = 42\n"))
    slim.packages(folder)
    made = [name for name in names if compiled(folder / name).exists()]
    assert made == ["part/service.py", "contest/it.py"]
    # By a hash that nobody checks, and without a time.
    assert compiled(folder / names[0]).read_bytes()[4:8] == b"\x01\x00\x00\x00"


def test_code_that_is_none_ends_the_build(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "service.py").write_text("def broken(:\n")
    with pytest.raises(SystemExit):
        slim.code(tmp_path)
    assert "service.py" in capsys.readouterr().out
    slim.packages(tmp_path)  # a template of some package, perhaps


def test_the_interpreter_is_compiled_and_has_no_installers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library, packages = tmp_path / "lib", tmp_path / "lib" / "site-packages"
    for name in ("json/decoder.py", "encodings/utf_8.py", "encodings/cp037.py", "test/big.py"):
        (library / name).parent.mkdir(parents=True, exist_ok=True)
        (library / name).write_text("")
    for name in ("pip", "pip-25.0.dist-info", "setuptools", "mine"):
        (packages / name).mkdir(parents=True)
    places = {"stdlib": str(library), "purelib": str(packages)}
    monkeypatch.setattr("sysconfig.get_path", places.__getitem__)
    slim.interpreter()
    assert [path.name for path in packages.iterdir()] == ["mine"]
    made = sorted(path.name.partition(".")[0] for path in library.rglob("*.pyc"))
    assert made == ["decoder", "utf_8"]
