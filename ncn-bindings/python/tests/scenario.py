"""The scenario of every language, in Python: ../../scenario.json, at the gateways of NCN_GATEWAYS."""

import asyncio
import json
import os
import pathlib
import re
import sys

import ncn

ROOT = pathlib.Path(os.environ["NCN_ROOT"])
GATEWAYS = json.loads(os.environ["NCN_GATEWAYS"])


def values(call):
    return {name: given["text"] if "text" in given else (ROOT / given["file"]).read_bytes() for name, given in call["inputs"].items()}


def what(answer):
    return {"output": answer.output, "text": answer.output.get("text"), "finish": answer.finish, "cost": str(answer.cost)}


async def followed(stream, call):
    parts, restarts = [], 0
    async with stream:
        async for part in stream:
            if isinstance(part, ncn.Restarted):
                parts, restarts = [], restarts + 1
                continue
            parts.append(part if isinstance(part, str) else part["text"])
            if len(parts) == call.get("after"):
                return {}
    answer = stream.answer
    if answer.output["text"] != "".join(parts):
        raise AssertionError(f"the parts are {parts}")
    return {**what(answer), "parts": len(parts), "restarts": restarts}


async def perform(call):
    if call["call"] == "verify":
        for line in (ROOT / call["receipts"]).read_text().splitlines():
            vector = json.loads(line)
            try:
                ncn.verify_receipt(json.dumps(vector["receipt"]))
                valid = True
            except ncn.NcnError:
                valid = False
            if valid != vector["valid"]:
                raise AssertionError(vector["what"])
        return {}
    network = ncn.Network([GATEWAYS[call.get("gateway", "honest")]], hash=os.environ["NCN_NETWORK"])
    client = await ncn.aconnect(network, os.environ["NCN_KEY"], ncn.Relayed(), max_price=ncn.TOKEN)
    if call["call"] == "connect":
        return {}
    if call["call"] == "models":
        return {"models": sorted(model.name for model in await client.models())}
    if call["call"] == "chat":
        return await followed(client.chat(call["model"], call["messages"]), call)
    if call["call"] == "embed":
        return {"embedding": list(await client.embed(call["model"], call["text"]))}
    limits = {"max_price": int(call["maxPrice"]) if "maxPrice" in call else None, "timeout": call.get("timeout")}
    if call["call"] == "infer":
        return what(await client.infer(call["model"], values(call), **limits))
    return await followed(client.stream(call["model"], values(call), **limits), call)


def differs(expected, given):
    if isinstance(expected, dict):
        return any(name not in given or differs(value, given[name]) for name, value in expected.items())
    return expected != given


def camel(kind):
    return re.sub("_(.)", lambda found: found[1].upper(), kind.name.lower())


async def check(call):
    try:
        given = await perform(call)
        expected = call.get("gives", {}) if "fails" not in call else call["fails"]
    except ncn.NcnError as error:
        given = {"kind": camel(error.kind), "paid": error.paid, "says": str(error)}
        expected = call.get("fails", "an answer")
    except Exception as error:
        given, expected = repr(error), "an answer"
    if differs(expected, given):
        print(f"not ok {call['name']}: {given}, not {expected}")
        return False
    print(f"ok {call['name']}")
    return True


async def main():
    scenario = json.loads((ROOT / "ncn-bindings/scenario.json").read_text())
    good = [await asyncio.gather(*map(check, group)) for group in scenario["groups"]]
    sys.exit(not all(map(all, good)))


asyncio.run(main())
