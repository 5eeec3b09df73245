"""Deliveries per second, and CPU time of each: ours, beside the usual ways and beside the bare libraries."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NamedTuple

import aiohttp
import httpx
from measuring import deliver, timed
from tables import Cell, Table, ratio, spread

ROUNDS = 5
IN_FLIGHT = (1, 8, 32, 100)
_BODY = b'{"step_id": "step-01234567-89ab-cdef-0123-456789abcdef"}'
_HEADERS = {"content-type": "application/json"}
_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # noqa: S105 -- of Standard Webhooks' documentation

_TLS = httpx.create_ssl_context()  # making one takes 30 ms, also for plain HTTP

Post = Callable[[], Awaitable[None]]


class Measured(NamedTuple):
    """Of each round: deliveries per second, and CPU milliseconds per delivery."""

    rates: list[float]
    cpu: list[float]


async def _lanes(posts: list[Post], count: int) -> None:
    numbers = iter(range(count))

    async def lane(post: Post) -> None:
        for _ in numbers:
            await post()

    await asyncio.gather(*(lane(post) for post in posts))


async def _client_per_call(url: str, in_flight: int, count: int) -> None:
    async def post() -> None:
        async with httpx.AsyncClient() as client:
            (await client.post(url, content=_BODY, headers=_HEADERS)).raise_for_status()

    await _lanes([post] * in_flight, count)


async def _shared_client(url: str, in_flight: int, count: int) -> None:
    async with httpx.AsyncClient(limits=httpx.Limits(max_connections=in_flight)) as client:

        async def post() -> None:
            (await client.post(url, content=_BODY, headers=_HEADERS)).raise_for_status()

        await _lanes([post] * in_flight, count)


@contextlib.asynccontextmanager
async def _bare_lane(url: str) -> AsyncIterator[Post]:
    async with httpx.AsyncHTTPTransport(verify=_TLS, limits=httpx.Limits(max_connections=1)) as transport:

        async def post() -> None:
            request = httpx.Request("POST", url, content=_BODY, headers=_HEADERS)
            await (await transport.handle_async_request(request)).aread()

        yield post


async def _bare_httpx(url: str, in_flight: int, count: int) -> None:
    async with contextlib.AsyncExitStack() as stack:
        posts = [await stack.enter_async_context(_bare_lane(url)) for _ in range(in_flight)]
        await _lanes(posts, count)


async def _bare_aiohttp(url: str, in_flight: int, count: int) -> None:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=in_flight)) as session:

        async def post() -> None:
            async with session.post(url, data=_BODY, headers=_HEADERS) as response:
                await response.read()

        await _lanes([post] * in_flight, count)


def _ours(client: str) -> Callable[[str, int, int], None]:
    def run(url: str, in_flight: int, count: int) -> None:
        deliver(url, count, http_client=client, concurrency=in_flight, key="key", signing_secret=_SECRET)

    return run


def _theirs(send: Callable[[str, int, int], Awaitable[None]]) -> Callable[[str, int, int], None]:
    async def main(url: str, in_flight: int, count: int) -> None:
        await send(url, in_flight, count)

    return lambda url, in_flight, count: asyncio.run(main(url, in_flight, count))


# With how many posts each is measured at a time: about a second.
_WAYS: dict[str, tuple[Callable[[str, int, int], None], int]] = {
    "a new httpx.AsyncClient per call": (_theirs(_client_per_call), 20),
    "one shared httpx.AsyncClient": (_theirs(_shared_client), 300),
    "bare httpx, a transport per lane": (_theirs(_bare_httpx), 1000),
    "bare aiohttp, one session": (_theirs(_bare_aiohttp), 3000),
    "ours by httpx": (_ours("httpx"), 1500),
    "ours by aiohttp (fast)": (_ours("aiohttp"), 3000),
}


def _measure(url: str, in_flight: int) -> dict[str, Measured]:
    found = {name: Measured([], []) for name in _WAYS}
    for _ in range(ROUNDS):
        for name, (run, count) in _WAYS.items():
            rate, cpu = timed(lambda: run(url, in_flight, count), count)  # noqa: B023 -- called here
            found[name].rates.append(rate)
            found[name].cpu.append(cpu)
    return found


def bench(url: str) -> list[Table]:
    """Measure all ways in turn, with each number of posts in flight."""
    for run, _ in _WAYS.values():
        run(url, 8, 50)
    found = {in_flight: _measure(url, in_flight) for in_flight in IN_FLIGHT}
    columns = ("in flight", *map(str, IN_FLIGHT))
    rates: list[tuple[Cell, ...]] = [(name, *(spread(found[many][name].rates) for many in IN_FLIGHT)) for name in _WAYS]
    cpu: list[tuple[Cell, ...]] = [(name, *(spread(found[many][name].cpu) for many in IN_FLIGHT)) for name in _WAYS]
    shared, lanes, bare, plain, fast = (name for name in _WAYS if "per call" not in name)
    pairs = [(plain, shared, "≥ 5"), (plain, lanes, "≥ 0.8"), (fast, shared, "≥ 12"), (fast, bare, "≥ 0.4")]
    ratios: list[tuple[Cell, ...]] = [
        (f"{ours} / {theirs}", goal, *(ratio(found[many][ours].rates, found[many][theirs].rates) for many in IN_FLIGHT))
        for ours, theirs, goal in pairs
    ]
    remark = (
        "To a receiver on loopback that costs little. Ours: a whole pipeline in one process, with the step's span, a "
        "signature, and the spans of delivery and attempt."
    )
    return [
        Table(
            "Deliveries per second",
            columns,
            rates,
            f"{remark} Medians of {ROUNDS} rounds, with the least and the most.",
        ),
        Table("CPU milliseconds per delivery", columns, cpu, "Of the sending process, all threads."),
        Table("Deliveries per second, ratios", ("in flight", "goal at 32", *map(str, IN_FLIGHT)), ratios),
    ]
