//! Who gets which part of a payment. The same rule stands in `contracts/src/PayoutSchedule.sol`; a test runs both.

use alloy_primitives::Address;
use serde::{Deserialize, Serialize};

use crate::{Amount, Quote};

/// How a payment is split, in basis points (1/10,000). The compute node has whatever the others leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FeeSplit {
    /// The gateway's part.
    pub gateway_bps: u16,
    /// The part that the approving validators share equally.
    pub validators_bps: u16,
    /// The treasury's part.
    pub treasury_bps: u16,
}

/// Compute 80 %, gateway 10 %, validators 5 %, treasury 5 %.
impl Default for FeeSplit {
    fn default() -> Self {
        Self { gateway_bps: 1_000, validators_bps: 500, treasury_bps: 500 }
    }
}

impl FeeSplit {
    const WHOLE: u32 = 10_000;

    /// True when the parts are no more than the whole.
    pub fn is_valid(&self) -> bool {
        u32::from(self.gateway_bps) + u32::from(self.validators_bps) + u32::from(self.treasury_bps) <= Self::WHOLE
    }

    /// `total * bps / 10,000`, rounded down, without overflow.
    fn part(total: Amount, bps: u16) -> Amount {
        let (whole, bps) = (u128::from(Self::WHOLE), u128::from(bps));
        let (quotient, remainder) = (total.units() / whole, total.units() % whole);
        // bps <= 65,535 could exceed the whole in an invalid split: saturate here, and let `PayoutSchedule::new` refuse it.
        Amount::new(quotient.saturating_mul(bps).saturating_add(remainder * bps / whole))
    }
}

/// Why somebody is paid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PayeeRole {
    /// Ran the model.
    Compute,
    /// Coordinated the request.
    Gateway,
    /// Approved the completion.
    Validator,
    /// The network's treasury.
    Treasury,
}

/// One payment out of an escrow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Payout {
    /// Why it is paid.
    pub role: PayeeRole,
    /// Who gets it.
    pub address: Address,
    /// How much.
    pub amount: Amount,
}

/// Who gets which part of a request's total. The parts always sum to the total.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PayoutSchedule {
    /// What the client escrowed.
    pub total: Amount,
    /// Compute, gateway, validators in the certificate's order, treasury; nobody is listed with zero.
    pub payouts: Vec<Payout>,
}

/// A payment that cannot be split.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SplitError {
    /// The parts are more than the whole.
    #[error("split: the parts of gateway, validators and treasury add up to more than 10,000 basis points")]
    TooLarge,
    /// Nobody approved.
    #[error("validators: a completion needs at least one approving validator to pay")]
    NoValidators,
}

impl PayoutSchedule {
    /// Splits the quote's total among `compute`, the gateway, the `validators` that approved the completion, and `treasury`.
    ///
    /// Parts are rounded down; all that rounding leaves goes to the compute node, which did the work.
    pub fn new(quote: &Quote, compute: Address, validators: &[Address], treasury: Address) -> Result<Self, SplitError> {
        if !quote.split.is_valid() {
            return Err(SplitError::TooLarge);
        }
        if validators.is_empty() {
            return Err(SplitError::NoValidators);
        }
        let total = quote.total.units();
        let gateway = FeeSplit::part(quote.total, quote.split.gateway_bps).units();
        let treasury_part = FeeSplit::part(quote.total, quote.split.treasury_bps).units();
        let pool = FeeSplit::part(quote.total, quote.split.validators_bps).units();
        let count = validators.len() as u128;
        let share = pool / count;
        // Cannot underflow: a valid split's parts sum to at most the total.
        let rest = total - gateway - treasury_part - share * count;

        let payout = |role, address, units| Payout { role, address, amount: Amount::new(units) };
        let mut payouts = vec![payout(PayeeRole::Compute, compute, rest), payout(PayeeRole::Gateway, quote.gateway, gateway)];
        payouts.extend(validators.iter().map(|validator| payout(PayeeRole::Validator, *validator, share)));
        payouts.push(payout(PayeeRole::Treasury, treasury, treasury_part));
        payouts.retain(|payout| !payout.amount.is_zero());
        Ok(Self { total: quote.total, payouts })
    }

    /// What one role gets altogether.
    pub fn paid_to(&self, role: PayeeRole) -> Amount {
        self.payouts.iter().filter(|payout| payout.role == role).map(|payout| payout.amount).sum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::B256;

    pub(crate) fn quote(total: u128, split: FeeSplit) -> Quote {
        Quote {
            request_id: B256::ZERO,
            client: Address::repeat_byte(1),
            gateway: Address::repeat_byte(2),
            compute: Address::repeat_byte(3),
            model_digest: B256::ZERO,
            total: Amount::new(total),
            split,
            expiry: 0,
            trust_root: B256::ZERO,
        }
    }

    #[test]
    fn the_public_percentages() {
        let validators = [4, 5, 6].map(Address::repeat_byte);
        let tree = PayoutSchedule::new(
            &quote(1_000_000, FeeSplit::default()),
            Address::repeat_byte(3),
            &validators,
            Address::repeat_byte(9),
        );
        let tree = tree.unwrap();
        assert_eq!(tree.paid_to(PayeeRole::Gateway), Amount::new(100_000));
        assert_eq!(tree.paid_to(PayeeRole::Treasury), Amount::new(50_000));
        assert_eq!(tree.paid_to(PayeeRole::Validator), Amount::new(49_998));
        assert_eq!(tree.paid_to(PayeeRole::Compute), Amount::new(800_002));
    }

    proptest! {
        #[test]
        fn parts_sum_to_the_total(total: u128, g in 0u16..=10_000, v in 0u16..=10_000, t in 0u16..=10_000, count in 1usize..20) {
            let split = FeeSplit { gateway_bps: g, validators_bps: v, treasury_bps: t };
            let validators: Vec<_> = (0..count).map(|i| Address::left_padding_from(&[u8::try_from(i).unwrap() + 1])).collect();
            let tree = PayoutSchedule::new(&quote(total, split), Address::repeat_byte(3), &validators, Address::repeat_byte(9));
            if split.is_valid() {
                let tree = tree.unwrap();
                prop_assert_eq!(Amount::checked_sum(tree.payouts.iter().map(|p| p.amount)), Some(Amount::new(total)));
                prop_assert!(tree.payouts.iter().all(|p| !p.amount.is_zero()));
            } else {
                prop_assert_eq!(tree, Err(SplitError::TooLarge));
            }
        }
    }
}
