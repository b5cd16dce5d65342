// The scenario of every language: ../../scenario.json, at the gateways of NCN_GATEWAYS.
import { readFileSync } from "node:fs";
import process from "node:process";

import { privateKeyToAccount } from "viem/accounts";

import { Client, NcnError, verifyReceipt } from "../dist/index.js";

const root = new URL("../../../", import.meta.url);
const text = (path) => readFileSync(new URL(path, root), "utf8");
const gateways = JSON.parse(process.env.NCN_GATEWAYS);
const signer = privateKeyToAccount(process.env.NCN_KEY);

const values = ({ inputs }) =>
  Object.fromEntries(Object.entries(inputs).map(([name, given]) => [name, given.text ?? new Uint8Array(readFileSync(new URL(given.file, root)))]));
const what = ({ output, finish, cost }) => ({ output, text: output.text, finish, cost: cost.toString() });

async function followed(events, { after }) {
  let [parts, restarts] = [[], 0];
  for await (const event of events) {
    if ("answer" in event) {
      if (event.answer.output.text !== parts.join("")) throw new Error(`the parts are ${parts}`);
      return { ...what(event.answer), parts: parts.length, restarts };
    }
    if ("restarted" in event) {
      [parts, restarts] = [[], restarts + 1];
      continue;
    }
    parts.push(event.part.text);
    if (parts.length === after) return {};
  }
  throw new Error("no end");
}

async function perform(call) {
  if (call.call === "verify") {
    for (const line of text(call.receipts).trim().split("\n")) {
      const { what, valid } = JSON.parse(line);
      const receipt = line.slice(line.indexOf('"receipt":') + 10, line.lastIndexOf("}"));
      const verified = await verifyReceipt(receipt).then(() => true, () => false);
      if (verified !== valid) throw new Error(what);
    }
    return {};
  }
  const gateway = gateways[call.gateway ?? "honest"];
  const client = await Client.connect({ gateway, network: process.env.NCN_NETWORK, signer, maxPrice: 10n ** 18n });
  if (call.call === "connect") return {};
  if (call.call === "models") return { models: (await client.models()).map(({ name }) => name).sort() };
  if (call.call === "chat") return followed(client.chat(call.model, call.messages), call);
  if (call.call === "embed") return { embedding: [...(await client.embed(call.model, call.text))] };
  const options = { timeout: call.timeout };
  if (call.maxPrice) options.maxPrice = BigInt(call.maxPrice);
  if (call.call === "infer") return what(await client.infer(call.model, values(call), options));
  return followed(client.stream(call.model, values(call), options), call);
}

const differs = (expected, given) =>
  typeof expected === "object" ? Object.entries(expected).some(([name, value]) => differs(value, given?.[name])) : expected !== given;

async function check(call) {
  let [given, expected] = [undefined, call.fails ?? call.gives ?? {}];
  try {
    given = await perform(call);
  } catch (error) {
    given = error instanceof NcnError ? { kind: error.kind, paid: error.paid, says: error.message } : { thrown: String(error) };
    expected = call.fails ?? "an answer";
  }
  const good = !differs(expected, given);
  console.log(good ? `ok ${call.name}` : `not ok ${call.name}: ${JSON.stringify(given)}, not ${JSON.stringify(expected)}`);
  return good;
}

let good = true;
for (const group of JSON.parse(text("ncn-bindings/scenario.json")).groups) {
  good = (await Promise.all(group.map(check))).every(Boolean) && good;
}
process.exit(good ? 0 : 1);
