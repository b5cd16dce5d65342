"""Searches a folder of texts by meaning.

    ncn devnet --model path/to/minilm/
    pip install numpy
    python search.py ../../docs "how is a node paid"
"""

import argparse
import asyncio
import pathlib

import ncn
import numpy

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", type=pathlib.Path)
parser.add_argument("question")
parser.add_argument("--gateway", default="http://127.0.0.1:50051")
parser.add_argument("--model", default="minilm")
parser.add_argument("--at-once", type=int, default=8, metavar="N", help="how many texts are embedded at once")

LONGEST = 500
"""A model reads so many characters of a text, and no more."""


def passages(folder: pathlib.Path) -> list:
    """The paragraphs of all texts in a folder, with their files."""
    found = []
    for file in sorted(folder.glob("*.txt")) + sorted(folder.glob("*.md")):
        for paragraph in file.read_text(encoding="utf-8").split("\n\n"):
            if len(paragraph.split()) > 5:
                found.append((file.name, " ".join(paragraph.split())[:LONGEST]))
    return found


async def embedded(client: ncn.AsyncClient, model: str, texts: list, at_once: int) -> numpy.ndarray:
    """A row of length 1 for each text."""
    places = asyncio.Semaphore(at_once)

    async def embed(text: str) -> numpy.ndarray:
        async with places:
            row = numpy.asarray(await client.embed(model, text), dtype=numpy.float32)
            return row / numpy.linalg.norm(row)

    return numpy.stack(await asyncio.gather(*map(embed, texts)))


async def main() -> None:
    arguments = parser.parse_args()
    network = ncn.Network.devnet(arguments.gateway, rpc=None)
    client = await ncn.aconnect(network, payment=ncn.Relayed())
    texts = passages(arguments.folder)
    if not texts:
        parser.error(f"{arguments.folder}: has no .txt or .md with paragraphs in it")
    rows = await embedded(client, arguments.model, [text for _, text in texts] + [arguments.question], arguments.at_once)
    likeness = rows[:-1] @ rows[-1]
    for index in numpy.argsort(-likeness)[:3]:
        name, text = texts[index]
        print(f"{likeness[index]:.2f} {name}: {text[:100]}")
    spent = sum(receipt.cost for receipt in client.receipts())
    print(f"{len(texts) + 1} embeddings for {spent / ncn.TOKEN:.4f} tokens")


if __name__ == "__main__":
    asyncio.run(main())
