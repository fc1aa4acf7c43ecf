"""One program for every link and every board: `python hello.py BOARD.toml`, `... PLATFORM` or `... URL`.

The other end echoes at "rpmsg-client-sample", as the firmware "sample" does.
"""

import sys

import rpmsgx

where = sys.argv[1]
host: rpmsgx.Bus | rpmsgx.Remoteproc
if where.endswith(".toml"):
    host = rpmsgx.Remoteproc(board=where)  # boots the core, or attaches to one that runs
elif ":" in where:
    host = rpmsgx.open(where, role="driver")
else:
    host = rpmsgx.Remoteproc(platform=where, firmware="sample")

with host, host.open("rpmsg-client-sample", timeout=20) as endpoint:
    for number in range(1000):
        message = b"hello %d " % number * (1 + number % 30)
        endpoint.send(message, timeout=20)
        if endpoint.recv(timeout=20) != message:
            sys.exit(f"message {number} came back as another")
    print("1000 messages there and back over", where)
