/** Reading JSON strictly: each field once, no other, and one spelling of each value. */

import type { Address, Hex } from "viem";

/** Reads a value of one form, or throws what is wrong with it. */
export type Form<T> = (value: unknown) => T;

/** The highest `s` of a signature that is accepted: half of the curve's order. */
export const HALF_ORDER = 0x7fffffffffffffffffffffffffffffff5d576e7357a4501ddfe92f46681b20a0n;

const wrong = (value: unknown): never => {
  const said = JSON.stringify(value, (_, part: unknown) => (typeof part === "bigint" ? part.toString() : part)) ?? "nothing";
  throw new Error(`${said.slice(0, 80)} is not what stands here`);
};

const hex =
  <T extends Hex>(bytes: number): Form<T> =>
  (value) =>
    typeof value === "string" && value.length === 2 + 2 * bytes && /^0x[0-9a-f]*$/.test(value) ? (value as T) : wrong(value);

export const hash = hex<Hex>(32);
export const address = hex<Address>(20);
export const signature = hex<Hex>(65);

const integer =
  (bits: bigint): Form<bigint> =>
  (value) =>
    typeof value === "bigint" && value < 1n << bits ? value : wrong(value);

/** A count or a time: 64 bits. */
export const count = integer(64n);
/** 16 bits. */
export const small: Form<number> = (value) => Number(integer(16n)(value));
/** An amount: decimal digits in a text. */
export const amount: Form<bigint> = (value) => {
  const units = typeof value === "string" && /^(0|[1-9][0-9]{0,38})$/.test(value) ? BigInt(value) : wrong(value);
  return units < 1n << 128n ? units : wrong(value);
};
/** Any text that is one in UTF-8. */
export const text: Form<string> = (value) => (typeof value === "string" && value.isWellFormed() ? value : wrong(value));

/** One of these names. */
export const choice =
  <K extends string>(of: Record<K, number>): Form<K> =>
  (value) =>
    typeof value === "string" && Object.hasOwn(of, value) ? (value as K) : wrong(value);

export const nullable =
  <T>(form: Form<T>): Form<T | null> =>
  (value) =>
    value === null ? null : form(value);

export const list =
  <T>(form: Form<T>): Form<T[]> =>
  (value) =>
    Array.isArray(value) ? value.map(form) : wrong(value);

/** These fields, and no others. */
export const fields =
  <T extends Record<string, Form<unknown>>>(forms: T): Form<{ [K in keyof T]: T[K] extends Form<infer V> ? V : never }> =>
  (value) => {
    if (typeof value !== "object" || value === null || Array.isArray(value)) return wrong(value);
    const names = Object.keys(forms);
    const given = value as Record<string, unknown>;
    const complete = Object.keys(given).length === names.length && names.every((name) => Object.hasOwn(given, name));
    if (!complete) throw new Error(`the fields are not ${names.join(", ")}`);
    const read = names.map((name) => [name, (forms[name] as Form<unknown>)(given[name])] as const);
    return Object.fromEntries(read) as { [K in keyof T]: T[K] extends Form<infer V> ? V : never };
  };

/** How deep a value may be: a receipt is 6 deep. */
const MAX_DEPTH = 64;

/** Reads JSON as RFC 8259 has it, with whole numbers as bigint. `JSON.parse` would round them, and take a field twice. */
export function parse(json: string): unknown {
  let at = 0;
  const fail = (): never => {
    throw new Error(`is no JSON, or has another number than a whole one, at ${at}`);
  };
  const space = () => {
    while (json[at] === " " || json[at] === "\t" || json[at] === "\n" || json[at] === "\r") at += 1;
  };
  const take = (token: string) => {
    if (!json.startsWith(token, at)) fail();
    at += token.length;
  };
  const string = (): string => {
    if (json[at] !== '"') fail();
    // One call for what can be megabytes; what it may not have between its quotes, `JSON.parse` refuses.
    let end = at;
    let backslashes: number;
    do {
      end = json.indexOf('"', end + 1);
      if (end < 0) fail();
      backslashes = 0;
      while (json[end - 1 - backslashes] === "\\") backslashes += 1;
    } while (backslashes % 2 === 1);
    const said = json.slice(at, end + 1);
    at = end + 1;
    try {
      return JSON.parse(said) as string;
    } catch {
      return fail();
    }
  };
  const value = (depth: number): unknown => {
    if (depth > MAX_DEPTH) fail();
    space();
    const first = json[at];
    if (first === '"') return string();
    if (first === "{") {
      const read = new Map<string, unknown>();
      take("{");
      space();
      while (json[at] !== "}") {
        if (read.size > 0) take(",");
        space();
        const name = string();
        if (read.has(name)) throw new Error(`the field ${name.slice(0, 80)} appears twice`);
        space();
        take(":");
        read.set(name, value(depth + 1));
        space();
      }
      take("}");
      return Object.fromEntries(read);
    }
    if (first === "[") {
      const read: unknown[] = [];
      take("[");
      space();
      while (json[at] !== "]") {
        if (read.length > 0) take(",");
        read.push(value(depth + 1));
        space();
      }
      take("]");
      return read;
    }
    for (const [token, meaning] of [["null", null], ["true", true], ["false", false]] as const) {
      if (json.startsWith(token, at)) {
        at += token.length;
        return meaning;
      }
    }
    const number = /(?:0|[1-9][0-9]{0,19})(?![0-9.eE])/y;
    number.lastIndex = at;
    const digits = number.exec(json) ?? fail();
    at += digits[0].length;
    return BigInt(digits[0]);
  };
  const read = value(0);
  space();
  if (at !== json.length) fail();
  return read;
}
