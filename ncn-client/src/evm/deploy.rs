//! Puts the network's contracts on a chain.

use std::sync::Arc;

use alloy_primitives::{Address, Bytes, TxKind, U256};
use alloy_sol_types::{SolCall as _, SolConstructor};
use ncn_core::{Amount, DynSigner, LedgerError};

use super::{
    Deployment, EvmBackend, EvmError, EvmLedger, InferencePayment, NCNToken, PaymentChannel, SendOptions, Slashing, SubnetRegistry,
    ValidatorRegistry, sender::Sender,
};

/// How a network's contracts are set up.
#[derive(Clone, Copy, Debug)]
pub struct DeployParams {
    /// Minted to the deployer.
    pub supply: Amount,
    /// The least stake of a validator.
    pub minimum_stake: Amount,
    /// How long a stake stays locked after its validator has left, in seconds: at least 8 days, for which its word can count.
    pub unstake_delay: u64,
    /// M.
    pub threshold: u16,
    /// N.
    pub committee_size: u16,
    /// Who gets the treasury's part.
    pub treasury: Address,
    /// What registering a subnet costs.
    pub subnet_fee: Amount,
}

impl DeployParams {
    /// Deploys all of the network's contracts, and returns them as `deployer` sees them.
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
            treasury_: self.treasury,
        };
        let registry = create_by(&sender, code(&ValidatorRegistry::BYTECODE, &registry)).await?;
        let payment = InferencePayment::constructorCall { token_: token, registry_: registry, treasury_: self.treasury };
        let payment = create_by(&sender, code(&InferencePayment::BYTECODE, &payment)).await?;
        let channels = PaymentChannel::constructorCall { token_: token, registry_: registry };
        let channels = create_by(&sender, code(&PaymentChannel::BYTECODE, &channels)).await?;
        let (treasury_, fee) = (self.treasury, self.subnet_fee.units());
        let subnets = SubnetRegistry::constructorCall { token_: token, treasury_, owner, creationFee_: fee };
        let subnets = create_by(&sender, code(&SubnetRegistry::BYTECODE, &subnets)).await?;
        let slashing = Slashing::constructorCall { registry_: registry, payment_: payment, channel_: channels };
        let slashing = create_by(&sender, code(&Slashing::BYTECODE, &slashing)).await?;
        let slasher = ValidatorRegistry::setSlasherCall { slasher_: slashing };
        sender.send(TxKind::Call(registry), slasher.abi_encode().into()).await?;
        let deployment = Deployment { payment, channels, subnets, slashing };
        EvmLedger::connect(backend, deployment, deployer.clone(), options).await
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
