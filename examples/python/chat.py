"""Talks with a model, and shows each word as it comes.

Start a network that has one, and then this:

    ncn devnet --model path/to/smollm2/
    python chat.py --model smollm2
"""

import argparse

import ncn

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--gateway", default="http://127.0.0.1:50051")
parser.add_argument("--model", default="smollm2")
parser.add_argument("--most", type=int, default=200, metavar="TOKENS", help="the most that an answer may have")


def main() -> None:
    arguments = parser.parse_args()
    # By signatures, which the gateway brings to the chain: no gas, and no RPC endpoint.
    client = ncn.connect(ncn.Network.devnet(arguments.gateway, rpc=None), payment=ncn.Relayed())
    said, spent = [], 0
    while True:
        try:
            question = input("you: ").strip()
        except (EOFError, KeyboardInterrupt):
            print(f"\n{spent / ncn.TOKEN:.4f} tokens were spent")
            return
        if not question:
            continue
        said.append({"role": "user", "content": question})
        print("model: ", end="")
        try:
            with client.chat(arguments.model, said, parameters={"max_tokens": arguments.most}) as words:
                for word in words:
                    # Another compute node may have taken over: then the answer begins anew.
                    print("\nmodel: " if isinstance(word, ncn.Restarted) else word, end="", flush=True)
        except KeyboardInterrupt:
            # It is cancelled at the compute node; what had come by then is paid for.
            print(" (stopped)")
            continue
        except ncn.NcnError as error:
            print(f"{error.kind.name}: {error}")
            said.pop()
            continue
        answer = words.finish()
        print(f"\n       ({answer.cost / ncn.TOKEN:.4f} tokens, approved by {answer.receipt.approvals} validators)")
        said.append({"role": "assistant", "content": answer.text()})
        spent += answer.cost


if __name__ == "__main__":
    main()
