//! A registry node sees what validators approve, and keeps what convicts one of them.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, PoisonError},
};

use ncn_core::{
    Approval, Completion, CompletionAuthorization, Signed,
    evidence::{ApprovalKey, ApprovedCompletion, Equivocation},
};

/// How many requests' approvals are remembered: about 1 KiB each.
const MAX_REQUESTS: usize = 16_384;
/// How many completions of such a key: the second one is evidence against each who has approved both.
const MAX_COMPLETIONS: usize = 2;
/// How much evidence is kept, against one validator and in all: there are at most 256 of them.
const MAX_OF_ONE: usize = 4;
const MAX_EVIDENCE: usize = 1_024;

struct Seen {
    completion: Completion,
    authorization: Signed<CompletionAuthorization>,
    approvals: Vec<Approval>,
}

#[derive(Default)]
struct Inner {
    seen: HashMap<ApprovalKey, Vec<Seen>>,
    order: VecDeque<ApprovalKey>,
    evidence: Vec<Equivocation>,
}

/// What validators have approved, as far as this node has asked them.
#[derive(Default)]
pub(super) struct Witness(Mutex<Inner>);

impl Witness {
    /// Takes in what was approved, whose signatures are good. Returns what is evidence together with an earlier approval.
    pub(super) fn see(
        &self,
        completion: &Completion,
        authorization: &Signed<CompletionAuthorization>,
        approvals: &[Approval],
    ) -> Vec<Equivocation> {
        // What nobody has approved convicts nobody, and takes nothing's place.
        if approvals.is_empty() {
            return Vec::new();
        }
        let Inner { seen, order, evidence } = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = ApprovalKey::of(completion, authorization.message.author);
        if !seen.contains_key(&key) {
            order.push_back(key);
            if order.len() > MAX_REQUESTS
                && let Some(oldest) = order.pop_front()
            {
                seen.remove(&oldest);
            }
        }
        let of_request = seen.entry(key).or_default();
        let same = of_request.iter().find(|earlier| earlier.completion == *completion);
        let is_known = |approval: &&Approval| {
            same.is_some_and(|same| same.approvals.iter().any(|before| before.validator == approval.validator))
        };
        // What is asked for again is approved again, and convicts nobody a second time.
        let new: Vec<Approval> = approvals.iter().filter(|approval| !is_known(approval)).copied().collect();
        let mut found = Vec::new();
        for earlier in of_request.iter().filter(|earlier| earlier.completion != *completion) {
            for approval in &new {
                let before = earlier.approvals.iter().find(|before| before.validator == approval.validator);
                found.extend(before.map(|before| Equivocation {
                    first: ApprovedCompletion {
                        completion: earlier.completion.clone(),
                        authorization: earlier.authorization.clone(),
                        approval: *before,
                    },
                    second: ApprovedCompletion {
                        completion: completion.clone(),
                        authorization: authorization.clone(),
                        approval: *approval,
                    },
                }));
            }
        }
        let has_room = of_request.len() < MAX_COMPLETIONS;
        match of_request.iter_mut().find(|earlier| earlier.completion == *completion) {
            Some(same) => same.approvals.extend(new),
            None if has_room => {
                of_request.push(Seen { completion: completion.clone(), authorization: authorization.clone(), approvals: new });
            }
            None => {}
        }
        // One piece of evidence for a request convicts a validator.
        found.retain(|found: &Equivocation| {
            let is_against_it = |known: &&Equivocation| known.first.approval.validator == found.first.approval.validator;
            let (mut against_it, mut is_new) = (0, evidence.len() < MAX_EVIDENCE);
            for known in evidence.iter().filter(is_against_it) {
                against_it += 1;
                is_new &= against_it < MAX_OF_ONE && known.request_id() != found.request_id();
            }
            if is_new {
                evidence.push(found.clone());
            }
            is_new
        });
        found
    }

    /// Takes in what was found before this node was started.
    pub(super) fn restore(&self, kept: Vec<Equivocation>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).evidence = kept;
    }

    /// What was found so far, in the order in which it was found.
    pub(super) fn evidence(&self) -> Vec<Equivocation> {
        self.after(0)
    }

    /// The same, without the first ones.
    pub(super) fn after(&self, first: usize) -> Vec<Equivocation> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).evidence.get(first..).unwrap_or_default().to_vec()
    }
}
