/** A gateway's calls over HTTP: docs/protocol.md, "HTTP". */

import { type ErrorKind, NcnError } from "./errors.js";
import { parse } from "./form.js";

/** The longest answer that is read, in bytes of text: an output of 8 MiB in base64, and its receipt. */
const MAX_TEXT = 32 << 20;

/** How long a gateway may take for one answer, in milliseconds. */
const ANSWER_TIME = 60_000;

const KINDS: Record<string, ErrorKind> = { invalid: "input", denied: "key", unknown: "refused", busy: "unavailable", unavailable: "unavailable" };

/** Calls a gateway. What is answered is JSON with whole numbers as bigint. */
export async function call(url: string, path: string, signal: AbortSignal | undefined, body?: unknown, access?: string): Promise<unknown> {
  const limit = AbortSignal.timeout(ANSWER_TIME);
  const text = await reached(url, signal, async () => request(url, path, signal ? AbortSignal.any([signal, limit]) : limit, body, access));
  return text === "" ? undefined : json(text);
}

/** Does what takes a connection. One that breaks off, or that nothing comes on, is worth another try. */
async function reached<T>(url: string, signal: AbortSignal | undefined, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (signal?.aborted) throw signal.reason;
    throw error instanceof NcnError ? error : new NcnError("unavailable", `gateway ${url}: cannot be reached`, true, false, { cause: error });
  }
}

/** A body's text, as far as it is read. */
async function whole(response: Response): Promise<string> {
  const decoder = new TextDecoder();
  let text = "";
  const reader = response.body?.getReader();
  while (reader) {
    const { done, value } = await reader.read();
    if (done) break;
    text += decoder.decode(value, { stream: true });
    if (text.length > MAX_TEXT) {
      await reader.cancel().catch(() => undefined);
      throw new NcnError("refused", `gateway: answers more than ${MAX_TEXT} bytes`);
    }
  }
  return text + decoder.decode();
}

function json(text: string): unknown {
  try {
    return parse(text);
  } catch (error) {
    throw new NcnError("refused", `gateway: ${(error as Error).message}`);
  }
}

async function request(url: string, path: string, signal: AbortSignal, body: unknown, access: string | undefined): Promise<string> {
  const headers: Record<string, string> = {};
  if (access !== undefined) headers.authorization = `Bearer ${access}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  // What was signed and sent is for this gateway alone.
  const init: RequestInit = { method: body === undefined ? "GET" : "POST", headers, signal, redirect: "error" };
  if (body !== undefined) init.body = JSON.stringify(body, (_, part: unknown) => (typeof part === "bigint" ? Number(part) : part));
  const response = await fetch(new URL(path, url), init);
  const said = await whole(response);
  if (response.ok) return said;
  const problem = problemOf(said);
  let kind = Object.hasOwn(KINDS, String(problem.kind)) ? (KINDS[String(problem.kind)] as ErrorKind) : "refused";
  if (problem.error?.UnknownModel !== undefined) kind = "unknownModel";
  if (problem.error?.InvalidRequest?.field === "request.maxPrice") kind = "tooExpensive";
  const message = typeof problem.message === "string" ? problem.message : `gateway: answers ${response.status}`;
  throw new NcnError(kind, message, typeof problem.retryable === "boolean" ? problem.retryable : passes(response.status));
}

/** Whether it may be otherwise a moment later, by a status that something between client and gateway has answered. */
const passes = (status: number): boolean => status >= 500 || status === 429 || status === 408;

interface Problem {
  readonly kind?: unknown;
  readonly message?: unknown;
  readonly retryable?: unknown;
  readonly error?: { UnknownModel?: unknown; InvalidRequest?: { field?: unknown } } | null;
}

function problemOf(said: string): Problem {
  try {
    return (JSON.parse(said) as Problem | null) ?? {};
  } catch {
    return {};
  }
}

/** One event of a stream, its index, and what it says. */
export interface ServerEvent {
  readonly id: string;
  readonly name: string;
  readonly data: unknown;
}

/** Follows a request's events. */
export async function* events(url: string, path: string, signal: AbortSignal, access: string, last?: string): AsyncGenerator<ServerEvent> {
  const headers: Record<string, string> = { authorization: `Bearer ${access}`, accept: "text/event-stream" };
  if (last !== undefined) headers["last-event-id"] = last;
  const body = await reached(url, signal, async () => {
    const response = await fetch(new URL(path, url), { headers, signal, redirect: "error" });
    if (!response.ok || !response.body) throw new NcnError("unavailable", `gateway: answers ${response.status} to who follows`, passes(response.status));
    return response.body;
  });
  const decoder = new TextDecoder();
  const reader = body.getReader();
  let [waiting, id, name, data] = ["", "", "", ""];
  try {
    for (;;) {
      const { done, value } = await reached(url, signal, () => reader.read());
      if (done) return;
      waiting += decoder.decode(value, { stream: true });
      if (waiting.length + data.length > MAX_TEXT) throw new NcnError("refused", `gateway: sends an event of more than ${MAX_TEXT} bytes`);
      const lines = waiting.split("\n");
      waiting = lines.pop() ?? "";
      for (const line of lines) {
        if (line === "") {
          if (data !== "") yield { id, name, data: json(data) };
          [id, name, data] = ["", "", ""];
        } else if (line.startsWith("id: ")) id = line.slice(4);
        else if (line.startsWith("event: ")) name = line.slice(7);
        else if (line.startsWith("data: ")) data += line.slice(6);
      }
    }
  } finally {
    await reader.cancel().catch(() => undefined);
  }
}
