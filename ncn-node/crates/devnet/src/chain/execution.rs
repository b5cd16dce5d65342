//! Running transactions and calls in the EVM.

use std::convert::Infallible;

use alloy_consensus::{Transaction as _, TxEnvelope, TxType, transaction::Recovered};
use alloy_eips::eip2930::AccessList;
use alloy_primitives::{Address, B256, Bytes, TxKind, U256};
use ncn_core::UnixTime;
use revm::{
    Context, ExecuteEvm as _, MainBuilder as _, MainnetEvm,
    context::{
        BlockEnv, TxEnv,
        result::{EVMError, ExecutionResult, ResultAndState},
    },
    handler::{Handler as _, MainnetContext, MainnetHandler},
    primitives::hardfork::SpecId,
};

use super::{
    refusal::{CallError, Refusal},
    state::View,
};

/// The gas that a block holds.
pub(crate) const BLOCK_GAS_LIMIT: u64 = 60_000_000;

/// Something to run without keeping what it does.
#[derive(Clone, Debug, Default)]
pub(crate) struct Request {
    pub(crate) from: Address,
    pub(crate) to: TxKind,
    pub(crate) input: Bytes,
    pub(crate) value: U256,
    /// All that a block holds, when it is not said.
    pub(crate) gas: Option<u64>,
    pub(crate) access_list: AccessList,
}

/// The block that something runs in, on top of (or back at) a view of the accounts.
#[derive(Clone)]
pub(super) struct Environment {
    pub(super) chain_id: u64,
    pub(super) view: View,
    pub(super) number: u64,
    pub(super) timestamp: UnixTime,
}

impl Environment {
    fn evm(&self) -> MainnetEvm<MainnetContext<View>> {
        let block = BlockEnv {
            number: U256::from(self.number),
            timestamp: U256::from(self.timestamp),
            gas_limit: BLOCK_GAS_LIMIT,
            prevrandao: Some(B256::ZERO),
            ..BlockEnv::default()
        };
        let context: MainnetContext<View> = Context::new(self.view.clone(), SpecId::PRAGUE);
        context.with_block(block).modify_cfg_chained(|cfg| cfg.chain_id = self.chain_id).build_mainnet()
    }

    /// Whether a transaction could be in a block, if its nonce were next.
    pub(super) fn check(&self, transaction: &Recovered<TxEnvelope>) -> Result<(), Refusal> {
        if transaction.gas_limit() > BLOCK_GAS_LIMIT {
            return Err(Refusal::GasLimit { given: transaction.gas_limit(), limit: BLOCK_GAS_LIMIT });
        }
        let mut evm = self.evm();
        evm.ctx.tx = transaction_env(transaction);
        evm.ctx.cfg.disable_nonce_check = true;
        let checked = MainnetHandler::<_, EVMError<Infallible>, _>::default().validate(&mut evm);
        checked.map(drop).map_err(Refusal::from_evm)
    }

    /// Runs a transaction.
    pub(super) fn execute(&self, transaction: &Recovered<TxEnvelope>) -> Result<ResultAndState, Refusal> {
        let done = self.evm().transact(transaction_env(transaction));
        done.map_err(Refusal::from_evm)
    }

    /// Runs a call, which costs nothing.
    pub(super) fn call(&self, request: &Request) -> Result<ExecutionResult, CallError> {
        let mut evm = self.evm();
        // A call has no nonce, and contracts may be asked to call.
        (evm.ctx.cfg.disable_nonce_check, evm.ctx.cfg.disable_eip3607) = (true, true);
        let transaction = TxEnv {
            // Of the first type that has a list: an older one has none that counts.
            tx_type: TxType::Eip2930.into(),
            access_list: request.access_list.clone(),
            caller: request.from,
            gas_limit: request.gas.unwrap_or(BLOCK_GAS_LIMIT).min(BLOCK_GAS_LIMIT),
            kind: request.to,
            value: request.value,
            data: request.input.clone(),
            chain_id: Some(self.chain_id),
            ..TxEnv::default()
        };
        let done = evm.transact(transaction).map_err(Refusal::from_evm)?;
        match done.result {
            ExecutionResult::Revert { output, .. } => Err(CallError::Reverted(output)),
            ExecutionResult::Halt { reason, .. } => Err(CallError::Halted(format!("halted: {reason}"))),
            success @ ExecutionResult::Success { .. } => Ok(success),
        }
    }

    /// The gas limit that a call needs as a transaction: more than what it uses, as a call is given at most 63 parts of 64 of what
    /// its caller has, and refunds come after the work.
    pub(super) fn estimate(&self, request: &Request) -> Result<u64, CallError> {
        let enough = |gas| self.call(&Request { gas: Some(gas), ..request.clone() }).is_ok();
        let gas = self.call(request)?.gas().to_owned();
        let used = gas.total_gas_spent().max(gas.floor_gas());
        if enough(used) {
            return Ok(used);
        }
        let (mut too_little, mut suffices) = (used, request.gas.unwrap_or(BLOCK_GAS_LIMIT).min(BLOCK_GAS_LIMIT));
        // Close enough, as other nodes do it.
        while suffices.saturating_sub(too_little) > suffices / 64 {
            // What is needed is rarely more than twice what is used.
            let middle = (too_little + (suffices - too_little) / 2).min(too_little.saturating_mul(2));
            if enough(middle) { suffices = middle } else { too_little = middle }
        }
        Ok(suffices)
    }
}

/// A transaction as the EVM takes it.
fn transaction_env(transaction: &Recovered<TxEnvelope>) -> TxEnv {
    TxEnv {
        tx_type: transaction.tx_type().into(),
        caller: transaction.signer(),
        gas_limit: transaction.gas_limit(),
        gas_price: transaction.max_fee_per_gas(),
        gas_priority_fee: transaction.max_priority_fee_per_gas(),
        kind: transaction.kind(),
        value: transaction.value(),
        data: transaction.input().clone(),
        nonce: transaction.nonce(),
        chain_id: transaction.chain_id(),
        access_list: transaction.access_list().cloned().unwrap_or_default(),
        ..TxEnv::default()
    }
}

/// Whether transactions of this type are taken.
pub(super) fn is_supported(transaction_type: TxType) -> bool {
    matches!(transaction_type, TxType::Legacy | TxType::Eip2930 | TxType::Eip1559)
}
