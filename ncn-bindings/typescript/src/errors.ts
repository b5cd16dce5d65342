import type { Answer } from "./client.js";

/** What kind of error it is: what to do about it. The names are those of the other languages. */
export type ErrorKind =
  | "configuration"
  | "input"
  | "unknownModel"
  | "tooExpensive"
  | "notAllowed"
  | "timeoutTooShort"
  | "key"
  | "unavailable"
  | "refused"
  | "payment"
  | "quoteRejected"
  | "refunded"
  | "notRefunded"
  | "unproven"
  | "receiptRejected"
  | "partsRejected"
  | "internal";

/** Why there is no answer. `paid` is true when the client's money has been paid out or is still held, or nothing proves that it is not. */
export class NcnError extends Error {
  override readonly name = "NcnError";
  /** The verified answer, where only the parts before it are wrong. */
  readonly answer?: Answer;

  constructor(
    readonly kind: ErrorKind,
    message: string,
    readonly retryable = false,
    readonly paid = false,
    options: ErrorOptions & { readonly answer?: Answer } = {},
  ) {
    super(message, options);
    if (options.answer) this.answer = options.answer;
  }
}
