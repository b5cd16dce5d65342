/**
 * Receipts: the proof of a paid answer. The checks are those of docs/protocol.md, "The checks, in order", and need no network.
 */

import {
  type Address,
  type Hex,
  concat,
  encodeAbiParameters,
  hashStruct,
  isAddressEqual,
  keccak256,
  parseAbiParameters,
  recoverAddress,
} from "viem";

import { type Form, HALF_ORDER, address, amount, choice, count, fields, hash, list, nullable, parse, signature, small, text } from "./form.js";

/** Why a receipt does not count: `message` begins with the part that is wrong. */
export class ReceiptError extends Error {
  override readonly name = "ReceiptError";
}

/** The longest JSON of a receipt, in bytes. */
const MAX_BYTES = 1 << 20;
const ZERO: Hex = `0x${"00".repeat(32)}`;

const UNITS = { request: 1, token: 2, row: 3, second: 4, image: 5 } as const;
const FINISHES = { stop: 1, length: 2, deadline: 3, cancelled: 4, node_lost: 5 } as const;
const CONTINUATIONS = { rerun: 1, context: 2 } as const;
const CONFINEMENTS = { none: 0, reduced: 1, full: 2 } as const;

const word = (types: string) =>
  types.split(",").map((field) => {
    const [type, name] = field.split(" ") as [string, string];
    return { type, name };
  });

/** The structs that are signed or hashed, as docs/protocol.md has them. */
export const TYPES = {
  EIP712Domain: word("string name,string version,uint256 chainId,address verifyingContract"),
  InferenceRequest: word(
    "address client,bytes32 subnet,bytes32 modelDigest,bytes32 inputHash,string parameters,uint128 maxPrice,uint64 deadline,bytes32 nonce,bytes32 draw",
  ),
  Quote: word(
    "bytes32 requestId,address client,address gateway,address compute,bytes32 modelDigest,uint128 basePrice,uint128 inputPrice,uint128 outputPrice,uint8 inputUnit,uint8 outputUnit,uint64 maxInputUnits,uint64 maxOutputUnits,uint128 total,uint16 gatewayBps,uint16 validatorsBps,uint16 treasuryBps,uint64 expiry,bytes32 trustRoot,uint64 epoch,bytes32 salt,bytes32 committee",
  ),
  Committee: word("uint16 threshold,address[] members"),
  InferenceResult: word(
    "bytes32 requestId,address compute,bytes32 modelDigest,bytes32 inputHash,bytes32 outputHash,uint64 outputBytes,uint64 parts,bytes32 chain,bytes32 resumedFrom,uint8 continuation,uint64 inputUnits,uint64 outputUnits,uint64 durationMicros,uint8 confinement,uint8 finish",
  ),
  Completion: word("bytes32 requestId,bytes32 quote,uint8 finish,Contribution[] contributions"),
  Contribution: word("address compute,bytes32 result,uint128 cost"),
  TaskAccess: word("address client,bytes32 requestId,uint8 purpose"),
  ReceiptSeal: word(
    "bytes32 requestId,bytes32 quote,bytes32 preprocessing,bytes32 completion,bytes32 results,bytes32 approvals,uint8 paymentKind,bytes32 payment,bytes32 settlement,uint64 issuedAt",
  ),
  Voucher: word("bytes32 channel,bytes32 requestId,bytes32 quote,bytes32 committee,uint64 number,uint128 amount,uint128 cumulative"),
};

const unitPrice = fields({ unit: choice(UNITS), price: amount });
const price = fields({ base: amount, input: unitPrice, output: unitPrice });
const order = fields({
  client: address,
  subnet: hash,
  modelDigest: hash,
  inputHash: hash,
  parameters: text,
  maxPrice: amount,
  deadline: count,
  nonce: hash,
  draw: hash,
});
const result = fields({
  requestId: hash,
  compute: address,
  modelDigest: hash,
  inputHash: hash,
  outputHash: hash,
  outputBytes: count,
  parts: count,
  chain: hash,
  resumedFrom: hash,
  continuation: nullable(choice(CONTINUATIONS)),
  usage: fields({ inputUnits: count, outputUnits: count, durationMicros: count }),
  confinement: choice(CONFINEMENTS),
  finish: nullable(choice(FINISHES)),
});
const quote = fields({
  requestId: hash,
  client: address,
  gateway: address,
  compute: address,
  modelDigest: hash,
  price,
  maxUnits: fields({ input: count, output: count }),
  total: amount,
  split: fields({ gatewayBps: small, validatorsBps: small, treasuryBps: small }),
  expiry: count,
  trustRoot: hash,
  epoch: count,
  salt: hash,
  committee: hash,
});
const certificate = list(fields({ validator: address, signature }));
const escrow = fields({ escrow: fields({ transaction: hash, settlement: hash }) });
const channel = fields({
  channel: fields({
    terms: fields({ client: address, gateway: address, salt: hash }),
    voucher: fields({ channel: hash, requestId: hash, quote: hash, committee: hash, number: count, amount, cumulative: amount }),
    signature,
  }),
});
type Payment = ReturnType<typeof escrow> | ReturnType<typeof channel>;
const payment: Form<Payment> = (value) =>
  typeof value === "object" && value !== null && "escrow" in value ? escrow(value) : channel(value);

const trustRoot = fields({
  domain: fields({ chainId: count, contract: address }),
  token: address,
  channels: address,
  validators: list(address),
  threshold: small,
  committeeSize: small,
  treasury: address,
});
const form = fields({
  version: small,
  trustRoot,
  request: fields({ message: order, signature }),
  quote,
  preprocessing: certificate,
  payment,
  delivery: fields({ results: list(fields({ message: result, signature })), finish: choice(FINISHES) }),
  completion: fields({
    requestId: hash,
    quote: hash,
    finish: choice(FINISHES),
    contributions: list(fields({ compute: address, result: hash, cost: amount })),
  }),
  approvals: certificate,
  payments: fields({ total: amount, payouts: list(fields({ role: text, address, amount })) }),
  issuedAt: count,
  seal: signature,
});

/** Reads what gateways say, in the forms that it has to have. */
export const read = {
  address,
  certificate,
  count,
  hash,
  price,
  quote,
  receipt: form,
  text,
  trustRoot,
  /** The digest of an order, its request's id. */
  digest: (domain: Hex, order: Order): Hex => digest(domain, structHash("InferenceRequest", order)),
};

/** A network: its contracts, and the validators whose approvals count. */
export type TrustRoot = ReturnType<typeof trustRoot>;
/** A quote. */
export type Quote = ReturnType<typeof quote>;
/** The signatures of validators over one digest. */
export type Certificate = ReturnType<typeof certificate>;
/** An order. */
export type Order = ReturnType<typeof order>;
/** A receipt as it is read: amounts and counts are bigint. It is worth nothing before it is verified. */
export type Receipt = ReturnType<typeof form>;

function check(good: boolean, problem: string): asserts good {
  if (!good) throw new ReceiptError(problem);
}

/** Reads a receipt's JSON, strictly: there is one spelling of each value. */
export function parseReceipt(json: string): Receipt {
  check(new TextEncoder().encode(json).length <= MAX_BYTES, "format: is more than 1 MiB");
  let value: unknown;
  try {
    value = parse(json);
  } catch (error) {
    throw new ReceiptError(`format: ${(error as Error).message}`);
  }
  const version = (value as { version?: unknown } | null)?.version;
  check(version === 2n, `version: is not 2`);
  try {
    return form(value);
  } catch (error) {
    throw new ReceiptError(`format: ${(error as Error).message}`);
  }
}

/** The hash of a network, which quotes bind. */
export function networkHash(root: TrustRoot): Hex {
  const types = parseAbiParameters("uint64, address, address, address, address[], uint16, uint16, address");
  const { domain, token, channels, validators, threshold, committeeSize, treasury } = root;
  return keccak256(
    encodeAbiParameters(types, [domain.chainId, domain.contract, token, channels, validators, threshold, committeeSize, treasury]),
  );
}

/** A struct's hash by EIP-712. */
export function structHash(primaryType: keyof typeof TYPES, data: Record<string, unknown>): Hex {
  return hashStruct({ data, primaryType, types: TYPES });
}

/** The separator of a contract's domain. */
export function separator(chainId: bigint, contract: Address): Hex {
  return structHash("EIP712Domain", { name: "NCN", version: "2", chainId, verifyingContract: contract });
}

const digest = (domain: Hex, body: Hex): Hex => keccak256(concat(["0x1901", domain, body]));

async function signed(domain: Hex, body: Hex, by: Address, signature: Hex, what: string): Promise<void> {
  const s = BigInt(`0x${signature.slice(66, 130)}`);
  const v = Number.parseInt(signature.slice(130), 16);
  check((v === 27 || v === 28) && s <= HALF_ORDER, `${what}: is not in the accepted form`);
  let signer: Address;
  try {
    signer = await recoverAddress({ hash: digest(domain, body), signature });
  } catch {
    throw new ReceiptError(`${what}: is nobody's`);
  }
  check(isAddressEqual(signer, by), `${what}: is another's`);
}

/** Checks that enough of a committee have signed. */
export async function certified(approvals: Certificate, domain: Hex, body: Hex, threshold: number, members: readonly Address[], what: string): Promise<void> {
  const validators = approvals.map((approval) => approval.validator);
  check(ascend(validators) && validators.every((one) => members.includes(one)), `${what}: out of order, or not of the committee`);
  check(validators.length >= threshold, `${what}: too few approvals`);
  await Promise.all(approvals.map((approval) => signed(domain, body, approval.validator, approval.signature, what)));
}

/** Lower-case addresses that are each above the one before. */
const ascend = (addresses: readonly Address[]): boolean => addresses.every((one, index) => index === 0 || (addresses[index - 1] as Address) < one);

type Price = Quote["price"];

/** What units cost. */
export function costOf(price: Pick<Price, "input" | "output"> & { base: bigint }, input: bigint, output: bigint): bigint {
  const cost = price.base + price.input.price * input + price.output.price * output;
  check(cost < 1n << 128n, "price: overflows");
  return cost;
}

/** A quote's struct hash. */
export function quoteHash(quote: Quote): Hex {
  const { price, maxUnits, split } = quote;
  return structHash("Quote", {
    ...quote,
    ...split,
    basePrice: price.base,
    inputPrice: price.input.price,
    outputPrice: price.output.price,
    inputUnit: UNITS[price.input.unit],
    outputUnit: UNITS[price.output.unit],
    maxInputUnits: maxUnits.input,
    maxOutputUnits: maxUnits.output,
  });
}

/** Who judges a request: the drawn members, ascending, and the hash that quotes bind. */
export function committeeOf(root: TrustRoot, salt: Hex, requestId: Hex): { members: Address[]; hash: Hex } {
  const seed = keccak256(concat([salt, requestId]));
  const drawn = root.validators.map((validator) => ({ validator, rank: keccak256(concat([seed, validator])) }));
  drawn.sort((one, other) => (one.rank < other.rank ? -1 : 1));
  const members = drawn.slice(0, root.committeeSize).map((one) => one.validator).sort();
  return { members, hash: structHash("Committee", { threshold: root.threshold, members }) };
}

type Contribution = { compute: Address; result: Hex; cost: bigint };

function contributionsOf(receipt: Receipt): Contribution[] {
  const { quote, delivery } = receipt;
  const order = receipt.request.message;
  check(delivery.results.length >= 1 && delivery.results.length <= 3, "delivery: there are not 1 to 3 results");
  const finish = FINISHES[delivery.finish];
  let before: Receipt["delivery"]["results"][number]["message"] | undefined;
  let outputs = 0n;
  const contributions: Contribution[] = [];
  for (const [index, { message: result }] of delivery.results.entries()) {
    check(result.requestId === quote.requestId, "result.requestId: is another one");
    check(result.modelDigest === quote.modelDigest && result.modelDigest === order.modelDigest, "result.modelDigest: is another one");
    check(result.inputHash === order.inputHash, "result.inputHash: is another one");
    const goesOn = before ? result.resumedFrom === before.chain && result.continuation !== null : result.resumedFrom === ZERO && result.continuation === null;
    check(goesOn, "result.resumedFrom: is not where the one before ends");
    const parts = result.parts - (before?.parts ?? 0n);
    const bytes = result.outputBytes - (before?.outputBytes ?? 0n);
    const { inputUnits, outputUnits } = result.usage;
    outputs += outputUnits;
    const possible = parts > 0n && bytes >= 0n && inputUnits <= quote.maxUnits.input && outputUnits <= bytes + parts && outputs <= quote.maxUnits.output;
    check(possible, "result.usage: is not possible");
    const last = index + 1 === delivery.results.length;
    const ends = result.finish !== null ? result.finish === delivery.finish && last : !last || finish > 2;
    check(ends, "delivery.finish: is not what was signed");
    const cost = before ? costOf({ ...quote.price, base: 0n }, 0n, outputUnits) : costOf(quote.price, inputUnits, outputUnits);
    contributions.push({ compute: result.compute, result: resultHash(result), cost });
    before = result;
  }
  check(sum(contributions) <= quote.total, "cost: is above the total");
  return contributions;
}

function resultHash(result: Receipt["delivery"]["results"][number]["message"]): Hex {
  return structHash("InferenceResult", {
    ...result,
    ...result.usage,
    continuation: result.continuation === null ? 0 : CONTINUATIONS[result.continuation],
    confinement: CONFINEMENTS[result.confinement],
    finish: result.finish === null ? 0 : FINISHES[result.finish],
  });
}

const sum = (contributions: readonly Contribution[]): bigint => contributions.reduce((all, one) => all + one.cost, 0n);

function payoutsOf(receipt: Receipt, contributions: readonly Contribution[]): Receipt["payments"] {
  const { quote, approvals, trustRoot } = receipt;
  const { gatewayBps, validatorsBps, treasuryBps } = quote.split;
  check(gatewayBps + validatorsBps + treasuryBps <= 10_000, "split: is more than the whole");
  const total = sum(contributions);
  const share = (bps: number) => (total * BigInt(bps)) / 10_000n;
  const [gateway, treasury] = [share(gatewayBps), share(treasuryBps)];
  const each = share(validatorsBps) / BigInt(approvals.length);
  const compute = total - gateway - treasury - each * BigInt(approvals.length);
  const shares = contributions.slice(0, -1).map((one) => (total === 0n ? 0n : (compute * one.cost) / total));
  shares.push(compute - shares.reduce((all, one) => all + one, 0n));
  const payouts = [
    ...contributions.map((one, index) => ({ role: "compute", address: one.compute, amount: shares[index] as bigint })),
    { role: "gateway", address: quote.gateway, amount: gateway },
    ...approvals.map((approval) => ({ role: "validator", address: approval.validator, amount: each })),
    { role: "treasury", address: trustRoot.treasury, amount: treasury },
  ];
  return { total, payouts: payouts.filter((payout) => payout.amount > 0n) };
}

/** Which kind of payment it is, its reference, and what settled it. */
async function paymentOf(receipt: Receipt, quoted: Hex): Promise<{ kind: number; by: Hex; settled: Hex }> {
  const { payment, quote, trustRoot } = receipt;
  if ("escrow" in payment) {
    const { transaction, settlement } = payment.escrow;
    check(transaction !== ZERO && settlement !== ZERO, "payment: no transaction has the hash zero");
    return { kind: 1, by: transaction, settled: settlement };
  }
  const { terms, voucher, signature } = payment.channel;
  const id = keccak256(encodeAbiParameters(parseAbiParameters("address, address, bytes32"), [terms.client, terms.gateway, terms.salt]));
  check(terms.client === quote.client && terms.gateway === quote.gateway, "payment.terms: are others'");
  const pays =
    voucher.channel === id &&
    voucher.requestId === quote.requestId &&
    voucher.quote === quoted &&
    voucher.committee === quote.committee &&
    voucher.amount === quote.total &&
    voucher.cumulative >= quote.total;
  check(pays, "payment.voucher: does not pay the quote");
  const domain = separator(trustRoot.domain.chainId, trustRoot.channels);
  const body = structHash("Voucher", voucher);
  await signed(domain, body, terms.client, signature, "payment.signature");
  return { kind: 2, by: digest(domain, body), settled: ZERO };
}

const same = (one: unknown, other: unknown): boolean => text_of(one) === text_of(other);
const text_of = (value: unknown): string => JSON.stringify(value, (_, part: unknown) => (typeof part === "bigint" ? `${part}n` : part));

/**
 * Verifies a receipt, and returns the hash of the network whose validators approved it.
 *
 * @param network The hash of the network to trust. Without it, the receipt's own is taken: then compare what is returned.
 * @throws ReceiptError, which names the part that is wrong.
 */
export async function verifyReceipt(receipt: Receipt | string, network?: Hex): Promise<Hex> {
  const read = typeof receipt === "string" ? parseReceipt(receipt) : receipt;
  check(BigInt(read.version) === 2n, "version: is not 2");
  const { trustRoot: root, quote, delivery, completion, approvals } = read;
  const order = read.request.message;
  const { threshold, committeeSize, validators } = root;
  const isNetwork = ascend(validators) && committeeSize < 2 * threshold && threshold <= committeeSize && threshold <= validators.length;
  check(isNetwork, "trustRoot: is none");
  const hash = networkHash(root);
  check(network === undefined || network.toLowerCase() === hash, `trustRoot: the receipt is of network ${hash}, not of the trusted ${network}`);
  const domain = separator(root.domain.chainId, root.domain.contract);
  const quoted = quoteHash(quote);

  const contributions = contributionsOf(read);
  const stated = { requestId: quote.requestId, quote: quoted, finish: delivery.finish, contributions };
  check(same(stated, completion), "completion: is not what was delivered");
  const ordered = structHash("InferenceRequest", order);
  const completed = structHash("Completion", { ...stated, finish: FINISHES[delivery.finish] });

  const requestId = digest(domain, ordered);
  check(quote.requestId === requestId && quote.client === order.client && quote.modelDigest === order.modelDigest, "quote: is of another order");
  check(quote.trustRoot === hash, "quote.trustRoot: is another network");
  check(keccak256(quote.salt) === order.draw, "quote.salt: is not the one of the draw");
  check(costOf(quote.price, quote.maxUnits.input, quote.maxUnits.output) === quote.total && quote.total <= order.maxPrice, "quote.total: is not its price, or more than was allowed");
  check(quote.expiry <= order.deadline, "quote.expiry: is after the deadline");
  const committee = committeeOf(root, quote.salt, requestId);
  check(quote.committee === committee.hash, "quote.committee: was not drawn");

  await signed(domain, ordered, order.client, read.request.signature, "request.signature");
  for (const [index, contribution] of contributions.entries()) {
    const { signature } = delivery.results[index] as { signature: Hex };
    await signed(domain, contribution.result, contribution.compute, signature, "result.signature");
  }
  await certified(read.preprocessing, domain, quoted, threshold, committee.members, "preprocessing");
  await certified(approvals, domain, completed, threshold, committee.members, "approvals");
  const paid = await paymentOf(read, quoted);
  const all = (entries: readonly { signature: Hex }[]) => keccak256(concat(entries.map((entry) => entry.signature)));
  const seal = structHash("ReceiptSeal", {
    requestId,
    quote: quoted,
    preprocessing: all(read.preprocessing),
    completion: completed,
    results: all(delivery.results),
    approvals: all(approvals),
    paymentKind: paid.kind,
    payment: paid.by,
    settlement: paid.settled,
    issuedAt: read.issuedAt,
  });
  await signed(domain, seal, quote.gateway, read.seal, "seal");
  check(same(payoutsOf(read, contributions), read.payments), "payments: are not what the split leads to");
  return hash;
}
