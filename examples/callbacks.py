"""Callbacks: a host that learns of services as they come, and a remote that answers from poll()."""

import rpmsgx


def double(endpoint: rpmsgx.Endpoint, data: bytes, src: int) -> None:
    endpoint.send_to(str(2 * int(data)).encode(), src)


host = rpmsgx.open("virtual:doubler", role="driver")
remote = rpmsgx.open("virtual:doubler", role="device")
with host, remote:
    host.on_new_channel = lambda channel: print("there is", channel.name)
    host.on_removed = lambda channel: print("gone is", channel.name)
    service = remote.create_endpoint("doubler", callback=double)
    host.poll(timeout=5)  # the announcement
    endpoint = host.open("doubler", timeout=5)
    for number in (4, 21):
        endpoint.send(b"%d" % number)
        remote.poll(timeout=5)  # runs double(); in a program of its own, a loop
        print(number, "doubled is", endpoint.recv(timeout=5).decode())
    service.close()
    host.poll(timeout=5)
