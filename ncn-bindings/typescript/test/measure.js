// The same as ../../examples/measure.rs, in Node.
import process from "node:process";

import { privateKeyToAccount } from "viem/accounts";

import { Client, verifyReceipt } from "../dist/index.js";

const PARTS = 30;
const now = () => (performance.timeOrigin + performance.now()) * 1e6;
const median = (all) => all.sort((one, other) => one - other)[all.length >> 1];
const gateway = JSON.parse(process.env.NCN_GATEWAYS).honest;
const client = await Client.connect({ gateway, network: process.env.NCN_NETWORK, signer: privateKeyToAccount(process.env.NCN_KEY), maxPrice: 10n ** 18n });

const late = [];
let receipt;
for await (const event of client.stream("clock", { prompt: "count" })) {
  if ("answer" in event) receipt = event.answer.receipt;
  else late.push(now() - Number(event.part.text));
}
console.log("part", Math.round(median(late)));

const took = [];
for (let run = 0; run < 20; run += 1) {
  const started = performance.now();
  await verifyReceipt(receipt);
  took.push((performance.now() - started) * 1e6);
}
console.log("verify", Math.round(median(took)));

let parts = 0;
for await (const _ of client.stream("slow", { prompt: "count" })) {
  parts += 1;
  if (parts === PARTS) {
    console.log("dropped", Math.round(now()));
    break;
  }
}
