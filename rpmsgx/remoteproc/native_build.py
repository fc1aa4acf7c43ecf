"""Builds `rpmsgx.remoteproc._native`: the remote of csrc for this machine (cffi, API mode).

Run from the root of the source tree, by setup.py (`cffi_modules`).
"""

import hashlib
import os

from cffi import FFI

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SOURCES = ["native/native.c", "remote/remote.c", "apps/sample.c", "apps/flood.c", "apps/crash.c"]


def sources_sha256() -> str:
    """sha256 over all that is compiled in: each file's name, length and bytes, in order of name."""
    csrc = os.path.join(ROOT, "csrc")
    headers = [
        os.path.relpath(os.path.join(directory, file), csrc).replace(os.sep, "/")
        for directory, _, files in os.walk(csrc)
        for file in files
        if file.endswith(".h") and os.path.basename(directory) != "firmware"
    ]
    digest = hashlib.sha256()
    for name in sorted([*SOURCES, *headers]):
        with open(os.path.join(csrc, name), "rb") as file:
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
    include_dirs=["csrc"],
    define_macros=[("RPX_SOURCES_SHA256", f'"{sources_sha256()}"')],
    extra_compile_args=["-std=c11", "-O2"],
)
