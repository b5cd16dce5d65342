export { Channel, type ChannelTerms } from "./channel.js";
export { type Answer, Client, DEVNET, type Event, type Model, type Offer, type OrderOptions, type Settings, type Signer, walletSigner } from "./client.js";
export { type ErrorKind, NcnError } from "./errors.js";
export { type Certificate, type Order, type Quote, type Receipt, ReceiptError, type TrustRoot, networkHash, parseReceipt, verifyReceipt } from "./receipt.js";
export { type DataType, type File, type Tensor, type Value, type Values, floats, valuesHash } from "./values.js";
