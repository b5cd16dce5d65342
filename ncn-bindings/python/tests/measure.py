"""The same as ../../examples/measure.rs, in Python."""

import asyncio
import json
import os
import statistics
import sys
import time

import ncn

PARTS = 30
network = ncn.Network([json.loads(os.environ["NCN_GATEWAYS"])["honest"]], hash=os.environ["NCN_NETWORK"])
settings = {"key": os.environ["NCN_KEY"], "payment": ncn.Relayed(), "max_price": ncn.TOKEN}


def verify(receipt):
    took = []
    for _ in range(500):
        started = time.perf_counter_ns()
        ncn.verify_receipt(receipt)
        took.append(time.perf_counter_ns() - started)
    print("verify", statistics.median(took))


def blocking():
    client = ncn.connect(network, **settings)
    stream = client.stream("clock", prompt="count")
    print("part", statistics.median([time.time_ns() - int(part["text"]) for part in stream]))
    verify(stream.answer.receipt.json)
    with client.stream("slow", prompt="count") as stream:
        for _ in range(PARTS):
            next(stream)
        print("dropped", time.time_ns())


async def awaiting():
    client = await ncn.aconnect(network, **settings)
    stream = client.stream("clock", prompt="count")
    print("part", statistics.median([time.time_ns() - int(part["text"]) async for part in stream]))
    verify(stream.answer.receipt.json)
    stream = client.stream("slow", prompt="count")
    for _ in range(PARTS):
        await stream.__anext__()
    print("dropped", time.time_ns())
    await stream.aclose()


asyncio.run(awaiting()) if "asyncio" in sys.argv else blocking()
