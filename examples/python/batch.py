"""Has many images read, and pays for all of them out of one channel.

    ncn devnet --rpc 127.0.0.1:8545
    pip install tqdm
    python batch.py ../data
"""

import argparse
import asyncio
import collections
import itertools
import pathlib

import ncn
from tqdm import tqdm

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", type=pathlib.Path, help="PNG files of 8x8 pixels")
parser.add_argument("--gateway", default="http://127.0.0.1:50051")
parser.add_argument("--rpc", default="http://127.0.0.1:8545")
parser.add_argument("--count", type=int, default=1_000, help="how many requests; images are sent again and again")
parser.add_argument("--channel", default="channel.json", metavar="FILE", help="where the channel is kept; it must not exist yet")
parser.add_argument("--at-once", type=int, default=32, metavar="N")


async def read_all(client: ncn.AsyncClient, images: list, count: int, at_once: int) -> collections.Counter:
    """How often each digit was read. A request that may succeed on another try is made again."""
    places, read = asyncio.Semaphore(at_once), collections.Counter()

    async def one(image: bytes, progress: tqdm) -> None:
        async with places:
            while True:
                try:
                    answer = await client.infer("digits", image=image)
                    break
                except ncn.NcnError as error:
                    if not error.retryable:
                        raise
                    await asyncio.sleep(0.1)
        read[answer.text("label")] += 1
        progress.update()

    with tqdm(total=count, unit="image") as progress:
        await asyncio.gather(*(one(image, progress) for image in itertools.islice(itertools.cycle(images), count)))
    return read


async def main() -> None:
    arguments = parser.parse_args()
    images = [file.read_bytes() for file in sorted(arguments.folder.glob("*.png"))]
    network = ncn.Network.devnet(arguments.gateway, arguments.rpc)
    opener = await ncn.aconnect(network)
    # What they cost, and room for the requests in flight; what is left comes back.
    price = (await opener.estimate("digits", image=images[0])).maximum
    await opener.channel_open(arguments.channel, price * (arguments.count + arguments.at_once), days=7)
    # Whatever happens from here on, the deposit can be had back with that file: `ncn channel close`.
    client = await ncn.aconnect(network, payment=ncn.Channel(arguments.channel))
    read = await read_all(client, images, arguments.count, arguments.at_once)
    spent = (await client.channel_show()).spent
    back = await client.channel_close()
    pathlib.Path(arguments.channel).unlink()
    print(" ".join(f"{digit}:{times}" for digit, times in sorted(read.items())))
    print(f"{sum(read.values())} answers for {spent / ncn.TOKEN:.2f} tokens; {back / ncn.TOKEN:.2f} came back")


if __name__ == "__main__":
    asyncio.run(main())
