/** A client's own channel: what it has promised, what that came to, and the next voucher. */

import { type Address, type Hex, encodeAbiParameters, keccak256, parseAbiParameters } from "viem";

import type { Signer } from "./client.js";
import { NcnError } from "./errors.js";
import { parse } from "./form.js";
import { type Quote, TYPES, type TrustRoot, quoteHash } from "./receipt.js";

/** Which channel. */
export interface ChannelTerms {
  readonly client: Address;
  readonly gateway: Address;
  readonly salt: Hex;
}

interface Voucher {
  readonly channel: Hex;
  readonly requestId: Hex;
  readonly quote: Hex;
  readonly committee: Hex;
  readonly number: bigint;
  readonly amount: bigint;
  readonly cumulative: bigint;
}

/**
 * A channel that was opened before. It must not forget what it has promised: `keep` is called with its JSON, and awaited, before a voucher leaves. One program
 * at a time may use it.
 */
export class Channel {
  private spent: bigint;
  private next: bigint;
  private readonly held = new Map<Hex, bigint>();
  /** One voucher after the other, so that each is kept before the next is signed. */
  private last: Promise<unknown> = Promise.resolve();

  constructor(
    readonly terms: ChannelTerms,
    readonly deposit: bigint,
    readonly expiry: bigint,
    private readonly keep: (json: string) => void | Promise<void> = () => undefined,
    state: { spent: bigint; next: bigint; reserved: bigint } = { spent: 0n, next: 0n, reserved: 0n },
  ) {
    // What a process before this one has promised, and of which no end is known, stays promised.
    this.spent = state.spent + state.reserved;
    this.next = state.next;
  }

  /** The channel in the file that `ncn channel open` or `toJSON` has made. */
  static parse(json: string, keep?: (json: string) => void | Promise<void>): Channel {
    const wrong = (error?: unknown) => new NcnError("configuration", "channel: is no channel's file, or damaged", false, false, { cause: error });
    try {
      const { terms, deposit, expiry, spent, next, held } = parse(json) as {
        terms: ChannelTerms;
        deposit: string;
        expiry: bigint;
        spent: string;
        next: bigint;
        held: Record<Hex, { voucher: { amount: string } }>;
      };
      const reserved = Object.values(held).reduce((all, one) => all + BigInt(one.voucher.amount), 0n);
      if (typeof expiry !== "bigint" || typeof next !== "bigint" || !/^0x[0-9a-f]{64}$/.test(terms.salt)) throw wrong();
      return new Channel(terms, BigInt(deposit), expiry, keep, { spent: BigInt(spent), next, reserved });
    } catch (error) {
      throw error instanceof NcnError ? error : wrong(error);
    }
  }

  /** The channel's id. */
  get id(): Hex {
    const { client, gateway, salt } = this.terms;
    return keccak256(encodeAbiParameters(parseAbiParameters("address, address, bytes32"), [client, gateway, salt]));
  }

  /** What is free. */
  get available(): bigint {
    return this.deposit - this.spent - this.reserved;
  }

  private get reserved(): bigint {
    return [...this.held.values()].reduce((all, one) => all + one, 0n);
  }

  /** What is to be kept. */
  toJSON(): string {
    const state = { terms: this.terms, deposit: `${this.deposit}`, spent: `${this.spent + this.reserved}`, held: {} };
    const text = JSON.stringify(state);
    // Numbers of 64 bits are written by hand: JSON has them, and JavaScript's numbers do not.
    return `${text.slice(0, -1)},"expiry":${this.expiry},"next":${this.next}}`;
  }

  /** The voucher that pays a quote, once it is kept. */
  pay(quote: Quote, trust: TrustRoot, signer: Signer): Promise<unknown> {
    const paying = this.last.then(() => this.voucher(quote, trust, signer));
    this.last = paying.catch(() => undefined);
    return paying;
  }

  private async voucher(quote: Quote, trust: TrustRoot, signer: Signer): Promise<unknown> {
    if (quote.expiry >= this.expiry) throw new NcnError("payment", `channel: expires at ${this.expiry}: extend it by a top-up`);
    if (quote.total > this.available) throw new NcnError("payment", `channel: has ${this.available} left, ${quote.total} are needed: top it up`);
    this.held.set(quote.requestId, quote.total);
    const voucher: Voucher = {
      channel: this.id,
      requestId: quote.requestId,
      quote: quoteHash(quote),
      committee: quote.committee,
      number: this.next,
      amount: quote.total,
      cumulative: this.spent + this.reserved,
    };
    this.next += 1n;
    const domain = { name: "NCN", version: "2", chainId: trust.domain.chainId, verifyingContract: trust.channels };
    let signature: Hex;
    try {
      await this.keep(this.toJSON());
      signature = await signer.signTypedData({ domain, types: TYPES, primaryType: "Voucher", message: voucher });
    } catch (error) {
      this.forget(quote.requestId);
      throw error;
    }
    return { terms: this.terms, voucher: { ...voucher, amount: `${voucher.amount}`, cumulative: `${voucher.cumulative}` }, signature };
  }

  /** No voucher of a request has left: its amount is free again. */
  forget(requestId: Hex): void {
    this.held.delete(requestId);
  }

  /** A request has its verified receipt: what it cost is spent, and the rest of its amount is free again. */
  end(requestId: Hex, cost: bigint): void {
    if (this.held.delete(requestId)) this.spent += cost;
  }
}
