/** A gateway's calls over HTTP: docs/protocol.md, "HTTP". */

import { type ErrorKind, NcnError } from "./errors.js";
import { parse } from "./form.js";

/** The longest answer that is read, in bytes of text: an output of 8 MiB in base64, and its receipt. */
const MAX_TEXT = 32 << 20;

const KINDS: Record<string, ErrorKind> = { invalid: "input", denied: "key", unknown: "refused", busy: "unavailable", unavailable: "unavailable" };

/** Calls a gateway. What is answered is JSON with whole numbers as bigint. */
export async function call(url: string, path: string, signal: AbortSignal | undefined, body?: unknown, access?: string): Promise<unknown> {
  const response = await request(url, path, signal, body, access);
  const text = await whole(response);
  return text === "" ? undefined : json(text);
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

async function request(url: string, path: string, signal: AbortSignal | undefined, body: unknown, access: string | undefined): Promise<Response> {
  const headers: Record<string, string> = {};
  if (access !== undefined) headers.authorization = `Bearer ${access}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  const init: RequestInit = { method: body === undefined ? "GET" : "POST", headers };
  if (body !== undefined) init.body = JSON.stringify(body, (_, part: unknown) => (typeof part === "bigint" ? Number(part) : part));
  if (signal) init.signal = signal;
  let response: Response;
  try {
    response = await fetch(new URL(path, url), init);
  } catch (error) {
    if (signal?.aborted) throw signal.reason;
    throw new NcnError("unavailable", `gateway ${url}: cannot be reached`, true, false, { cause: error });
  }
  if (response.ok) return response;
  const said = await whole(response);
  let problem: { kind?: string; message?: string; retryable?: boolean; error?: { UnknownModel?: unknown; InvalidRequest?: { field?: string } } } = {};
  try {
    problem = JSON.parse(said);
  } catch {
    // Something between client and gateway has answered.
  }
  let kind = KINDS[problem.kind ?? ""] ?? "refused";
  if (problem.error?.UnknownModel !== undefined) kind = "unknownModel";
  if (problem.error?.InvalidRequest?.field === "request.maxPrice") kind = "tooExpensive";
  throw new NcnError(kind, problem.message ?? `gateway: answers ${response.status}`, problem.retryable ?? response.status >= 500);
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
  let body: ReadableStream<Uint8Array>;
  try {
    const response = await fetch(new URL(path, url), { headers, signal });
    if (!response.ok || !response.body) throw new NcnError("unavailable", `gateway: answers ${response.status} to who follows`, response.status >= 500 || response.status === 429);
    body = response.body;
  } catch (error) {
    if (signal.aborted) throw signal.reason;
    throw error instanceof NcnError ? error : new NcnError("unavailable", `gateway ${url}: cannot be reached`, true, false, { cause: error });
  }
  const decoder = new TextDecoder();
  const reader = body.getReader();
  let [waiting, id, name, data] = ["", "", "", ""];
  try {
    for (;;) {
      const { done, value } = await reader.read();
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
