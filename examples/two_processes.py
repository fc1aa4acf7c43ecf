"""Two processes that share a file: the remote's end in a child, the host's here."""

import subprocess
import sys
import tempfile

import rpmsgx


def remote(url: str) -> None:
    with rpmsgx.open(url, role="device") as bus, bus.create_endpoint("adder") as service:
        while (message := service.recv(timeout=10)) != b"stop":
            service.send(b"%d" % sum(map(int, message.split())))


def host(url: str) -> None:
    child = subprocess.Popen([sys.executable, __file__, url])  # either may come first
    with rpmsgx.open(url, role="driver") as bus, bus.open("adder", timeout=10) as endpoint:
        for numbers in (b"1 2 3", b"40 2"):
            endpoint.send(numbers)
            print(numbers.decode(), "make", endpoint.recv(timeout=10).decode())
        endpoint.send(b"stop")
    print("child ended with status", child.wait(10))


if len(sys.argv) > 1:
    remote(sys.argv[1])
else:
    with tempfile.TemporaryDirectory() as directory:
        host(f"file:{directory}/link")
