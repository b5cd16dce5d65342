/** The client: orders, pays, follows, and verifies before anything is handed over. */

import { type Address, type Hex, keccak256, sha256, toBytes } from "viem";

import type { Channel } from "./channel.js";
import { NcnError } from "./errors.js";
import { type Certificate, type Order, type Quote, type Receipt, TYPES, type TrustRoot, certified, committeeOf, costOf, networkHash, quoteHash, read, separator, verifyReceipt } from "./receipt.js";
import { type Value, type Values, floats, fromJson, isSame, sizeOf, toJson, value, valuesHash } from "./values.js";
import { call, events } from "./wire.js";

/** The contracts of `ncn devnet`, which everybody knows. */
export const DEVNET = {
  chainId: 31_337n,
  contract: "0x528d8685587b0174a3499df950124f7dcacf2196",
  channels: "0x484ebce5df59271256ccd372e163dfdaf34eda75",
} as const;

/** How far the gateway's clock may be off, in seconds. */
const CLOCK_TOLERANCE = 300n;
/** How long an escrow may be held, in seconds. */
const MAX_ESCROW = 180n * 24n * 3600n;
/** The longest that an order waits by itself for a model that needs more time than the client usually waits, in seconds. */
const LONGEST = 15 * 60;
/** How long is waited before a gateway is asked again that was lost: longer each time, up to this, in milliseconds. */
const PAUSE = 250;
const LONGEST_PAUSE = 5_000;
/** How long a gateway may take to hear that a request is cancelled, and a wallet to sign it, in milliseconds. */
const CANCEL_TIME = 5_000;
/** The most parts of an output, and how many bytes they have together: more than the output has, since a part may replace one before. */
const MAX_PARTS = 1 << 17;
const MAX_BYTES = 32 << 20;
/** The longest time that a timer takes, in milliseconds. */
const LONGEST_TIMER = 2 ** 31 - 1;

/** Signs typed data: a local account of viem's, or `walletSigner`. */
export interface Signer {
  readonly address: Address;
 
  signTypedData(data: any): Promise<Hex>;
}

/** A wallet in a browser, as a signer. */
export function walletSigner(client: { signTypedData(data: unknown): Promise<Hex> }, address: Address): Signer {
  return { address, signTypedData: (data: object) => client.signTypedData({ ...data, account: address }) };
}

/** What a client is made of. */
export interface Settings {
  /** The gateway's URL, `http://` or `https://`. */
  readonly gateway: string;
  /** Which network is trusted: the hash of one, or any development network. */
  readonly network: Hex | "devnet";
  /** The client's key. */
  readonly signer: Signer;
  /** Pays out of this channel; without one, by signatures that the gateway brings to the chain. */
  readonly channel?: Channel;
  /** The most that a request may cost, in the token's smallest units. */
  readonly maxPrice: bigint;
  /** How long to wait for an answer, in seconds: a minute by default, or longer where the model needs it. */
  readonly timeout?: number;
  /** Whether this may be paid; asked before each payment. */
  readonly agree?: (offer: Offer) => boolean | Promise<boolean>;
}

/** What is about to be paid. */
export interface Offer {
  readonly requestId: Hex;
  readonly model: string;
  /** The most that is paid; what is not used comes back. */
  readonly total: bigint;
  readonly gateway: Address;
  readonly compute: Address;
  /** Until when it can be paid, in seconds since 1970. */
  readonly expiry: bigint;
}

/** A model that the gateway offers. */
export interface Model {
  readonly name: string;
  readonly digest: Hex;
  /** The manifest: what it takes and gives. */
  readonly manifest: Record<string, unknown>;
  readonly subnet: Hex;
  readonly price: Quote["price"];
  /** The least timeout that is taken, in seconds. */
  readonly leastTimeout: number;
}

/** An answer whose receipt is verified. */
export interface Answer {
  readonly requestId: Hex;
  readonly output: Values;
  /** What it cost, in the token's smallest units. */
  readonly cost: bigint;
  readonly finish: string;
  readonly receipt: Receipt;
  /** The hash of the network that approved it. */
  readonly network: Hex;
}

/** What comes of a request: parts of its output, that the parts so far are void, and the verified answer. */
export type Event = { readonly part: Values } | { readonly restarted: true } | { readonly answer: Answer };

/** What an order may say besides its inputs. */
export interface OrderOptions {
  readonly parameters?: Record<string, unknown>;
  readonly maxPrice?: bigint;
  readonly timeout?: number;
  /** Gives the request up: it is cancelled at the compute node. */
  readonly signal?: AbortSignal;
}

/** One message of a conversation. */
export interface Message {
  /** Who says it: `system`, `user` or `assistant`. */
  readonly role: string;
  readonly content: string;
}

const now = (): bigint => BigInt(Math.floor(Date.now() / 1000));
/** Waits, unless the signal comes. */
const pause = (millis: number, signal?: AbortSignal): Promise<void> =>
  new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, millis);
    if (signal?.aborted) done();
    signal?.addEventListener("abort", done);
  });
const timer = (millis: number): AbortSignal => AbortSignal.timeout(Math.min(Math.max(1, millis), LONGEST_TIMER));
const any = (signal: AbortSignal | undefined, other: AbortSignal): AbortSignal => (signal ? AbortSignal.any([signal, other]) : other);

/** A way to a network, by one gateway. */
export class Client {
  private constructor(
    private readonly settings: Settings,
    private readonly trust: TrustRoot,
    private readonly gateway: Address,
  ) {}

  /** Connects: asks the gateway for its network, and makes sure that it is the one to trust. */
  static async connect(settings: Settings): Promise<Client> {
    const info = (await call(settings.gateway, "/api/v1/network", undefined)) as { gateway?: unknown; trustRoot?: unknown };
    const trust = shaped(() => read.trustRoot(info.trustRoot));
    const gateway = shaped(() => read.address(info.gateway));
    const { domain, channels } = trust;
    const isDevnet = domain.chainId === DEVNET.chainId && domain.contract === DEVNET.contract && channels === DEVNET.channels;
    const stated = networkHash(trust);
    if (settings.network === "devnet" ? !isDevnet : stated !== settings.network.toLowerCase()) {
      throw new NcnError("configuration", `network: the gateway is of network ${stated}: nothing was signed`);
    }
    const terms = settings.channel?.terms;
    if (terms && (terms.gateway !== gateway || terms.client !== settings.signer.address.toLowerCase())) {
      throw new NcnError("configuration", "channel: is another client's, or with another gateway");
    }
    return new Client(settings, trust, gateway);
  }

  /** What the gateway offers now. */
  async models(signal?: AbortSignal): Promise<Model[]> {
    const listed = await call(this.settings.gateway, "/api/v1/models", signal);
    if (!Array.isArray(listed)) throw new NcnError("refused", "models: is no list");
    return listed.map((entry: Record<string, unknown>) =>
      shaped(() => {
        const text = read.text(entry.model);
        const manifest = JSON.parse(text) as Record<string, unknown>;
        const leastTimeout = Math.ceil(Number(read.count(entry.leastTimeoutMicros)) / 1e6);
        const name = read.text(manifest.name);
        return { name, digest: sha256(toBytes(text)), manifest, subnet: read.hash(entry.subnet), price: read.price(entry.price), leastTimeout };
      }),
    );
  }

  /** Orders, pays and waits for the verified answer. */
  async infer(model: string, inputs: Record<string, unknown>, options: OrderOptions = {}): Promise<Answer> {
    try {
      for await (const event of this.stream(model, inputs, options)) {
        if ("answer" in event) return event.answer;
      }
    } catch (error) {
      // Nobody has been given the parts.
      if (error instanceof NcnError && error.answer) return error.answer;
      throw error;
    }
    throw new NcnError("internal", "the request has no end");
  }

  /** Orders and pays; parts come as they are made, before anyone has approved them. Who leaves the loop before the answer cancels the request. */
  async *stream(model: string, inputs: Record<string, unknown>, options: OrderOptions = {}): AsyncGenerator<Event, void, undefined> {
    const values = Object.fromEntries(Object.entries(inputs).map(([name, given]) => [name, value(name, given)]));
    const request = await this.order(model, values, options);
    let [isOver, isPaid] = [false, false];
    try {
      await this.agree(model, request, options.signal);
      const pays = await this.pay(request.quote);
      // From here on the client's word is out, and its money with it.
      isPaid = true;
      await this.present(request, pays, options.signal);
      yield* this.follow(request, options.signal, () => (isOver = true));
    } catch (error) {
      if (!isPaid && !(error instanceof NcnError && error.kind === "notAllowed")) {
        // A wallet that refused is not asked to sign that, too: an order that is not paid ends by itself.
        this.settings.channel?.forget(request.quote.requestId);
        isOver ||= !options.signal?.aborted;
      }
      if (!isPaid || options.signal?.aborted || (error instanceof NcnError && error.paid)) throw error;
      throw new NcnError("unproven", (error as Error).message, false, true, { cause: error });
    } finally {
      if (!isOver) {
        // It may take a wallet's owner; nobody waits for that for ever.
        await Promise.race([this.withdraw(request).catch(() => undefined), pause(CANCEL_TIME)]);
        if (isPaid && this.settings.channel) void this.conclude(request);
      }
    }
  }

  /** Waits for the end of a request that was given up, so that what its voucher promised and it did not cost is free again. */
  private async conclude(request: Requested): Promise<void> {
    try {
      for await (const _ of this.follow(request, undefined, () => undefined));
    } catch {
      // Nothing proves what it has cost: the amount stays promised.
    }
  }

  /** Has a model go on with a conversation: one that takes the input `messages`. */
  chat(model: string, messages: readonly Message[], options: OrderOptions = {}): AsyncGenerator<Event, void, undefined> {
    return this.stream(model, { messages: JSON.stringify(messages.map(({ role, content }) => ({ role, content }))) }, options);
  }

  /** The embedding of a text, by a model that takes the input `text` and gives a tensor `embedding` of `f32`. */
  async embed(model: string, text: string, options: OrderOptions = {}): Promise<Float32Array> {
    const { embedding } = (await this.infer(model, { text }, options)).output;
    if (typeof embedding !== "object" || !("dtype" in embedding)) throw new NcnError("input", "model: gives no tensor `embedding`");
    return floats(embedding);
  }

  private async order(name: string, inputs: Values, options: OrderOptions): Promise<Requested> {
    const { gateway, signer } = this.settings;
    const models = await this.models(options.signal);
    const model = models.find((offered) => offered.name === name);
    if (!model) throw new NcnError("unknownModel", `model \`${name}\` is not offered here; offered: ${models.map((offered) => offered.name).join(", ")}`);
    const usual = this.settings.timeout ?? 60;
    // A gateway does not have a payment held for a day by saying that its model needs one.
    const timeout = options.timeout ?? Math.max(usual, Math.min(model.leastTimeout + 2, LONGEST));
    if (timeout < model.leastTimeout) throw new NcnError("timeoutTooShort", `timeout: ${timeout} s are less than the ${model.leastTimeout} s that the model may take`);
    const late = timer(timeout * 1000);
    const signal = any(options.signal, late);
    const tickets = (await call(gateway, "/api/v1/tickets", signal, { count: 1 })) as { id?: unknown; draw?: unknown }[] | undefined;
    const ticket = shaped(() => ({ id: read.hash(tickets?.[0]?.id), draw: read.hash(tickets?.[0]?.draw) }));
    const message: Order = {
      client: signer.address.toLowerCase() as Address,
      subnet: model.subnet,
      modelDigest: model.digest,
      inputHash: valuesHash(inputs),
      parameters: JSON.stringify(options.parameters ?? {}),
      maxPrice: options.maxPrice ?? this.settings.maxPrice,
      deadline: now() + BigInt(Math.floor(timeout)),
      nonce: random(),
      draw: ticket.draw,
    };
    const signature = await this.sign("InferenceRequest", message);
    const body = { request: { message: { ...message, maxPrice: message.maxPrice.toString() }, signature }, inputs: toJson(inputs), ticket: ticket.id };
    let status: Record<string, unknown>;
    try {
      status = ((await call(gateway, "/api/v1/inference", signal, body)) ?? {}) as Record<string, unknown>;
    } catch (error) {
      if (options.signal?.aborted || !late.aborted) throw error;
      throw new NcnError("unavailable", `gateway ${gateway}: gave no quote in time, nothing was paid`, true, false, { cause: error });
    }
    if (status.quote === null || status.quote === undefined) throw new NcnError("refused", `the request was not served, nothing was paid: ${String(status.failure ?? "the gateway gave no reason")}`);
    const quote = shaped(() => read.quote(status.quote));
    const approval = shaped(() => read.certificate(status.preprocessing));
    await this.approved(message, model, quote, approval);
    const requested = { message, signature, quote };
    // Before anything is paid: who cannot follow is not charged.
    return { ...requested, follow: await this.access(requested, FOLLOW) };
  }

  /** Makes sure that a quote is for this order, at the price that was listed, and that those have approved it who were drawn. */
  private async approved(order: Order, model: Model, quote: Quote, approval: Certificate): Promise<void> {
    const reject = (problem: string): never => {
      throw new NcnError("quoteRejected", `the quote was rejected, nothing was paid: ${problem}`);
    };
    const { trust } = this;
    const domain = separator(trust.domain.chainId, trust.domain.contract);
    const requestId = read.digest(domain, order);
    if (quote.requestId !== requestId || quote.client !== order.client || quote.modelDigest !== order.modelDigest) reject("it is for another order");
    if (quote.gateway !== this.gateway) reject("quote.gateway: is another one");
    if (quote.trustRoot !== networkHash(trust)) reject("quote.trustRoot: is another network");
    if (keccak256(quote.salt) !== order.draw) reject("quote.salt: is not the one of the draw");
    if (JSON.stringify(quote.price, units) !== JSON.stringify(model.price, units)) reject("quote.price: is not what the gateway has listed");
    if (quote.total !== costOf(quote.price, quote.maxUnits.input, quote.maxUnits.output)) reject("quote.total: is not what its units cost");
    if (quote.total > order.maxPrice) reject("quote.total: is more than was allowed");
    if (quote.expiry > order.deadline || quote.expiry <= now()) reject("quote.expiry: is past, or after the deadline");
    const committee = committeeOf(trust, quote.salt, requestId);
    if (quote.committee !== committee.hash) reject("quote.committee: was not drawn");
    try {
      await certified(approval, domain, quoteHash(quote), trust.threshold, committee.members, "preprocessing");
    } catch (error) {
      reject((error as Error).message);
    }
  }

  private async agree(model: string, { quote }: Requested, signal: AbortSignal | undefined): Promise<void> {
    signal?.throwIfAborted();
    const { requestId, total, gateway, compute, expiry } = quote;
    const agreed = await (this.settings.agree?.({ requestId, model, total, gateway, compute, expiry }) ?? true);
    if (!agreed) throw new NcnError("notAllowed", "the spend policy does not allow it");
    signal?.throwIfAborted();
  }

  /** What pays a quote: a voucher, or a signature that moves its total into escrow. */
  private async pay(quote: Quote): Promise<unknown> {
    const { channel, signer } = this.settings;
    const { trust } = this;
    if (channel) return { authorization: { voucher: await channel.pay(quote, trust, signer) } };
    const domain = { name: "NCN", version: "1", chainId: trust.domain.chainId, verifyingContract: trust.token };
    const types = { ReceiveWithAuthorization: ERC3009 };
    const message = { from: quote.client, to: trust.domain.contract, value: quote.total, validAfter: 0n, validBefore: quote.expiry, nonce: quoteHash(quote) };
    return { authorization: { transfer: await signer.signTypedData({ domain, types, primaryType: "ReceiveWithAuthorization", message }) } };
  }

  /** Follows a paid request; `over` is called once the gateway has said how it ended. */
  private async *follow(request: Requested, signal: AbortSignal | undefined, over: () => void): AsyncGenerator<Event, void, undefined> {
    const { gateway, channel } = this.settings;
    const { requestId, expiry } = request.quote;
    const path = `/api/v1/inference/${requestId}`;
    /** What was handed out, and how many of these parts their node has signed. */
    const parts: Values[] = [];
    let [signed, bytes, isAgreed, wasSigned] = [0, 0, false, false];
    function* voided(keep: number): Generator<Event> {
      if (parts.length <= keep) return;
      parts.length = keep;
      yield { restarted: true };
      for (const part of parts) yield { part };
    }
    const stop = timer((Number(expiry - now()) + 1) * 1000);
    const both = any(signal, stop);
    let [last, tries]: [string | undefined, number] = [undefined, 0];
    for (;;) {
      try {
        for await (const { id, name, data } of events(gateway, `${path}/events`, both, request.follow, last)) {
          if (id === "") throw new NcnError("unavailable", "the gateway tells of an error", true);
          if (!/^[0-9]{1,20}$/.test(id)) throw new NcnError("refused", "gateway: an event's id is no number", false, true);
          // A gateway that was restarted counts from elsewhere, and tells everything again.
          if (last !== undefined && BigInt(id) !== BigInt(last) + 1n) {
            yield* voided(0);
            signed = 0;
          }
          [last, tries] = [id, 0];
          const event = ((data as { event?: Record<string, unknown> }).event ?? {})[name] as Record<string, unknown> | undefined;
          if (name === "chunk") {
            if (parts.length === MAX_PARTS) throw new NcnError("partsRejected", "the output has too many parts", false, true);
            const part = fromJson(event?.values);
            bytes += Object.values(part).reduce((sum, value) => sum + sizeOf(value), 0);
            if (bytes > MAX_BYTES) throw new NcnError("partsRejected", "the output's parts have too many bytes", false, true);
            parts.push(part);
            yield { part };
          } else if (name === "checkpoint") {
            [signed, wasSigned] = [parts.length, true];
          } else if (name === "attempt") {
            yield* voided(0);
            signed = 0;
          } else if (name === "takeover") {
            yield* voided(signed);
          } else if (name === "givenUp" && parts.length === 0 && !wasSigned && !isAgreed) {
            isAgreed = true;
            await this.withdraw(request).catch(() => undefined);
          } else if (name === "delivered") {
            over();
            const answer = await this.accept(request, event ?? {});
            channel?.end(requestId, answer.cost);
            // What its node has not signed in the end is no part of it.
            yield* voided(Number(answer.receipt.delivery.results.at(-1)?.message.parts ?? 0));
            if (!beginsWith(answer.output, parts)) {
              throw new NcnError("partsRejected", "the parts that were streamed are not those of the output: throw them away", false, true, { answer });
            }
            yield { answer };
            return;
          } else if (name === "failed") {
            over();
            throw this.failed(event ?? {});
          }
        }
      } catch (error) {
        if (error instanceof NcnError && error.kind !== "unavailable") throw error;
        if (signal?.aborted) throw signal.reason;
        if (stop.aborted) throw new NcnError("notRefunded", "the gateway delivered nothing in time: the payment can be had back from the chain", false, true);
        if (!(error instanceof NcnError)) throw error;
      }
      // As long as the request may still be served.
      if (now() > expiry) throw new NcnError("unproven", "the gateway is lost, and it is not proven what became of the payment", false, true);
      tries += 1;
      await pause(Math.min(PAUSE * tries, LONGEST_PAUSE), both);
    }
  }

  /** Tells the gateway what pays, again where its answer is lost: paying twice is paying once. */
  private async present({ quote }: Requested, pays: unknown, signal: AbortSignal | undefined): Promise<void> {
    const path = `/api/v1/inference/${quote.requestId}/payment`;
    for (let tries = 1; ; tries += 1) {
      try {
        await call(this.settings.gateway, path, signal, pays);
        return;
      } catch (error) {
        if (!(error instanceof NcnError)) throw error;
        // The gateway has the signature, whatever it says.
        if (!error.retryable) throw new NcnError("unproven", `the payment was refused, and nothing proves that it is not used: ${error.message}`, false, true);
        if (now() > quote.expiry) throw new NcnError("unproven", error.message, false, true);
        await pause(Math.min(PAUSE * tries, LONGEST_PAUSE), signal);
      }
    }
  }

  private failed({ outcome, reason }: Record<string, unknown>): NcnError {
    const said = String(reason ?? "");
    // Neither the chain nor a receipt has been asked: what the gateway says of the money is its word.
    return new NcnError("unproven", `the request failed (${String(outcome)}: ${said}), and only the gateway says what became of the payment`, false, true);
  }

  /** Hands an output over only with the proof of it. */
  private async accept(request: Requested, { output, receipt: given }: Record<string, unknown>): Promise<Answer> {
    const reject = (problem: string): never => {
      throw new NcnError("receiptRejected", `the receipt was rejected and the output withheld: ${problem}`, false, true);
    };
    let values: Values;
    let receipt: Receipt;
    let network: Hex;
    try {
      values = fromJson(output);
      receipt = read.receipt(given);
      network = await verifyReceipt(receipt, networkHash(this.trust));
    } catch (error) {
      return reject((error as Error).message);
    }
    const same = receipt.request.signature === request.signature && quoteHash(receipt.quote) === quoteHash(request.quote) && receipt.quote.requestId === request.quote.requestId;
    if (!same) reject("it is for another request");
    const { channel } = this.settings;
    const isOwn = channel ? "channel" in receipt.payment && receipt.payment.channel.voucher.channel === channel.id : "escrow" in receipt.payment;
    if (!isOwn) reject("payment: is another one than was made");
    if (receipt.delivery.results.at(-1)?.message.outputHash !== valuesHash(values)) reject("the output is not the one that was signed and approved");
    const at = receipt.issuedAt;
    if (at > now() + CLOCK_TOLERANCE || at + CLOCK_TOLERANCE + MAX_ESCROW < receipt.quote.expiry) reject(`issuedAt: ${at} is not between the order and now`);
    return { requestId: receipt.quote.requestId, output: values, cost: receipt.payments.total, finish: receipt.delivery.finish, receipt, network };
  }

  private async withdraw(request: Requested): Promise<void> {
    const access = await this.access(request, CANCEL);
    const signal = AbortSignal.timeout(CANCEL_TIME);
    await call(this.settings.gateway, `/api/v1/inference/${request.quote.requestId}/cancel`, signal, {}, access);
  }

  private async access({ message, quote }: Omit<Requested, "follow">, [purpose, scope]: readonly [number, string]): Promise<string> {
    const signature = await this.sign("TaskAccess", { client: message.client, requestId: quote.requestId, purpose });
    const said = JSON.stringify({ message: { client: message.client, requestId: quote.requestId, scope }, signature });
    return btoa(said).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
  }

  private sign(primaryType: string, message: object): Promise<Hex> {
    const { chainId, contract } = this.trust.domain;
    const domain = { name: "NCN", version: "2", chainId, verifyingContract: contract };
    return this.settings.signer.signTypedData({ domain, types: TYPES, primaryType, message });
  }
}

interface Requested {
  readonly message: Order;
  readonly signature: Hex;
  readonly quote: Quote;
  /** What lets its client follow it. */
  readonly follow: string;
}

const FOLLOW = [1, "follow"] as const;
const CANCEL = [2, "cancel"] as const;

const ERC3009 = [
  { name: "from", type: "address" },
  { name: "to", type: "address" },
  { name: "value", type: "uint256" },
  { name: "validAfter", type: "uint256" },
  { name: "validBefore", type: "uint256" },
  { name: "nonce", type: "bytes32" },
] as const;

const units = (_: string, part: unknown) => (typeof part === "bigint" ? part.toString() : part);

function random(): Hex {
  const bytes = crypto.getRandomValues(new Uint8Array(32));
  return `0x${Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}

/** What a gateway says, in the form that it has to have. */
function shaped<T>(read: () => T): T {
  try {
    return read();
  } catch (error) {
    throw new NcnError("refused", `gateway: ${(error as Error).message}`, false, false, { cause: error });
  }
}

/** Whether the parts are what an output begins with: a text goes on, and what is no text is what the last part had of it. */
function beginsWith(output: Values, parts: readonly Values[]): boolean {
  const begun = new Map<string, Value>();
  for (const part of parts) {
    for (const [name, value] of Object.entries(part)) {
      const before = begun.get(name);
      begun.set(name, typeof value === "string" && typeof before === "string" ? before + value : value);
    }
  }
  return [...begun].every(([name, value]) => {
    const whole = Object.hasOwn(output, name) ? (output[name] as Value) : undefined;
    if (whole === undefined) return false;
    return typeof value === "string" ? typeof whole === "string" && whole.startsWith(value) : isSame(value, whole);
  });
}

