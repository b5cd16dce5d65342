//! Rust and Solidity compute the same digests, for every message and whatever is in it.

use std::sync::Arc;

use alloy_primitives::{Address, B256, Bytes, TxKind, U256};
use alloy_sol_types::{SolCall as _, SolValue};
use ncn_client::evm::{self, EvmReader as _};
use ncn_core::{
    Acknowledgement, Amount, CapabilityScope, ChannelCharge, ChannelClose, ChannelPayout, ChannelSettlement, Committee, Completion,
    CompletionAuthorization, Confinement, Continuation, Contribution, Deregistration, Dispatch, Domain, DowntimeReport, FeeSplit,
    FinishReason, Heartbeat, InferenceRequest, InferenceResult, Message, NodeRecord, NodeRole, PaymentKind, Price, Quote,
    ReceiptSeal, SessionProof, SettlementLeaf, SettlementRequest, Subnet, SubnetModel, TaskCapability, Unit, UnitPrice, Units,
    Usage, Voucher, channel::Numbers, mempool::PendingRequests,
};
use ncn_devnet::EmbeddedChain;
use proptest::{
    prelude::*,
    strategy::ValueTree as _,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

use crate::scene::key;

#[allow(clippy::pedantic, unreachable_pub)]
mod generated {
    alloy_sol_types::sol!(MessageHarness, "../../../contracts/artifacts/MessageHarness.json");
}
use generated::MessageHarness as harness;

const ROUNDS: usize = 40;
const FINISHES: [FinishReason; 5] =
    [FinishReason::Stop, FinishReason::Length, FinishReason::Deadline, FinishReason::Cancelled, FinishReason::NodeLost];

/// The harness contract on a chain, and a source of arbitrary values.
struct Any {
    chain: Arc<EmbeddedChain>,
    contract: Address,
    runner: TestRunner,
}

impl Any {
    async fn new() -> Self {
        let chain = Arc::new(EmbeddedChain::new(1));
        let contract = evm::create(chain.clone(), &key(), harness::BYTECODE.clone()).await.unwrap();
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
        Self { chain, contract, runner: TestRunner::new_with_rng(Config::default(), rng) }
    }

    fn any<T: std::fmt::Debug>(&mut self, strategy: impl Strategy<Value = T>) -> T {
        strategy.new_tree(&mut self.runner).unwrap().current()
    }

    fn hash(&mut self) -> B256 {
        self.any(any::<[u8; 32]>()).into()
    }

    fn address(&mut self) -> Address {
        self.any(any::<[u8; 20]>()).into()
    }

    fn number(&mut self) -> u64 {
        self.any(any::<u64>())
    }

    fn amount(&mut self) -> Amount {
        Amount::new(self.any(any::<u128>()))
    }

    fn text(&mut self) -> String {
        self.any(".{0,40}")
    }

    fn price(&mut self) -> Price {
        let units = [Unit::Request, Unit::Token, Unit::Row, Unit::Second, Unit::Image];
        let mut unit = || UnitPrice { unit: self.any(prop::sample::select(units.to_vec())), price: self.amount() };
        let (input, output) = (unit(), unit());
        Price { base: self.amount(), input, output }
    }

    fn split(&mut self) -> FeeSplit {
        let mut small = || self.any(any::<u16>());
        FeeSplit { gateway_bps: small(), validators_bps: small(), treasury_bps: small() }
    }

    fn confinement(&mut self) -> Confinement {
        self.any(prop::sample::select(vec![Confinement::None, Confinement::Reduced, Confinement::Full]))
    }

    async fn call(&self, input: Bytes) -> Result<Bytes, evm::EvmError> {
        self.chain.call(&evm::Call { from: Address::ZERO, to: TxKind::Call(self.contract), input }).await
    }

    async fn ask(&self, selector: [u8; 4], arguments: Vec<u8>) -> B256 {
        let data = Bytes::from([&selector[..], &arguments].concat());
        B256::from_slice(&self.call(data).await.unwrap())
    }

    /// The contract's function computes Rust's struct hash, and the digest under a domain.
    async fn agree<M: Message>(&mut self, message: &M, function: [u8; 4])
    where
        M::Sol: SolValue<SolType = M::Sol>,
    {
        let arguments = message.to_sol().abi_encode();
        let struct_hash = self.ask(function, arguments).await;
        assert_eq!(message.struct_hash(), struct_hash);
        let domain = Domain { chain_id: self.number(), contract: self.address() };
        let ask = harness::digestCall { chainId: U256::from(domain.chain_id), payment: domain.contract, structHash: struct_hash };
        let digest = B256::from_slice(&self.call(ask.abi_encode().into()).await.unwrap());
        assert_eq!(message.digest(&domain), digest);
    }
}

#[tokio::test]
async fn the_messages_of_a_request() {
    let mut any = Any::new().await;
    for round in 0..ROUNDS {
        let request = InferenceRequest {
            client: any.address(),
            subnet: any.hash(),
            model_digest: any.hash(),
            input_hash: any.hash(),
            parameters: any.text(),
            max_price: any.amount(),
            deadline: any.number(),
            nonce: any.hash(),
            draw: any.hash(),
        };
        any.agree(&request, harness::hashInferenceRequestCall::SELECTOR).await;
        let quote = Quote {
            request_id: any.hash(),
            client: any.address(),
            gateway: any.address(),
            compute: any.address(),
            model_digest: any.hash(),
            price: any.price(),
            max_units: Units { input: any.number(), output: any.number() },
            total: any.amount(),
            split: any.split(),
            expiry: any.number(),
            trust_root: any.hash(),
            epoch: any.number(),
            salt: any.hash(),
            committee: any.hash(),
        };
        any.agree(&quote, harness::hashQuoteCall::SELECTOR).await;
        let members = (0..round % 6).map(|_| any.address()).collect();
        let committee = Committee { threshold: u16::try_from(round).unwrap(), members };
        any.agree(&committee, harness::hashCommitteeCall::SELECTOR).await;
        let usage = Usage { input_units: any.number(), output_units: any.number(), duration_micros: any.number() };
        let result = InferenceResult {
            request_id: any.hash(),
            compute: any.address(),
            model_digest: any.hash(),
            input_hash: any.hash(),
            output_hash: any.hash(),
            output_bytes: any.number(),
            parts: any.number(),
            chain: any.hash(),
            resumed_from: any.hash(),
            continuation: any.any(prop::sample::select(vec![None, Some(Continuation::Rerun), Some(Continuation::Context)])),
            usage,
            confinement: any.confinement(),
            finish: any.any(prop::option::of(prop::sample::select(FINISHES.to_vec()))),
        };
        any.agree(&result, harness::hashInferenceResultCall::SELECTOR).await;
        let contribution = |any: &mut Any| Contribution { compute: any.address(), result: any.hash(), cost: any.amount() };
        let one = contribution(&mut any);
        any.agree(&one, harness::hashContributionCall::SELECTOR).await;
        let completion = Completion {
            request_id: any.hash(),
            quote: any.hash(),
            finish: FINISHES[round % FINISHES.len()],
            contributions: (0..round % 4).map(|_| contribution(&mut any)).collect(),
        };
        any.agree(&completion, harness::hashCompletionCall::SELECTOR).await;
        let authorization = CompletionAuthorization { author: any.address(), completion: any.hash() };
        any.agree(&authorization, harness::hashCompletionAuthorizationCall::SELECTOR).await;
        let dispatch = Dispatch {
            gateway: any.address(),
            compute: any.address(),
            quote: any.hash(),
            attempt: u8::try_from(round % 256).unwrap(),
            resumed_from: any.hash(),
        };
        any.agree(&dispatch, harness::hashDispatchCall::SELECTOR).await;
        let acknowledgement = Acknowledgement { gateway: any.address(), result: any.hash() };
        any.agree(&acknowledgement, harness::hashAcknowledgementCall::SELECTOR).await;
        let seal = ReceiptSeal {
            request_id: any.hash(),
            quote: any.hash(),
            preprocessing: any.hash(),
            completion: any.hash(),
            results: any.hash(),
            approvals: any.hash(),
            payment_kind: [PaymentKind::Escrow, PaymentKind::Channel][round % 2],
            payment: any.hash(),
            settlement: any.hash(),
            issued_at: any.number(),
        };
        any.agree(&seal, harness::hashReceiptSealCall::SELECTOR).await;
        let access = TaskCapability {
            client: any.address(),
            request_id: any.hash(),
            scope: any.any(prop::sample::select(vec![CapabilityScope::Follow, CapabilityScope::Cancel])),
        };
        any.agree(&access, harness::hashTaskAccessCall::SELECTOR).await;
    }
}

#[tokio::test]
async fn the_messages_of_the_network() {
    let mut any = Any::new().await;
    for round in 0..ROUNDS {
        let record = NodeRecord {
            node: any.address(),
            role: any.any(prop::sample::select(vec![NodeRole::Gateway, NodeRole::Compute, NodeRole::Validator])),
            subnet: any.hash(),
            endpoint: any.text(),
            models: (0..round % 5).map(|_| any.hash()).collect(),
            confinement: any.confinement(),
            sequence: any.number(),
            expires_at: any.number(),
        };
        any.agree(&record, harness::hashNodeRecordCall::SELECTOR).await;
        let heartbeat = Heartbeat { node: any.address(), sequence: any.number(), sent_at: any.number() };
        any.agree(&heartbeat, harness::hashHeartbeatCall::SELECTOR).await;
        let (gateway, subnet, sequence, expires_at) = (any.address(), any.hash(), any.number(), any.number());
        let requests = (0..round % 4).map(|_| any.hash()).collect();
        let pending = PendingRequests { gateway, subnet, requests, sequence, expires_at };
        any.agree(&pending, harness::hashPendingRequestsCall::SELECTOR).await;
        let deregistration = Deregistration { node: any.address(), sequence: any.number() };
        any.agree(&deregistration, harness::hashDepartureCall::SELECTOR).await;
        let proof = SessionProof { node: any.address(), gateway: any.address(), challenge: any.hash() };
        any.agree(&proof, harness::hashAttachmentCall::SELECTOR).await;
        let model = |any: &mut Any| SubnetModel { name: any.text(), digest: any.hash(), price: any.price() };
        let one = model(&mut any);
        any.agree(&one, harness::hashSubnetModelCall::SELECTOR).await;
        let models = (0..round % 4).map(|_| model(&mut any)).collect();
        let gateways = (0..round % 3).map(|_| any.address()).collect();
        let (owner, name, split, version) = (any.address(), any.text(), any.split(), any.number());
        let subnet = Subnet { owner, name, gateways, models, split, version };
        any.agree(&subnet, harness::hashSubnetCall::SELECTOR).await;
    }
}

#[tokio::test]
async fn the_messages_of_channels() {
    let mut any = Any::new().await;
    for round in 0..ROUNDS {
        let voucher = Voucher {
            channel: any.hash(),
            request_id: any.hash(),
            quote: any.hash(),
            committee: any.hash(),
            number: any.number(),
            amount: any.amount(),
            cumulative: any.amount(),
        };
        any.agree(&voucher, harness::hashVoucherCall::SELECTOR).await;
        let leaf =
            SettlementLeaf { channel: any.hash(), completion: any.hash(), amount: any.amount(), result_signatures: any.hash() };
        any.agree(&leaf, harness::hashSettledCompletionCall::SELECTOR).await;
        let charge = |any: &mut Any| {
            let numbers = Numbers { base: any.number(), over: any.amount().units() };
            ChannelCharge { channel: any.hash(), settled_before: any.amount(), settled_after: any.amount(), numbers }
        };
        let payout = |any: &mut Any| ChannelPayout { account: any.address(), amount: any.amount() };
        let settlement = ChannelSettlement {
            root: any.hash(),
            count: any.number(),
            charges: (0..round % 4).map(|_| charge(&mut any)).collect(),
            payouts: (0..round % 7).map(|_| payout(&mut any)).collect(),
        };
        any.agree(&settlement, harness::hashChannelSettlementCall::SELECTOR).await;
        let request = SettlementRequest { gateway: any.address(), settlement: any.hash() };
        any.agree(&request, harness::hashSettlementRequestCall::SELECTOR).await;
        let close = ChannelClose { channel: any.hash(), settled: any.amount() };
        any.agree(&close, harness::hashChannelCloseCall::SELECTOR).await;
        let report = DowntimeReport { validator: any.address(), since: any.number(), until: any.number() };
        any.agree(&report, harness::hashDowntimeReportCall::SELECTOR).await;
    }
}
