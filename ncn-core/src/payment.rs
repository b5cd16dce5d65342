//! Who gets which part of a payment. The same rule stands in `contracts/src/PayoutSchedule.sol`; a test runs both.

use alloy_primitives::{Address, U256};
use serde::{Deserialize, Serialize};

use crate::{Amount, Completion, Quote};

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
    pub fn part(total: Amount, bps: u16) -> Amount {
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

/// Who gets which part of a request's cost. The parts always sum to the cost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PayoutSchedule {
    /// What the request cost.
    pub total: Amount,
    /// Compute nodes in the output's order, gateway, validators in the certificate's order, treasury; nobody is listed with zero.
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
    /// Nobody gave anything.
    #[error("completion.contributions: there are none")]
    NoContributions,
}

/// `amount * cost / total`, rounded down; nothing of nothing. At most `amount`, where `cost` is at most `total`.
fn part_of(amount: u128, cost: Amount, total: Amount) -> u128 {
    let part = (U256::from(amount) * U256::from(cost.units())).checked_div(U256::from(total.units()));
    part.unwrap_or_default().saturating_to::<u128>().min(amount)
}

impl PayoutSchedule {
    /// Splits what a request costs among the compute nodes, the quote's gateway, the `validators` that approved the completion, and
    /// `treasury`.
    ///
    /// Parts are rounded down; all that rounding leaves goes to compute, which did the work. Compute's part is divided as what the nodes'
    /// contributions cost, rounded down too, and the last node gets what is left.
    ///
    /// # Errors
    /// When the split is more than the whole, or nobody gave or approved anything.
    pub fn new(quote: &Quote, completion: &Completion, validators: &[Address], treasury: Address) -> Result<Self, SplitError> {
        if !quote.split.is_valid() {
            return Err(SplitError::TooLarge);
        }
        if validators.is_empty() {
            return Err(SplitError::NoValidators);
        }
        let cost = completion.cost();
        let gateway = FeeSplit::part(cost, quote.split.gateway_bps).units();
        let treasury_part = FeeSplit::part(cost, quote.split.treasury_bps).units();
        let pool = FeeSplit::part(cost, quote.split.validators_bps).units();
        let count = validators.len() as u128;
        let share = pool / count;
        // Cannot underflow: a valid split's parts sum to at most the total.
        let compute = cost.units() - gateway - treasury_part - share * count;

        let payout = |role, address, units| Payout { role, address, amount: Amount::new(units) };
        let (last, before) = completion.contributions.split_last().ok_or(SplitError::NoContributions)?;
        let mut payouts = Vec::with_capacity(completion.contributions.len() + validators.len() + 2);
        let mut left = compute;
        for contribution in before {
            let part = part_of(compute, contribution.cost, cost);
            left -= part;
            payouts.push(payout(PayeeRole::Compute, contribution.compute, part));
        }
        payouts.push(payout(PayeeRole::Compute, last.compute, left));
        payouts.push(payout(PayeeRole::Gateway, quote.gateway, gateway));
        payouts.extend(validators.iter().map(|validator| payout(PayeeRole::Validator, *validator, share)));
        payouts.push(payout(PayeeRole::Treasury, treasury, treasury_part));
        payouts.retain(|payout| !payout.amount.is_zero());
        Ok(Self { total: cost, payouts })
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
    use crate::{B256, Contribution, FinishReason, Price, Units};

    fn quote(split: FeeSplit) -> Quote {
        Quote {
            request_id: B256::ZERO,
            client: Address::repeat_byte(1),
            gateway: Address::repeat_byte(2),
            compute: Address::repeat_byte(3),
            model_digest: B256::ZERO,
            price: Price::flat(Amount::TOKEN),
            max_units: Units::default(),
            total: Amount::TOKEN,
            split,
            expiry: 0,
            trust_root: B256::ZERO,
            epoch: 0,
            salt: B256::ZERO,
            committee: B256::ZERO,
        }
    }

    /// A completion by as many nodes as there are costs.
    fn completion(costs: &[u128]) -> Completion {
        let contribution = |(node, cost): (u8, &u128)| Contribution {
            compute: Address::left_padding_from(&[9, node]),
            result: B256::ZERO,
            cost: Amount::new(*cost),
        };
        let contributions = (0u8..).zip(costs).map(contribution).collect();
        Completion { request_id: B256::ZERO, quote: B256::ZERO, finish: FinishReason::Stop, contributions }
    }

    #[test]
    fn the_public_percentages() {
        let validators = [4, 5, 6].map(Address::repeat_byte);
        let tree =
            PayoutSchedule::new(&quote(FeeSplit::default()), &completion(&[1_000_000]), &validators, Address::repeat_byte(9));
        let tree = tree.unwrap();
        assert_eq!(tree.paid_to(PayeeRole::Gateway), Amount::new(100_000));
        assert_eq!(tree.paid_to(PayeeRole::Treasury), Amount::new(50_000));
        assert_eq!(tree.paid_to(PayeeRole::Validator), Amount::new(49_998));
        assert_eq!(tree.paid_to(PayeeRole::Compute), Amount::new(800_002));
    }

    #[test]
    fn each_node_is_paid_for_its_part() {
        let none = FeeSplit { gateway_bps: 0, validators_bps: 0, treasury_bps: 0 };
        let paid = |costs: &[u128]| {
            let tree = PayoutSchedule::new(&quote(none), &completion(costs), &[Address::repeat_byte(4)], Address::repeat_byte(9));
            tree.map(|tree| tree.payouts.iter().map(|payout| payout.amount.units()).collect::<Vec<_>>())
        };
        assert_eq!(paid(&[70, 0, 30]), Ok(vec![70, 30]));
        assert_eq!(paid(&[u128::MAX / 3, u128::MAX / 3]), Ok(vec![u128::MAX / 3, u128::MAX / 3]));
        assert_eq!(paid(&[0, 0]), Ok(vec![]));
        assert_eq!(paid(&[]), Err(SplitError::NoContributions));
    }

    proptest! {
        #[test]
        fn parts_sum_to_the_cost(
            costs in proptest::collection::vec(0u128..u128::MAX / 3, 1..4),
            g in 0u16..=10_000,
            v in 0u16..=10_000,
            t in 0u16..=10_000,
            count in 1usize..20,
        ) {
            let split = FeeSplit { gateway_bps: g, validators_bps: v, treasury_bps: t };
            let validators: Vec<_> = (0..count).map(|i| Address::left_padding_from(&[u8::try_from(i).unwrap() + 1])).collect();
            let tree = PayoutSchedule::new(&quote(split), &completion(&costs), &validators, Address::repeat_byte(9));
            if split.is_valid() {
                let tree = tree.unwrap();
                let cost = Amount::new(costs.iter().sum());
                prop_assert_eq!(tree.total, cost);
                prop_assert_eq!(Amount::checked_sum(tree.payouts.iter().map(|p| p.amount)), Some(cost));
                prop_assert!(tree.payouts.iter().all(|p| !p.amount.is_zero()));
            } else {
                prop_assert_eq!(tree, Err(SplitError::TooLarge));
            }
        }
    }
}
