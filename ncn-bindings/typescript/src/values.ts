/** What goes into a model and what comes out of it. */

import { type Hex, sha256 } from "viem";

import { NcnError } from "./errors.js";

/** A tensor, row-major, little-endian. */
export interface Tensor {
  readonly dtype: DataType;
  readonly shape: readonly number[];
  readonly data: Uint8Array;
}

/** A file, such as an image. */
export interface File {
  readonly mediaType: string;
  readonly data: Uint8Array;
}

/** One input or output: text, numbers, or a file. */
export type Value = string | Tensor | File;
/** Named values. */
export type Values = Readonly<Record<string, Value>>;

const CODES = { bool: 1, u8: 2, i8: 3, i32: 4, i64: 5, f32: 6 } as const;
const SIZES = { bool: 1, u8: 1, i8: 1, i32: 4, i64: 8, f32: 4 } as const;
/** The most dimensions of a tensor. */
const MAX_RANK = 8;
/** What a tensor's elements are. */
export type DataType = keyof typeof CODES;

const MAGIC: readonly [readonly number[], string][] = [
  [[0x89, 0x50, 0x4e, 0x47], "image/png"],
  [[0xff, 0xd8, 0xff], "image/jpeg"],
];

/** A value of what programs have: a text, bytes (whose kind is seen by how they begin), numbers of 32 bits, or a value. */
export function value(name: string, given: unknown): Value {
  if (typeof given === "string") return given;
  if (given instanceof ArrayBuffer) return value(name, new Uint8Array(given));
  if (given instanceof Float32Array) return { dtype: "f32", shape: [1, given.length], data: bytes(given) };
  if (given instanceof Uint8Array) {
    const kind = MAGIC.find(([magic]) => magic.every((byte, index) => given[index] === byte));
    return { mediaType: kind?.[1] ?? "application/octet-stream", data: given };
  }
  const { data, mediaType, dtype, shape } = (given ?? {}) as Partial<Tensor & File>;
  if (data instanceof Uint8Array && typeof mediaType === "string") return { mediaType, data };
  if (data instanceof Uint8Array && dtype !== undefined && Object.hasOwn(CODES, dtype) && Array.isArray(shape)) return { dtype, shape, data };
  throw new TypeError(`input \`${name}\`: give a string, bytes, a Float32Array, a tensor or a file`);
}

const bytes = (array: Float32Array): Uint8Array => {
  const view = new DataView(new ArrayBuffer(4 * array.length));
  array.forEach((element, index) => view.setFloat32(4 * index, element, true));
  return new Uint8Array(view.buffer);
};

/** SHA-256 of the values' one canonical encoding, which orders and receipts bind. */
export function valuesHash(values: Values): Hex {
  const parts: Uint8Array[] = [];
  const number = (n: number) => {
    const view = new DataView(new ArrayBuffer(8));
    view.setBigUint64(0, BigInt(n), true);
    parts.push(new Uint8Array(view.buffer));
  };
  const part = (data: Uint8Array) => {
    number(data.length);
    parts.push(data);
  };
  const text = (said: string) => part(new TextEncoder().encode(said));
  parts.push(new TextEncoder().encode("ncn.values.v1"));
  // By the order of the names' bytes, which UTF-16 has in another order.
  const entries = Object.entries(values).map(([name, value]) => [new TextEncoder().encode(name), value] as const);
  entries.sort(([one], [other]) => compare(one, other));
  number(entries.length);
  for (const [name, value] of entries) {
    part(name);
    if (typeof value === "string") {
      parts.push(Uint8Array.of(2));
      text(value);
    } else if ("dtype" in value) {
      parts.push(Uint8Array.of(1, CODES[value.dtype]));
      number(value.shape.length);
      value.shape.forEach(number);
      part(value.data);
    } else {
      parts.push(Uint8Array.of(3));
      text(value.mediaType);
      part(value.data);
    }
  }
  const all = new Uint8Array(parts.reduce((length, one) => length + one.length, 0));
  let at = 0;
  for (const one of parts) {
    all.set(one, at);
    at += one.length;
  }
  return sha256(all);
}

function compare(one: Uint8Array, other: Uint8Array): number {
  for (let at = 0; at < Math.min(one.length, other.length); at += 1) {
    const difference = (one[at] as number) - (other[at] as number);
    if (difference !== 0) return difference;
  }
  return one.length - other.length;
}

function toBase64(data: Uint8Array): string {
  let text = "";
  for (let at = 0; at < data.length; at += 0x8000) text += String.fromCharCode(...data.subarray(at, at + 0x8000));
  return btoa(text);
}

const fromBase64 = (text: string): Uint8Array => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));

/** Values as the wire has them. */
export function toJson(values: Values): unknown {
  const json = (value: Value) => {
    if (typeof value === "string") return { text: value };
    if ("dtype" in value) return { tensor: { data_type: value.dtype, shape: value.shape, data: toBase64(value.data) } };
    return { file: { media_type: value.mediaType, data: toBase64(value.data) } };
  };
  return Object.fromEntries(Object.entries(values).map(([name, value]) => [name, json(value)]));
}

/** Values off the wire. Of two that have one hash, one is refused. */
export function fromJson(json: unknown): Record<string, Value> {
  const wrong = () => new NcnError("refused", "values: are none");
  const text = (given: unknown): string => {
    // Half of a pair has no bytes of its own in UTF-8.
    if (typeof given !== "string" || /\p{Surrogate}/u.test(given)) throw wrong();
    return given;
  };
  const dimension = (given: unknown): number => {
    if (typeof given !== "bigint" || given < 0n || given > Number.MAX_SAFE_INTEGER) throw wrong();
    return Number(given);
  };
  const read = (item: unknown): Value => {
    const { text: said, tensor, file } = (item ?? {}) as { text?: unknown; tensor?: Record<string, unknown>; file?: Record<string, unknown> };
    if (said !== undefined) return text(said);
    if (tensor && Array.isArray(tensor.shape) && tensor.shape.length <= MAX_RANK) {
      const dtype = text(tensor.data_type);
      if (!Object.hasOwn(CODES, dtype)) throw wrong();
      const [shape, data] = [tensor.shape.map(dimension), fromBase64(text(tensor.data))];
      if (shape.reduce((size, length) => size * length, SIZES[dtype as DataType]) !== data.length) throw wrong();
      return { dtype: dtype as DataType, shape, data };
    }
    if (file) return { mediaType: text(file.media_type), data: fromBase64(text(file.data)) };
    throw wrong();
  };
  if (typeof json !== "object" || json === null || Array.isArray(json)) throw wrong();
  return Object.fromEntries(Object.entries(json).map(([name, item]) => [text(name), read(item)]));
}

/** How many bytes a value has. */
export const sizeOf = (value: Value): number => (typeof value === "string" ? value.length : value.data.length);

/** Whether two values are the same. */
export function isSame(one: Value, other: Value): boolean {
  return valuesHash({ value: one }) === valuesHash({ value: other });
}

/** The numbers of an `f32` tensor. */
export function floats(tensor: Tensor): Float32Array {
  if (tensor.dtype !== "f32") throw new TypeError(`a tensor of ${tensor.dtype} has no floats`);
  const view = new DataView(tensor.data.buffer, tensor.data.byteOffset, tensor.data.byteLength);
  return Float32Array.from({ length: tensor.data.length / 4 }, (_, index) => view.getFloat32(4 * index, true));
}
