"""Builds `rpmsgx.remoteproc._native`: the remote of csrc for this machine (cffi, API mode).

Run from the root of the source tree, by setup.py (`cffi_modules`).
"""

import hashlib
import os

from cffi import FFI

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SOURCES = ["native/native.c", "remote/remote.c", "apps/sample.c", "apps/flood.c", "apps/crash.c"]


def compiled() -> list[str]:
    """All files of csrc that are compiled in."""
    csrc = os.path.join(ROOT, "csrc")
    headers = [
        os.path.relpath(os.path.join(directory, file), csrc).replace(os.sep, "/")
        for directory, _, files in os.walk(csrc)
        for file in files
        if file.endswith(".h") and os.path.basename(directory) != "firmware"
    ]
    return sorted([*SOURCES, *headers])


def sources_sha256() -> str:
    """sha256 over all that is compiled in: each file's name, length and bytes, in order of name."""
    digest = hashlib.sha256()
    for name in compiled():
        with open(os.path.join(ROOT, "csrc", name), "rb") as file:
            data = file.read()
        digest.update(f"{name}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()


def declarations() -> str:
    with open(os.path.join(ROOT, "csrc", "native", "native.h"), encoding="utf-8") as file:
        return file.read().partition("/* cffi reads from here */")[2].partition("/* cffi reads to here */")[0]


ffibuilder = FFI()
ffibuilder.cdef(declarations())
ffibuilder.set_source(
    "rpmsgx.remoteproc._native",
    '#include "native/native.h"',
    sources=[f"csrc/{name}" for name in SOURCES],
    depends=[f"csrc/{name}" for name in compiled()],
    include_dirs=["csrc"],
    define_macros=[("RPX_SOURCES_SHA256", f'"{sources_sha256()}"')],
    extra_compile_args=["-std=c11", "-O2"],
)
