"""Other Cython code can cimport rpmsgx's classes, with the headers that are installed beside them."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import rpmsgx

MODULE = """
    # cython: language_level=3
    from rpmsgx.rpmsg.bus cimport Bus, Endpoint
    from rpmsgx.rpx cimport RPX_HDR, rpx_idx_diff

    def look(Endpoint endpoint):
        cdef Bus bus = endpoint.bus
        return bus.up, endpoint.src, <int>endpoint.count, <int>RPX_HDR, <int>rpx_idx_diff(1, 65535)
"""
SETUP = """
    import rpmsgx
    from Cython.Build import cythonize
    from setuptools import Extension, setup
    extension = Extension("looker", ["looker.pyx"], include_dirs=[rpmsgx.get_include()])
    setup(name="looker", ext_modules=cythonize([extension]), script_args=["-q", "build_ext", "--inplace"])
"""


def test_cimport(tmp_path: Path) -> None:
    pytest.importorskip("Cython")
    (tmp_path / "looker.pyx").write_text(textwrap.dedent(MODULE))
    (tmp_path / "setup.py").write_text(textwrap.dedent(SETUP))
    root = str(Path(rpmsgx.__file__).parent.parent)
    env = os.environ | {"PYTHONPATH": root}
    command = [sys.executable, "setup.py"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    sys.path.insert(0, str(tmp_path))
    try:
        import looker  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(tmp_path))
    with rpmsgx.open("virtual:cimport", "driver") as bus:
        assert looker.look(bus.create_endpoint(src=77)) == (True, 77, 0, 16, 2)
    with pytest.raises(TypeError):
        looker.look(bus)


def test_headers_are_where_get_include_says() -> None:
    include = Path(rpmsgx.get_include())
    assert (include / "rpx.h").is_file() and (include / "rpx" / "split.h").is_file()
