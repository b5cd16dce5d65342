//! Puts the network's contracts on a chain.

use std::sync::Arc;

use alloy_primitives::{Address, Bytes, TxKind, U256};
use alloy_sol_types::SolConstructor;
use ncn_core::{Amount, DynSigner, LedgerError};

use super::{EvmBackend, EvmError, EvmLedger, InferencePayment, NCNToken, SendOptions, ValidatorRegistry, sender::Sender};

/// How a network's contracts are set up.
#[derive(Clone, Copy, Debug)]
pub struct Genesis {
    /// Minted to the deployer.
    pub supply: Amount,
    /// The least stake of a validator.
    pub minimum_stake: Amount,
    /// How long a stake stays locked after its validator has left, in seconds.
    pub unstake_delay: u64,
    /// M.
    pub threshold: u16,
    /// N.
    pub committee_size: u16,
    /// Who gets the treasury's part.
    pub treasury: Address,
}

impl Genesis {
    /// Deploys token, validator registry and payment contract, and returns them as `deployer` sees them.
    pub async fn deploy(&self, backend: Arc<dyn EvmBackend>, deployer: &DynSigner) -> Result<EvmLedger, LedgerError> {
        let options = SendOptions::default();
        let sender = Sender::new(backend.clone(), deployer.clone(), backend.chain_id().await?, options);
        let owner = deployer.address();
        let token = NCNToken::constructorCall { owner, supply: U256::from(self.supply.units()) };
        let token = create_by(&sender, code(&NCNToken::BYTECODE, &token)).await?;
        let registry = ValidatorRegistry::constructorCall {
            token_: token,
            owner,
            minimumStake_: self.minimum_stake.units(),
            unstakeDelay_: self.unstake_delay,
            threshold_: self.threshold,
            committeeSize_: self.committee_size,
        };
        let registry = create_by(&sender, code(&ValidatorRegistry::BYTECODE, &registry)).await?;
        let payment = InferencePayment::constructorCall { token_: token, registry_: registry, treasury_: self.treasury };
        let payment = create_by(&sender, code(&InferencePayment::BYTECODE, &payment)).await?;
        EvmLedger::connect(backend, payment, deployer.clone(), options).await
    }
}

/// Creates a contract from its bytecode with the constructor's arguments behind it, and returns its address.
pub async fn create(backend: Arc<dyn EvmBackend>, deployer: &DynSigner, code: Bytes) -> Result<Address, LedgerError> {
    let chain_id = backend.chain_id().await?;
    create_by(&Sender::new(backend, deployer.clone(), chain_id, SendOptions::default()), code).await
}

async fn create_by(sender: &Sender, code: Bytes) -> Result<Address, LedgerError> {
    let created = sender.send(TxKind::Create, code).await?.created;
    let problem = "the creation's receipt names no contract".into();
    created.ok_or_else(|| EvmError::Malformed { method: "eth_getTransactionReceipt", problem }.into())
}

fn code(bytecode: &Bytes, constructor: &impl SolConstructor) -> Bytes {
    [bytecode.as_ref(), &constructor.abi_encode()].concat().into()
}
