"""The extensions; everything else stands in pyproject.toml.

Build switches, read from the environment:
    RPMSGX_SANITIZE=address,undefined | thread    instrument the extensions (build in a tree of its own)
    RPMSGX_COVERAGE=1                             line tracing for coverage's Cython plugin
    RPMSGX_DEBUG=1                                -O0, debug information, annotated HTML beside each .pyx
"""

import os

from Cython.Build import cythonize
from setuptools import Extension, setup

sanitize = os.environ.get("RPMSGX_SANITIZE", "")
coverage = os.environ.get("RPMSGX_COVERAGE") == "1"
debug = os.environ.get("RPMSGX_DEBUG") == "1"

compile_args = ["-std=c11", "-O0" if debug else "-O3"]
link_args = []
macros: list[tuple[str, str | None]] = []
if debug or sanitize:
    compile_args += ["-g", "-fno-omit-frame-pointer"]
if sanitize:
    compile_args.append(f"-fsanitize={sanitize}")
    link_args.append(f"-fsanitize={sanitize}")
if coverage:
    macros.append(("CYTHON_TRACE", "1"))

headers = [os.path.join(d, f) for d, _, files in os.walk("csrc") for f in files if f.endswith(".h")]


def extension(name: str) -> Extension:
    return Extension(
        name,
        [name.replace(".", "/") + ".pyx"],
        include_dirs=["csrc"],
        depends=headers,
        define_macros=macros,
        extra_compile_args=compile_args,
        extra_link_args=link_args,
    )


setup(
    ext_modules=cythonize(
        [
            extension(name)
            for name in (
                "rpmsgx.memory.guard",
                "rpmsgx.notify.register",
                "rpmsgx.virtio.ring",
                "rpmsgx.virtio.packed",
                "rpmsgx.rpmsg.bus",
            )
        ],
        compiler_directives={
            "language_level": 3,
            "binding": True,
            "embedsignature": True,
            "embedsignature.format": "python",
            "boundscheck": False,
            "wraparound": False,
            "cdivision": True,
            "linetrace": coverage,
        },
        annotate=debug,
        force=debug or coverage,  # what a plain build has translated carries neither
    ),
    cffi_modules=["rpmsgx/remoteproc/native_build.py:ffibuilder"],
)
