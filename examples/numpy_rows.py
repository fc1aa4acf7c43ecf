"""Records of a fixed size straight into the rows of an array: no Python object per message."""

import numpy as np

import rpmsgx

record = np.dtype([("time", "<u8"), ("x", "<f4"), ("y", "<f4")])
host = rpmsgx.open("virtual:sensor", role="driver")
remote = rpmsgx.open("virtual:sensor", role="device")
with host, remote:
    sensor = remote.create_endpoint("sensor", dst=0x400)
    sink = host.create_endpoint(src=0x400)

    readings = np.zeros(100, record)
    readings["time"] = np.arange(100)
    readings["x"], readings["y"] = np.cos(readings["time"] / 10), np.sin(readings["time"] / 10)
    sent = sensor.send_many(readings.view(np.uint8).reshape(100, record.itemsize))

    rows = np.zeros((256, record.itemsize), np.uint8)
    count = 0
    while count < sent:
        count += sink.recv_into(rows[count:], timeout=5)
    got = rows[:count].view(record).ravel()
    print(count, "records, equal:", bool((got == readings).all()))
    print("mean radius", np.hypot(got["x"], got["y"]).mean())
