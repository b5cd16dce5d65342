use ncn_core::{
    Committee, Delivery, Dispatch, Effect, Event, Lifecycle, PaymentRef, QuorumCertificate, Quote, Signed, SignedVoucher,
    TrustRoot, Values, lifecycle::Unexpected,
};

/// What the events so far lead to.
#[derive(Clone, Debug, Default)]
pub(in crate::gateway) struct Progress {
    pub(in crate::gateway) lifecycle: Lifecycle,
    pub(in crate::gateway) quote: Option<Quote>,
    pub(in crate::gateway) trust_root: Option<TrustRoot>,
    pub(in crate::gateway) preprocessing: Option<QuorumCertificate>,
    pub(in crate::gateway) payment: Option<PaymentRef>,
    pub(in crate::gateway) output: Option<Values>,
    pub(in crate::gateway) delivery: Option<Delivery>,
    /// This gateway's word that the delivery's nodes were to serve.
    pub(in crate::gateway) dispatches: Vec<Signed<Dispatch>>,
    /// Its newest word, that another node than the quote's is to serve.
    pub(in crate::gateway) dispatch: Option<Signed<Dispatch>>,
    /// Whether a part of the output may have been given to the client.
    pub(in crate::gateway) streamed: bool,
    pub(in crate::gateway) approvals: Option<QuorumCertificate>,
    pub(in crate::gateway) settlement: Option<PaymentRef>,
    pub(in crate::gateway) failure: Option<String>,
}

impl Progress {
    /// Who judges the request.
    pub(in crate::gateway) fn committee(&self) -> Option<Committee> {
        self.quote.as_ref()?.committee_of(self.trust_root.as_ref()?).ok()
    }

    /// The voucher that pays, when one does.
    pub(in crate::gateway) fn voucher(&self) -> Option<SignedVoucher> {
        self.payment.as_ref().and_then(PaymentRef::voucher)
    }

    /// Takes an event in, when it means something.
    pub(super) fn apply(&mut self, event: Event) -> Result<Effect, Unexpected> {
        let (lifecycle, effect) = self.lifecycle.step(&event)?;
        self.lifecycle = lifecycle;
        match event {
            Event::Reserved { quote, trust_root } => (self.quote, self.trust_root) = (Some(*quote), Some(*trust_root)),
            Event::Approved(certificate) => self.preprocessing = Some(certificate),
            Event::Paid(by) => self.payment = Some(by),
            Event::Dispatched(dispatch) => self.dispatch = Some(*dispatch),
            Event::Streamed => self.streamed = true,
            Event::Executed { output, delivery, dispatches } => {
                (self.output, self.delivery, self.dispatches) = (output, Some(*delivery), dispatches);
                self.failure = None;
            }
            Event::Completed { certificate, output } => {
                self.approvals = Some(certificate);
                self.output = output.or_else(|| self.output.take());
            }
            Event::Settled(by) => self.settlement = Some(by),
            Event::Refused(reason) | Event::SettlementImpossible(reason) | Event::ExecutionFailed { reason, .. } => {
                self.failure = Some(reason);
            }
            Event::PaidElsewhere(completion) => {
                self.failure =
                    Some(format!("the validators let the chain pay for the completion {completion}, which was not asked for"));
            }
            Event::PaymentLost => self.failure = Some("the chain has taken the payment back".into()),
            Event::Cancelled => self.failure = Some("the client withdrew it".into()),
            Event::Expired => self.failure = Some("it was not done in time".into()),
            _ => {}
        }
        Ok(effect)
    }
}
