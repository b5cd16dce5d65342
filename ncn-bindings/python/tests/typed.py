# pyright: strict
"""What programs write, for a type checker: it is not run."""

from typing import Any, Dict, List

import ncn


def calls(client: ncn.Client) -> None:
    models: List[str] = [model.name for model in client.models()]
    maximum: int = client.estimate("digits", image=b"").maximum
    answer: ncn.Answer = client.infer("digits", {"image": b""}, max_price=ncn.TOKEN, timeout=5)
    texts: Dict[str, Any] = answer.output
    cost: int = answer.cost + client.balance() + maximum
    numbers: List[float] = client.embed("minilm", "text")
    receipts: List[ncn.Receipt] = client.receipts()
    with client.chat("smollm2", [{"role": "user", "content": "hello"}]) as parts:
        for part in parts:
            if isinstance(part, ncn.Restarted):
                continue
    finished: str = parts.finish().text()
    print(models, texts, cost, numbers, receipts, finished, ncn.verify_receipt(answer.receipt).approvals)


def settings(offer: ncn.Offer) -> ncn.Client:
    def policy(offer: ncn.Offer) -> bool:
        return offer.total < ncn.TOKEN

    try:
        return ncn.connect(ncn.DEVNET, ncn.devnet_key(1), ncn.Channel("channel.json"), policy=policy)
    except ncn.NcnError as error:
        kind: ncn.ErrorKind = error.kind
        print(kind, error.retryable, error.paid)
        raise


async def awaited() -> None:
    client: ncn.AsyncClient = await ncn.aconnect(payment=ncn.Relayed())
    async with client.stream("words", prompt="count") as parts:
        async for part in parts:
            print(part)
    answer: ncn.Answer = await parts.finish()
    opened: ncn.ChannelInfo = await client.channel_open("channel.json", ncn.TOKEN)
    print(answer, opened.available)
