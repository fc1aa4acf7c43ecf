"""Both ends of a link in one process: a host and an echo on the remote's side."""

import threading

import rpmsgx

with rpmsgx.open("virtual:echo", role="device") as remote, rpmsgx.open("virtual:echo", role="driver") as host:
    service = remote.create_endpoint("echo")  # announced to the host

    def echo() -> None:
        for message in service:  # ends when the endpoint is closed, or the host goes
            print("remote got ", message)
            service.send(message.upper())

    thread = threading.Thread(target=echo)
    thread.start()
    with host.open("echo", timeout=5) as endpoint:
        for word in (b"hello", b"rpmsg"):
            endpoint.send(word)
            print("host got   ", endpoint.recv(timeout=5))
    service.close()
    thread.join()
