"""Many conversations in one event loop: no threads, every wait an await."""

import asyncio

from rpmsgx import aio


async def echo(endpoint: aio.Endpoint) -> None:
    async for message in endpoint:
        await endpoint.send(message[::-1])


async def ask(bus: aio.Bus, name: str) -> None:
    endpoint = await bus.open(name, timeout=5)
    await endpoint.send(name.encode())
    print(name, "answers", await endpoint.recv(timeout=5))


async def main() -> None:
    names = ["red", "green", "blue"]
    url = "virtual:echo"
    async with aio.open(url, role="driver") as host, aio.open(url, role="device") as remote:
        services = [asyncio.create_task(echo(remote.create_endpoint(name))) for name in names]
        await asyncio.gather(*(ask(host, name) for name in names))
    await asyncio.gather(*services)  # closing the bus ended them


asyncio.run(main())
