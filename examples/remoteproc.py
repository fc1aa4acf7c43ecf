"""Boot a firmware on an emulated Cortex-M4, talk to it, read its trace."""

import rpmsgx

with rpmsgx.Remoteproc(platform="unicorn", firmware="sample") as rproc:  # boots an emulated Cortex-M4
    with rproc.open("rpmsg-client-sample", timeout=5) as endpoint:  # waits for its announcement
        for word in (b"hello", b"world"):
            endpoint.send(word)
            print(endpoint.recv(timeout=1))
    print(rproc.trace())  # what the firmware wrote
