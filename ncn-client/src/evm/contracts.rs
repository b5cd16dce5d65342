//! The contracts' interfaces and bytecode, from the committed artifacts of `contracts/`.

#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, clippy::indexing_slicing)]
mod generated {
    use alloy_sol_types::sol;

    sol!(
        #[sol(all_derives)]
        InferencePayment,
        "../contracts/artifacts/InferencePayment.json"
    );
    sol!(
        #[sol(all_derives)]
        NCNToken,
        "../contracts/artifacts/NCNToken.json"
    );
    sol!(
        #[sol(all_derives)]
        PaymentChannel,
        "../contracts/artifacts/PaymentChannel.json"
    );
    sol!(
        #[sol(all_derives)]
        Slashing,
        "../contracts/artifacts/Slashing.json"
    );
    sol!(
        #[sol(all_derives)]
        SubnetRegistry,
        "../contracts/artifacts/SubnetRegistry.json"
    );
    sol!(
        #[sol(all_derives)]
        ValidatorRegistry,
        "../contracts/artifacts/ValidatorRegistry.json"
    );
}

use alloy_primitives::B256;
pub use generated::{InferencePayment, NCNToken, PaymentChannel, Slashing, SubnetRegistry, ValidatorRegistry};
use generated::{
    InferencePayment::{Contribution, Quote},
    PaymentChannel::{ChannelPayout, ChannelTerms, Charge},
};
use ncn_core::{Settlement, Signature, channel::CertifiedBatch};

/// The quote, as the contracts take it.
pub(super) fn quote(quote: &ncn_core::Quote) -> Quote {
    Quote {
        requestId: quote.request_id,
        client: quote.client,
        gateway: quote.gateway,
        compute: quote.compute,
        modelDigest: quote.model_digest,
        basePrice: quote.price.base.units(),
        inputPrice: quote.price.input.price.units(),
        outputPrice: quote.price.output.price.units(),
        inputUnit: quote.price.input.unit as u8,
        outputUnit: quote.price.output.unit as u8,
        maxInputUnits: quote.max_units.input,
        maxOutputUnits: quote.max_units.output,
        total: quote.total.units(),
        gatewayBps: quote.split.gateway_bps,
        validatorsBps: quote.split.validators_bps,
        treasuryBps: quote.split.treasury_bps,
        expiry: quote.expiry,
        trustRoot: quote.trust_root,
        epoch: quote.epoch,
        salt: quote.salt,
        committee: quote.committee,
    }
}

/// The call that pays an escrow out.
pub(super) fn complete(settlement: &Settlement) -> InferencePayment::completeInferenceRequestCall {
    let contribution = |contribution: &ncn_core::Contribution| Contribution {
        compute: contribution.compute,
        result: contribution.result,
        cost: contribution.cost.units(),
    };
    InferencePayment::completeInferenceRequestCall {
        quote: quote(&settlement.quote),
        committee: InferencePayment::Committee {
            threshold: settlement.committee.threshold,
            members: settlement.committee.members.clone(),
        },
        finish: settlement.completion.finish as u8,
        contributions: settlement.completion.contributions.iter().map(contribution).collect(),
        approvals: settlement.certificate.packed().into(),
    }
}

/// The terms, as the contract takes them.
pub(super) const fn terms(terms: &ncn_core::ChannelParams) -> ChannelTerms {
    ChannelTerms { client: terms.client, gateway: terms.gateway, salt: terms.salt }
}

/// A batch's settlement, as the contract takes it.
pub(super) fn settle(batch: &CertifiedBatch) -> PaymentChannel::settleCall {
    let settlement = &batch.settlement;
    let vouchers = batch.vouchers.iter().zip(&batch.committees);
    let charges = settlement.charges.iter().zip(vouchers).map(|(charge, (payment, committee))| Charge {
        terms: terms(&payment.terms),
        settledBefore: charge.settled_before.units(),
        settledAfter: charge.settled_after.units(),
        base: charge.numbers.base,
        over: charge.numbers.over,
        requestId: payment.voucher.request_id,
        quote: payment.voucher.quote,
        committee: PaymentChannel::Committee { threshold: committee.threshold, members: committee.members.clone() },
        number: payment.voucher.number,
        amount: payment.voucher.amount.units(),
        cumulative: payment.voucher.cumulative.units(),
        signature: payment.signature.as_bytes().to_vec().into(),
    });
    let payout = |payout: &ncn_core::ChannelPayout| ChannelPayout { account: payout.account, amount: payout.amount.units() };
    PaymentChannel::settleCall {
        root: settlement.root,
        count: settlement.count,
        charges: charges.collect(),
        payouts: settlement.payouts.iter().map(payout).collect(),
        approvals: batch.certificate.packed().into(),
    }
}

/// A signature in the parts that the contracts take: v, r, s.
pub(super) fn parts(signature: &Signature) -> (u8, B256, B256) {
    let (r, rest) = signature.as_bytes().split_at(32);
    let (s, v) = rest.split_at(32);
    (v.first().copied().unwrap_or_default(), B256::from_slice(r), B256::from_slice(s))
}
