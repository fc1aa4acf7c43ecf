"""More than 496 bytes, in three ways: larger buffers, a stream of fragments, memory beside the link."""

import struct

import rpmsgx

options = {"buffer_size": 4096, "bulk": 1 << 20}  # for both ends of virtual:, elsewhere for who makes the memory
host = rpmsgx.open("virtual:camera", role="driver", **options)
remote = rpmsgx.open("virtual:camera", role="device", **options)
with host, remote:
    camera = remote.create_endpoint("camera")
    viewer = host.open("camera", timeout=1)
    viewer.send(b"p" * viewer.mtu)
    print("one message of", len(camera.recv(timeout=1)))

    image = bytes(range(256)) * 1000
    bulk = remote.carveout("bulk")
    bulk.at(bulk.da + 4096, len(image))[:] = image
    camera.send(struct.pack("=QI", bulk.da + 4096, len(image)))
    address, size = struct.unpack("=QI", viewer.recv(timeout=1))
    print("in bulk", size, host.carveout("bulk").at(address, size) == image)

    with rpmsgx.Stream(viewer) as there, rpmsgx.Stream(camera) as here:
        for stream in (there, here, there):  # in one thread, each has to be asked to look; or give each its thread
            try:
                stream.recv(timeout=0)
            except rpmsgx.Timeout:
                pass
        here.send(image, timeout=1)
        print("in fragments", there.recv(timeout=1) == image)
