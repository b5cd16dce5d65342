//! What an account does with its tokens beside paying for requests.

use alloy_primitives::{Address, B256, U256};
use ncn_core::{Amount, ChainView as _, LedgerError, UnixTime};

use super::{EvmLedger, NCNToken, SubnetRegistry, ValidatorRegistry, errors::amount};

/// A validator's stake, as the chain has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stake {
    /// What is locked.
    pub amount: Amount,
    /// Whether the validator's word counts.
    pub active: bool,
    /// When a leaving validator may take its stake back.
    pub withdrawable_at: Option<UnixTime>,
}

impl EvmLedger {
    /// Sends tokens.
    pub async fn transfer(&self, to: Address, amount: Amount) -> Result<B256, LedgerError> {
        let value = U256::from(amount.units());
        Ok(self.transact(self.network.token, NCNToken::transferCall { to, value }).await?.hash)
    }

    /// Makes this account a validator, from the next block on, or adds to its stake.
    pub async fn stake(&self, amount: Amount) -> Result<B256, LedgerError> {
        let (registry, amount) = (self.network.registry, U256::from(amount.units()));
        self.allow(registry, amount).await?;
        let staked = self.transact(registry, ValidatorRegistry::registerValidatorCall { amount }).await?;
        self.network.forget_trust();
        Ok(staked.hash)
    }

    /// Takes this account out of the active validators, from the next block on; its stake can be withdrawn later. Until then it judges the
    /// requests that were quoted before.
    pub async fn unstake(&self) -> Result<B256, LedgerError> {
        let left = self.transact(self.network.registry, ValidatorRegistry::requestUnstakeCall {}).await?;
        self.network.forget_trust();
        Ok(left.hash)
    }

    /// Takes the stake of this account back, once it has left long enough ago.
    pub async fn withdraw_stake(&self) -> Result<B256, LedgerError> {
        let account = self.account();
        Ok(self.transact(self.network.registry, ValidatorRegistry::withdrawStakeCall { account }).await?.hash)
    }

    /// How much an account has staked.
    pub(super) async fn staked(&self, account: Address) -> Result<Amount, LedgerError> {
        Ok(amount(self.network.ask(self.network.registry, ValidatorRegistry::stakeOfCall { account }).await?))
    }

    /// What an account has staked.
    pub async fn stake_of(&self, account: Address) -> Result<Stake, LedgerError> {
        let (network, registry) = (&self.network, self.network.registry);
        let withdrawable_at = network.ask(registry, ValidatorRegistry::withdrawableAtCall { account }).await?;
        Ok(Stake {
            amount: self.staked(account).await?,
            active: network.ask(registry, ValidatorRegistry::isActiveCall { account }).await?,
            withdrawable_at: (withdrawable_at != 0).then_some(withdrawable_at),
        })
    }

    /// The least stake of a validator.
    pub async fn minimum_stake(&self) -> Result<Amount, LedgerError> {
        Ok(Amount::new(self.network.ask(self.network.registry, ValidatorRegistry::minimumStakeCall {}).await?))
    }

    /// What it costs this account to create the subnet of this name: nothing when it has created it before.
    pub async fn subnet_fee(&self, name: &str) -> Result<Amount, LedgerError> {
        let id = ncn_core::message::subnet_id(self.sender.address(), name);
        if self.subnet_owner(id).await? == Some(self.sender.address()) {
            return Ok(Amount::ZERO);
        }
        Ok(Amount::new(self.network.ask(self.network.deployment.subnets, SubnetRegistry::creationFeeCall {}).await?))
    }

    /// Registers this account's subnet and pays the fee for it, unless it has been done already.
    ///
    /// # Errors
    /// [`LedgerError::NotAllowed`] when the fee, which the contract's owner sets, is more than `max_fee`. Nothing was paid then.
    pub async fn create_subnet(&self, name: &str, max_fee: Amount) -> Result<(), LedgerError> {
        let subnets = self.network.deployment.subnets;
        let id = ncn_core::message::subnet_id(self.sender.address(), name);
        if self.subnet_owner(id).await? == Some(self.sender.address()) {
            return Ok(());
        }
        let fee = self.subnet_fee(name).await?;
        if fee > max_fee {
            return Err(LedgerError::NotAllowed(format!("creating the subnet costs {fee}, more than the limit of {max_fee}")));
        }
        if !fee.is_zero() {
            self.allow(subnets, U256::from(fee.units())).await?;
        }
        self.transact(subnets, SubnetRegistry::createSubnetCall { name: name.to_owned() }).await?;
        Ok(())
    }

    /// Lets one of the network's contracts take this much.
    async fn allow(&self, spender: Address, value: U256) -> Result<(), LedgerError> {
        if self.allowance(spender).await? < value {
            self.transact(self.network.token, NCNToken::approveCall { spender, value }).await?;
        }
        Ok(())
    }

    /// What one of the network's contracts may take.
    pub(super) async fn allowance(&self, spender: Address) -> Result<U256, LedgerError> {
        self.network.ask(self.network.token, NCNToken::allowanceCall { owner: self.sender.address(), spender }).await
    }
}
