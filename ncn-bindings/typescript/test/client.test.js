import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { generatePrivateKey, privateKeyToAccount } from "viem/accounts";

import { Channel, Client, NcnError, floats, valuesHash, verifyReceipt } from "../dist/index.js";

// At a running devnet: these say where, and which channel of client-0 is open.
const { NCN_GATEWAY: gateway, NCN_KEYS: keys, NCN_CHANNEL: channelFile } = process.env;
const options = { skip: gateway ? false : "needs a devnet" };
const documents = new URL(process.env.NCN_DOCS ?? "../../../docs/", import.meta.url);
const seven = new Uint8Array(readFileSync(new URL("../examples/data/7.png", documents)));
const key = (number) => privateKeyToAccount(readFileSync(`${keys}/client-${number}.key`, "utf8").trim());
const settings = (more = {}) => ({ gateway, network: "devnet", signer: key(1), maxPrice: 10n ** 18n, ...more });
const fails = (kind, call) => assert.rejects(call, (error) => error instanceof NcnError && error.kind === kind && (assert.equal(error.paid, false), true));

test("a verified paid answer", options, async () => {
  const client = await Client.connect(settings());
  const answer = await client.infer("digits", { image: seven });
  assert.equal(answer.output.label, "7");
  assert.equal(await verifyReceipt(answer.receipt), answer.network);
  assert.equal(floats(answer.output.scores).indexOf(Math.max(...floats(answer.output.scores))), 7);
  assert.ok(answer.cost > 0n);
});

test("payment out of a channel", options, async () => {
  const kept = [];
  const channel = Channel.parse(readFileSync(channelFile, "utf8"), (json) => void kept.push(json));
  const before = channel.available;
  const client = await Client.connect(settings({ signer: key(0), channel }));
  const answers = await Promise.all([1, 2, 3].map(() => client.infer("digits", { image: seven })));
  assert.ok(answers.every((answer) => answer.output.label === "7" && "channel" in answer.receipt.payment));
  assert.equal(channel.available, before - answers.reduce((all, answer) => all + answer.cost, 0n));
  assert.equal(kept.length, 3);
  assert.equal(Channel.parse(channel.toJSON()).available, channel.available);
  await assert.rejects(Client.connect(settings({ channel })), /another client's/);
});

test("what is wrong costs nothing", options, async () => {
  const client = await Client.connect(settings());
  await fails("unknownModel", client.infer("nothing", { image: seven }));
  await fails("input", client.infer("digits", { image: "text" }));
  await fails("input", client.infer("digits", { picture: seven }));
  await fails("tooExpensive", client.infer("digits", { image: seven }, { maxPrice: 1n }));
  await fails("timeoutTooShort", client.infer("digits", { image: seven }, { timeout: 1 }));
  await assert.rejects(client.infer("digits", { image: 7 }), TypeError);
  await fails("configuration", Client.connect(settings({ network: `0x${"07".repeat(32)}` })));
  await fails("unavailable", Client.connect(settings({ gateway: "http://127.0.0.1:1" })));
  const offers = [];
  const frugal = await Client.connect(settings({ agree: (offer) => (offers.push(offer), false) }));
  await fails("notAllowed", frugal.infer("digits", { image: seven }));
  assert.equal(offers[0].model, "digits");
});

test("who has no tokens is told", options, async () => {
  const client = await Client.connect(settings({ signer: privateKeyToAccount(generatePrivateKey()) }));
  await assert.rejects(client.infer("digits", { image: seven }), (error) => error instanceof NcnError && error.kind === "unproven");
});

test("a request that is given up ends", options, async () => {
  const client = await Client.connect(settings());
  await assert.rejects(client.infer("digits", { image: seven }, { signal: AbortSignal.timeout(1) }), { name: "TimeoutError" });
  for await (const _ of client.stream("digits", { image: seven })) break;
  assert.equal((await client.infer("digits", { image: seven })).output.label, "7");
});

test("values are hashed as everywhere", () => {
  const values = { text: "x", "é": { mediaType: "image/png", data: Uint8Array.of(1, 2) }, t: { dtype: "u8", shape: [2], data: Uint8Array.of(1, 2) } };
  assert.match(valuesHash(values), /^0x[0-9a-f]{64}$/);
  assert.notEqual(valuesHash(values), valuesHash({ ...values, text: "y" }));
});
