"""Check what a wheel carries: `python tools/check_wheel.py WHEEL`. Exit status 1 with the reason."""

import sys
import zipfile

WANTED = (
    "rpmsgx/py.typed",
    "rpmsgx/rpx.pxd",
    "rpmsgx/rpmsg/bus.pxd",
    "rpmsgx/rpmsg/bus.pyi",
    "rpmsgx/virtio/ring.pxd",
    "rpmsgx/include/rpx.h",
    "rpmsgx/include/rpx/split.h",
    "rpmsgx/firmware/sample-cortex-m4.elf",
    "rpmsgx/firmware/manifest.json",
)
EXTENSIONS = (
    "rpmsgx/rpmsg/bus",
    "rpmsgx/virtio/ring",
    "rpmsgx/virtio/packed",
    "rpmsgx/memory/guard",
    "rpmsgx/notify/register",
    "rpmsgx/remoteproc/_native",
)
SOURCES = (".c", ".pyx", ".pxi", ".html")


def main(path: str) -> int:
    names = zipfile.ZipFile(path).namelist()
    problems = [f"{name} is missing" for name in WANTED if name not in names]
    problems += [
        f"the extension {name} is missing"
        for name in EXTENSIONS
        if not any(found.startswith(f"{name}.") and found.endswith(".so") for found in names)
    ]
    problems += [f"{name} should not be there" for name in names if name.endswith(SOURCES)]
    tops = {name.split("/")[0] for name in names}
    problems += [f"{top}/ should not be there" for top in tops if top != "rpmsgx" and not top.endswith(".dist-info")]
    for problem in problems:
        print(f"{path}: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
