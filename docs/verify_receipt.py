#!/usr/bin/env python3
"""Verifies a receipt as docs/protocol.md says: verify_receipt.py RECEIPT [NETWORK_HASH]. Needs eth-account and eth-abi."""

import json
import re
import sys

from eth_abi import encode
from eth_account import Account
from eth_account.messages import SignableMessage
from eth_utils import keccak

sys.setrecursionlimit(1_000)  # One of these has raised it to more than the stack bears.
TYPES = {line.split("(")[0]: line for line in """
InferenceRequest(address client,bytes32 subnet,bytes32 modelDigest,bytes32 inputHash,string parameters,uint128 maxPrice,uint64 deadline,bytes32 nonce,bytes32 draw)
Quote(bytes32 requestId,address client,address gateway,address compute,bytes32 modelDigest,uint128 basePrice,uint128 inputPrice,uint128 outputPrice,uint8 inputUnit,uint8 outputUnit,uint64 maxInputUnits,uint64 maxOutputUnits,uint128 total,uint16 gatewayBps,uint16 validatorsBps,uint16 treasuryBps,uint64 expiry,bytes32 trustRoot,uint64 epoch,bytes32 salt,bytes32 committee)
Committee(uint16 threshold,address[] members)
InferenceResult(bytes32 requestId,address compute,bytes32 modelDigest,bytes32 inputHash,bytes32 outputHash,uint64 outputBytes,uint64 parts,bytes32 chain,bytes32 resumedFrom,uint8 continuation,uint64 inputUnits,uint64 outputUnits,uint64 durationMicros,uint8 confinement,uint8 finish)
Completion(bytes32 requestId,bytes32 quote,uint8 finish,Contribution[] contributions)Contribution(address compute,bytes32 result,uint128 cost)
Contribution(address compute,bytes32 result,uint128 cost)
ReceiptSeal(bytes32 requestId,bytes32 quote,bytes32 preprocessing,bytes32 completion,bytes32 results,bytes32 approvals,uint8 paymentKind,bytes32 payment,bytes32 settlement,uint64 issuedAt)
Voucher(bytes32 channel,bytes32 requestId,bytes32 quote,bytes32 committee,uint64 number,uint128 amount,uint128 cumulative)
""".split("\n") if line}
FINISHES, CONTINUATIONS = {"stop": 1, "length": 2, "deadline": 3, "cancelled": 4, "node_lost": 5}, {"rerun": 1, "context": 2}
UNITS, CONFINEMENTS = {"request": 1, "token": 2, "row": 3, "second": 4, "image": 5}, {"none": 0, "reduced": 1, "full": 2}
ZERO, HALF_ORDER = bytes(32), 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0

def check(good, problem):
    if not good:
        raise ValueError(problem)

# The form of a receipt: what is read becomes integers, bytes and texts.
def text(value, pattern=r"(?s:.*)"):
    check(type(value) is str and re.fullmatch(pattern, value), f"format: {value!r:.80}")
    value.encode()
    return value

def integer(value, bits=64):
    check(type(value) is int and 0 <= value < 2**bits, f"format: {value!r:.80}")
    return value

def read(form, value):
    if isinstance(form, dict):
        check(type(value) is dict and value.keys() == form.keys(), f"format: the fields are not {', '.join(form)}")
        return {name: read(form[name], value[name]) for name in form}
    check(not isinstance(form, list) or type(value) is list, "format: is no list")
    return [read(form[0], entry) for entry in value] if isinstance(form, list) else form(value)

FIELDS = {name: [field.split(" ") for field in of.split("(")[1].split(")")[0].split(",")] for name, of in TYPES.items()}
HASH, ADDRESS, SIGNATURE = [lambda value, form="0x[0-9a-f]{%d}" % (2 * n): bytes.fromhex(text(value, form)[2:]) for n in (32, 20, 65)]
U16, U64, AMOUNT = lambda value: integer(value, 16), integer, lambda value: integer(int(text(value, "0|[1-9][0-9]{0,38}")), 128)
UNIT, FINISH, CONFINEMENT, WAY = [lambda value, names=names: names[text(value, "|".join(names))] for names in (UNITS, FINISHES, CONFINEMENTS, CONTINUATIONS)]
KINDS = {"bytes32": HASH, "address": ADDRESS, "uint64": U64, "uint128": AMOUNT, "string": text}
ORDER, VOUCHER, CONTRIBUTION = [{field: KINDS[kind] for kind, field in FIELDS[name]} for name in ("InferenceRequest", "Voucher", "Contribution")]
UNIT_PRICE, CERTIFICATE = {"unit": UNIT, "price": AMOUNT}, [{"validator": ADDRESS, "signature": SIGNATURE}]
ESCROW = {"escrow": {"transaction": HASH, "settlement": HASH}}
CHANNEL = {"channel": {"terms": {"client": ADDRESS, "gateway": ADDRESS, "salt": HASH}, "voucher": VOUCHER, "signature": SIGNATURE}}
RESULT = {
    "requestId": HASH, "compute": ADDRESS, "modelDigest": HASH, "inputHash": HASH, "outputHash": HASH, "outputBytes": U64, "parts": U64, "chain": HASH,
    "resumedFrom": HASH, "continuation": lambda value: 0 if value is None else WAY(value), "usage": {"inputUnits": U64, "outputUnits": U64, "durationMicros": U64}, "confinement": CONFINEMENT, "finish": lambda value: 0 if value is None else FINISH(value)}
RECEIPT = {
    "version": U16, "trustRoot": {"domain": {"chainId": U64, "contract": ADDRESS}, "token": ADDRESS, "channels": ADDRESS, "validators": [ADDRESS],
                  "threshold": U16, "committeeSize": U16, "treasury": ADDRESS},
    "request": {"message": ORDER, "signature": SIGNATURE},
    "quote": {"requestId": HASH, "client": ADDRESS, "gateway": ADDRESS, "compute": ADDRESS, "modelDigest": HASH,
              "price": {"base": AMOUNT, "input": UNIT_PRICE, "output": UNIT_PRICE}, "maxUnits": {"input": U64, "output": U64}, "total": AMOUNT,
              "split": {"gatewayBps": U16, "validatorsBps": U16, "treasuryBps": U16}, "expiry": U64, "trustRoot": HASH, "epoch": U64, "salt": HASH, "committee": HASH},
    "preprocessing": CERTIFICATE, "approvals": CERTIFICATE,
    "payment": lambda value: read(ESCROW if type(value) is dict and "escrow" in value else CHANNEL, value),
    "delivery": {"results": [{"message": RESULT, "signature": SIGNATURE}], "finish": FINISH},
    "completion": {"requestId": HASH, "quote": HASH, "finish": FINISH, "contributions": [CONTRIBUTION]},
    "payments": {"total": AMOUNT, "payouts": [{"role": text, "address": ADDRESS, "amount": AMOUNT}]}, "issuedAt": U64, "seal": SIGNATURE}

def parse(data):
    # No field twice, and no number but the digits of an integer.
    fields_of = lambda pairs: dict(pairs) if len(dict(pairs)) == len(pairs) else check(False, "format: a field appears twice")
    number = lambda digits: int(digits) if re.fullmatch("[0-9]{1,20}", digits) else check(False, f"format: {digits:.80}")
    check(len(data) <= 1 << 20, "format: is more than 1 MiB")
    value = json.loads(data.decode(), object_pairs_hook=fields_of, parse_int=number, parse_float=number, parse_constant=number)
    check(type(value) is dict and value.get("version") == 2, "version: is not 2")
    return read(RECEIPT, value)

def struct_hash(name, message):
    hashed = {"string": lambda value: keccak(text=value), "address[]": lambda value: keccak(encode(["address"] * len(value), value)),
              "Contribution[]": lambda value: keccak(b"".join(struct_hash("Contribution", entry) for entry in value))}
    words = [("bytes32", keccak(text=TYPES[name]))]
    for kind, field in FIELDS[name]:
        words.append(("bytes32", hashed[kind](message[field])) if kind in hashed else (kind, message[field]))
    return keccak(encode(*map(list, zip(*words))))

def separator(chain, contract):
    domain = keccak(text="EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
    return keccak(encode(["bytes32", "bytes32", "bytes32", "uint256", "address"], [domain, keccak(text="NCN"), keccak(text="2"), chain, contract]))

def signed(domain, body, signature, by, what):
    check(signature[64] in (27, 28) and int.from_bytes(signature[32:64], "big") <= HALF_ORDER, f"{what}: is not in the accepted form")
    signer = Account.recover_message(SignableMessage(b"\x01", domain, body), signature=signature)
    check(bytes.fromhex(signer[2:]) == by, f"{what}: is another's")

def certified(approvals, domain, body, threshold, members, what):
    validators = [approval["validator"] for approval in approvals]
    check(validators == sorted(set(validators)) and set(validators) <= set(members), f"{what}: out of order, or not of the committee")
    check(len(validators) >= threshold, f"{what}: too few approvals")
    for approval in approvals:
        signed(domain, body, approval["signature"], approval["validator"], what)

def cost_of(price, n, m):
    cost = price["base"] + price["input"]["price"] * n + price["output"]["price"] * m
    check(cost < 2**128, "price: overflows")
    return cost

def completion_of(delivery, order, quote, quoted):
    before, outputs, contributions, price, most = None, 0, [], quote["price"], quote["maxUnits"]
    check(1 <= len(delivery["results"]) <= 3, "delivery: there are not 1 to 3 results")
    for index, result in enumerate(result["message"] for result in delivery["results"]):
        for field, of in (("requestId", quote), ("modelDigest", quote), ("modelDigest", order), ("inputHash", order)):
            check(result[field] == of[field], f"result.{field}: is another one")
        check((result["resumedFrom"], result["continuation"] != 0) == ((before["chain"], True) if before else (ZERO, False)), "result.resumedFrom")
        parts, size = [result[field] - (before[field] if before else 0) for field in ("parts", "outputBytes")]
        n, m = result["usage"]["inputUnits"], result["usage"]["outputUnits"]
        outputs += m
        check(parts > 0 and size >= 0 and n <= most["input"] and m <= size + parts and outputs <= most["output"], "result.usage: is not possible")
        last = index + 1 == len(delivery["results"])
        ends = result["finish"] == delivery["finish"] and last if result["finish"] else not last or delivery["finish"] > 2
        check(ends, "delivery.finish: is not what was signed")
        cost = cost_of({**price, "base": 0}, 0, m) if before else cost_of(price, n, m)
        contributions.append({"compute": result["compute"], "result": struct_hash("InferenceResult", {**result, **result["usage"]}), "cost": cost})
        before = result
    check(sum(entry["cost"] for entry in contributions) <= quote["total"], "cost: is above the total")
    return {"requestId": quote["requestId"], "quote": quoted, "finish": delivery["finish"], "contributions": contributions}

def payouts_of(quote, contributions, validators, treasury):
    cost = sum(entry["cost"] for entry in contributions)
    gateway, pool, network = [cost * quote["split"][field] // 10_000 for field in ("gatewayBps", "validatorsBps", "treasuryBps")]
    check(sum(quote["split"].values()) <= 10_000, "split: is more than the whole")
    compute = cost - gateway - network - pool // len(validators) * len(validators)
    shares = [compute * entry["cost"] // cost if cost else 0 for entry in contributions[:-1]]
    parts = [("compute", entry["compute"], share) for entry, share in zip(contributions, shares + [compute - sum(shares)])]
    parts += [("gateway", quote["gateway"], gateway)] + [("validator", validator, pool // len(validators)) for validator in validators]
    parts = [part for part in parts + [("treasury", treasury, network)] if part[2]]
    return {"total": cost, "payouts": [dict(zip(("role", "address", "amount"), part)) for part in parts]}

def payment_of(payment, quote, quoted, channels):
    if "escrow" in payment:
        check(ZERO not in payment["escrow"].values(), "payment: no transaction has the hash zero")
        return 1, payment["escrow"]["transaction"], payment["escrow"]["settlement"]
    terms, voucher = payment["channel"]["terms"], payment["channel"]["voucher"]
    channel = keccak(encode(["address", "address", "bytes32"], list(terms.values())))
    check((terms["client"], terms["gateway"]) == (quote["client"], quote["gateway"]), "payment.terms: are others'")
    said = {"channel": channel, "requestId": quote["requestId"], "quote": quoted, "committee": quote["committee"], "amount": quote["total"]}
    check(voucher == {**voucher, **said} and voucher["cumulative"] >= quote["total"], "payment.voucher: does not pay the quote")
    body = struct_hash("Voucher", voucher)
    signed(channels, body, payment["channel"]["signature"], terms["client"], "payment.signature")
    return 2, keccak(b"\x19\x01" + channels + body), ZERO

def verify(receipt):
    root, order, quote, delivery = receipt["trustRoot"], receipt["request"]["message"], receipt["quote"], receipt["delivery"]
    chain, contract, validators, m, n = *root["domain"].values(), root["validators"], root["threshold"], root["committeeSize"]
    check(validators == sorted(set(validators)) and n < 2 * m and m <= n and m <= len(validators), "trustRoot: is none")
    words = [chain, contract, root["token"], root["channels"], validators, m, n, root["treasury"]]
    network = keccak(encode(["uint64", "address", "address", "address", "address[]", "uint16", "uint16", "address"], words))
    domain, price, most = separator(chain, contract), quote["price"], quote["maxUnits"]
    rates = {f"{way}{what.title()}": price[way][what] for way in ("input", "output") for what in ("price", "unit")}
    limits = {"basePrice": price["base"], "maxInputUnits": most["input"], "maxOutputUnits": most["output"]}
    quoted = struct_hash("Quote", {**quote, **quote["split"], **rates, **limits})
    completion = completion_of(delivery, order, quote, quoted)
    check(completion == receipt["completion"], "completion: is not what was delivered")
    ordered, completed = struct_hash("InferenceRequest", order), struct_hash("Completion", completion)
    signed(domain, ordered, receipt["request"]["signature"], order["client"], "request.signature")
    request_id = keccak(b"\x19\x01" + domain + ordered)
    said = {"requestId": request_id, "client": order["client"], "modelDigest": order["modelDigest"], "trustRoot": network}
    check(quote == {**quote, **said}, "quote: is of another order or network")
    check(keccak(quote["salt"]) == order["draw"], "quote.salt: is not the one of the draw")
    check(cost_of(price, most["input"], most["output"]) == quote["total"] <= order["maxPrice"], "quote.total")
    check(quote["expiry"] <= order["deadline"], "quote.expiry")
    for result, contribution in zip(delivery["results"], completion["contributions"]):
        signed(domain, contribution["result"], result["signature"], contribution["compute"], "result.signature")
    seed = keccak(quote["salt"] + request_id)
    members = sorted(sorted(validators, key=lambda validator: keccak(seed + validator))[:n])
    check(quote["committee"] == struct_hash("Committee", {"threshold": m, "members": members}), "quote.committee: was not drawn")
    certified(receipt["preprocessing"], domain, quoted, m, members, "preprocessing")
    certified(receipt["approvals"], domain, completed, m, members, "approvals")
    kind, paid_by, settled_by = payment_of(receipt["payment"], quote, quoted, separator(chain, root["channels"]))
    preprocessing, results, approvals = [keccak(b"".join(entry["signature"] for entry in entries))
                                         for entries in (receipt["preprocessing"], delivery["results"], receipt["approvals"])]
    seal = {"requestId": request_id, "quote": quoted, "preprocessing": preprocessing, "completion": completed, "results": results,
            "approvals": approvals, "paymentKind": kind, "payment": paid_by, "settlement": settled_by, "issuedAt": receipt["issuedAt"]}
    signed(domain, struct_hash("ReceiptSeal", seal), receipt["seal"], quote["gateway"], "seal")
    payees = [approval["validator"] for approval in receipt["approvals"]]
    check(payouts_of(quote, completion["contributions"], payees, root["treasury"]) == receipt["payments"], "payments")
    return network

if __name__ == "__main__":
    try:
        with open(sys.argv[1], "rb") as file:
            found = verify(parse(file.read()))
        check(len(sys.argv) < 3 or sys.argv[2] == f"0x{found.hex()}", f"network: is 0x{found.hex()}")
    except Exception as error:  # Whatever is wrong with it, it is no receipt.
        sys.exit(f"invalid: {error}")
    print(f"valid, of the network 0x{found.hex()}")
