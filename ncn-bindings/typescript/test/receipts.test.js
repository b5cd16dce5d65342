import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { ReceiptError, parseReceipt, verifyReceipt } from "../dist/index.js";

const documents = new URL(process.env.NCN_DOCS ?? "../../../docs/", import.meta.url);
const vectors = readFileSync(new URL("receipts.jsonl", documents), "utf8").trim().split("\n");
// A receipt's own text, since numbers of 64 bits do not survive JSON.parse.
const receiptOf = (line) => line.slice(line.indexOf('"receipt":') + 10, line.lastIndexOf("}"));

test("every receipt is what the vectors say", async () => {
  assert.ok(vectors.length > 50);
  for (const line of vectors) {
    const { what, valid } = JSON.parse(line);
    const verified = verifyReceipt(receiptOf(line));
    if (valid) assert.match(await verified, /^0x[0-9a-f]{64}$/, what);
    else await assert.rejects(verified, ReceiptError, what);
  }
});

test("a receipt is of the network that is trusted", async () => {
  const json = readFileSync(new URL("receipt.json", documents), "utf8");
  const network = await verifyReceipt(json);
  assert.equal(await verifyReceipt(parseReceipt(json), network), network);
  await assert.rejects(verifyReceipt(json, `0x${"07".repeat(32)}`), /^ReceiptError: trustRoot: the receipt is of network/);
});

test("what is no receipt is refused", async () => {
  const json = readFileSync(new URL("receipt.json", documents), "utf8");
  const spoilt = [
    "",
    "null",
    "{}",
    "[".repeat(100_000),
    json.slice(0, -10),
    `${json} x`,
    json.replace('"version"', '"Version"'),
    json.replace('"version": 2', '"version": 2.0').replace('"version":2', '"version":2.0'),
    json.replace("{", '{"version": 2,'),
    json.replace("{", '{"more": 1,'),
    json.replace("{", '{"__proto__": {"version": 2},'),
    json.toUpperCase(),
    " ".repeat(1 << 20) + json,
  ];
  for (const text of spoilt) await assert.rejects(verifyReceipt(text), ReceiptError, text.slice(0, 60));
});

test("a changed digit anywhere is found", async () => {
  const json = readFileSync(new URL("receipt.json", documents), "utf8");
  const digits = [...json.matchAll(/[0-9a-f](?=[0-9a-f]{4})/g)].map((found) => found.index);
  for (let at = 0; at < digits.length; at += 97) {
    const index = digits[at];
    const changed = json.slice(0, index) + (json[index] === "1" ? "2" : "1") + json.slice(index + 1);
    await assert.rejects(verifyReceipt(changed), ReceiptError, changed.slice(index - 30, index + 30));
  }
});
