// What a gateway, or something on the way to it, may send.

import assert from "node:assert/strict";
import { createServer } from "node:http";
import { test } from "node:test";

import { parse } from "../dist/form.js";
import { fromJson } from "../dist/values.js";
import { call, events } from "../dist/wire.js";

const FILE = { file: { media_type: "image/png", data: "AAAA" } };

/** Serves by this, for as long as the work takes. */
async function serving(answer, work) {
  const server = createServer(answer);
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  try {
    await work(`http://127.0.0.1:${server.address().port}`);
  } finally {
    server.closeAllConnections();
    server.close();
  }
}

const passing = (error) => error.name === "NcnError" && error.kind === "unavailable" && error.retryable;

test("an answer that breaks off is worth another try", async () => {
  let asked = 0;
  const answer = (request, response) => {
    asked += 1;
    response.writeHead(200, { "content-type": request.url === "/events" ? "text/event-stream" : "application/json" });
    response.write(request.url === "/events" ? 'id: 1\nevent: step\ndata: {"event":{}}\n\nid: 2\n' : '{"half":');
    setTimeout(() => response.destroy(), 20);
  };
  await serving(answer, async (url) => {
    await assert.rejects(call(url, "/half", undefined), passing);
    const seen = [];
    const follow = async () => {
      for await (const { id } of events(url, "/events", new AbortController().signal, "x")) seen.push(id);
    };
    await assert.rejects(follow(), passing);
    assert.deepEqual([seen, asked], [["1"], 2]);
  });
});

test("nobody is led elsewhere with what was signed", async () => {
  let arrived = 0;
  await serving(
    (_, response) => {
      arrived += 1;
      response.end("{}");
    },
    async (other) => {
      const lead = (_, response) => response.writeHead(307, { location: `${other}/inference` }).end();
      await serving(lead, async (url) => {
        await assert.rejects(call(url, "/inference", undefined, { signed: 1 }), passing);
        await assert.rejects(events(url, "/events", new AbortController().signal, "x").next(), passing);
      });
    },
  );
  assert.equal(arrived, 0);
});

test("refusals that are not a gateway's are errors of ours", async () => {
  for (const [status, body, kind, retryable] of [
    [429, "slow down", "refused", true],
    [500, "null", "refused", true],
    [400, '{"kind":"constructor","message":{}}', "refused", false],
  ]) {
    const answer = (_, response) => response.writeHead(status).end(body);
    await serving(answer, async (url) => {
      await assert.rejects(call(url, "/x", undefined), (error) => error.name === "NcnError" && error.kind === kind && error.retryable === retryable && error.message.includes(String(status)));
    });
  }
});

test("texts may be long, and have what JSON allows", () => {
  const long = "x".repeat(12 << 20);
  assert.equal(parse(JSON.stringify({ long })).long, long);
  for (const said of ['"', "\\", '\\"', "\n\u0000\u2028", "a\\\\", "\\\\\\"]) assert.deepEqual(parse(JSON.stringify([said, said])), [said, said]);
  for (const broken of ['"', '"\\"', '"a\nb"', '"\\x"', '{"a":"b}', '["a" "b"]']) assert.throws(() => parse(broken));
});

test("values that would share a hash with others are refused", () => {
  const tensor = (shape, data_type = "u8", data = "AAAA") => ({ tensor: { data_type, shape, data } });
  assert.deepEqual(fromJson({ a: tensor([3n]) }).a.shape, [3]);
  assert.deepEqual(fromJson({ a: tensor([0n, 5n], "f32", "") }).a.shape, [0, 5]);
  for (const bad of [
    tensor([18446744073709555712n]),
    tensor(["-18446744073709549568"]),
    tensor([-3n]),
    tensor([2n]),
    tensor([3n], ["u8"]),
    tensor([3n], "toString"),
    { text: "\ud800" },
    { text: 1n },
    { file: { media_type: "a\udfffb", data: "AAAA" } },
    null,
  ]) {
    assert.throws(() => fromJson({ a: bad }), { name: "NcnError" });
  }
  assert.throws(() => fromJson({ "\udc00": FILE }), { name: "NcnError" });
  assert.equal(Object.keys(fromJson(parse('{"__proto__":{"text":"x"}}'))).length, 1);
});
