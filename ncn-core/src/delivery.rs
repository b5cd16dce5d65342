//! What was delivered of a request, by whom, and what that costs: each role recomputes it from what the compute nodes have signed.

use std::fmt;

use alloy_primitives::{B256, keccak256};
use serde::{Deserialize, Serialize};

use crate::{
    Amount, Completion, Contribution, Domain, InferenceResult, Message as _, Quote, SignatureError, Signed, Units, Usage,
    agreement::Mismatch, lifecycle::MAX_ATTEMPTS, price::PriceOverflow,
};

/// Why an output ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum FinishReason {
    /// The model was done.
    Stop = 1,
    /// It had as many units as it was to have.
    Length = 2,
    /// Its time was over: the client's, or the model's own.
    Deadline = 3,
    /// The client wanted no more.
    Cancelled = 4,
    /// The compute node was lost, and no other one went on.
    NodeLost = 5,
}

impl FinishReason {
    const ALL: [Self; 5] = [Self::Stop, Self::Length, Self::Deadline, Self::Cancelled, Self::NodeLost];

    /// The reason with this number.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| *reason as u8 == code)
    }

    /// True when the model has given all that it was asked for.
    pub const fn is_whole(self) -> bool {
        matches!(self, Self::Stop | Self::Length)
    }
}

/// As it is written.
impl fmt::Display for FinishReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Deadline => "deadline",
            Self::Cancelled => "cancelled",
            Self::NodeLost => "node_lost",
        })
    }
}

/// How a node has gone on from parts that another one had given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Continuation {
    /// It ran the request again, and came to the same parts: the output is what one node would have given.
    Rerun = 1,
    /// It took the parts as context. What follows them fits them, and may be other than what the first node would have given.
    Context = 2,
}

impl Continuation {
    /// The way with this number.
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Rerun),
            2 => Some(Self::Context),
            _ => None,
        }
    }
}

/// As it is written.
impl fmt::Display for Continuation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rerun => "rerun",
            Self::Context => "context",
        })
    }
}

/// What was delivered of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Delivery {
    /// What the compute nodes have signed, each of its own parts, in the order of the output. One, unless others went on where it was
    /// lost.
    pub results: Vec<Signed<InferenceResult>>,
    /// Why there is no more.
    pub finish: FinishReason,
}

/// Why a delivery is not one for its quote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum DeliveryError {
    /// No node, or more than may try.
    #[error("results: there are {0}, a request has 1 to {MAX_ATTEMPTS}")]
    Results(usize),
    /// A result is of something else than was quoted.
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
    /// A result without a part: nothing was delivered.
    #[error("result.parts: are none, nothing was delivered")]
    NoParts,
    /// More taken in than was quoted.
    #[error("result.usage.inputUnits: {units} are more than the quote's {most}")]
    InputUnits {
        /// What was signed.
        units: u64,
        /// What was quoted.
        most: u64,
    },
    /// More given out than was quoted.
    #[error("result.usage.outputUnits: {units} are more than the quote's {most}")]
    OutputUnits {
        /// What was signed, of all nodes.
        units: u64,
        /// What was quoted.
        most: u64,
    },
    /// More given out than the output has room for.
    #[error("result.usage.outputUnits: {units} do not fit the output's {bytes} bytes in {parts} parts")]
    OutputSize {
        /// What was signed.
        units: u64,
        /// How many bytes the node's parts have.
        bytes: u64,
        /// How many parts there are.
        parts: u64,
    },
    /// A result that does not go on where the one before it ended.
    #[error("result.resumedFrom: is not the chain of the parts before it")]
    Chain,
    /// A node that goes on has fewer bytes than were there: units would be counted that are not in the output.
    #[error("result.outputBytes: are fewer than those of the parts before")]
    Shrinks,
    /// A node that goes on does not say how, or one that begins says that it goes on.
    #[error("result.continuation: is stated for what follows other parts, and only there")]
    Continuation,
    /// The stated reason is not the node's, or needs one of the node's.
    #[error("finish: {stated} is not what the compute node has signed")]
    Finish {
        /// What is stated.
        stated: FinishReason,
    },
    /// The price is not one.
    #[error(transparent)]
    Price(#[from] PriceOverflow),
    /// It costs more than the client has agreed to.
    #[error("cost: {cost} is more than the quote's total of {total}")]
    AboveTotal {
        /// What it would cost.
        cost: Amount,
        /// The most.
        total: Amount,
    },
}

/// How many units an output of so many bytes, in so many parts, has at most: none is smaller than a byte, and each part may end with one
/// that leaves nothing behind, as a token that ends a text does.
pub const fn most_units(bytes: u64, parts: u64) -> u64 {
    bytes.saturating_add(parts)
}

impl Delivery {
    /// All of a request's output, as one node has signed it. `None` while its output is not at its end.
    pub fn whole(result: Signed<InferenceResult>) -> Option<Self> {
        let finish = result.message.finish?;
        Some(Self { results: vec![result], finish })
    }

    /// The last node's result: that of the whole output.
    pub fn last(&self) -> Option<&InferenceResult> {
        self.results.last().map(|result| &result.message)
    }

    /// What it took: the input of the first node, the outputs and the time of all.
    pub fn usage(&self) -> Usage {
        let sum =
            |of: fn(&Usage) -> u64| self.results.iter().fold(0u64, |sum, result| sum.saturating_add(of(&result.message.usage)));
        Usage {
            input_units: self.results.first().map_or(0, |result| result.message.usage.input_units),
            output_units: sum(|usage| usage.output_units),
            duration_micros: sum(|usage| usage.duration_micros),
        }
    }

    /// keccak256 of the nodes' signatures, one after the other: who approves a batch vouches for them.
    pub fn signatures_hash(&self) -> B256 {
        keccak256(self.results.iter().flat_map(|result| *result.signature.as_bytes()).collect::<Vec<_>>())
    }

    /// Checks that each result was signed by the node that it names.
    ///
    /// # Errors
    /// The first signature that is not the node's.
    pub fn verify(&self, domain: &Domain) -> Result<(), SignatureError> {
        self.results.iter().try_for_each(|result| result.verify(domain).map(drop))
    }

    /// What the validators approve of it: who gave what, and what each part costs. Looks at no signature.
    ///
    /// # Errors
    /// When the results are not for the quote, do not follow each other, or state more than was quoted or than the output has room for.
    pub fn completion(&self, quote: &Quote) -> Result<Completion, DeliveryError> {
        let count = self.results.len();
        if count == 0 || count > usize::from(MAX_ATTEMPTS) {
            return Err(DeliveryError::Results(count));
        }
        let mut contributions = Vec::with_capacity(count);
        let (mut output_units, mut before): (u64, Option<&InferenceResult>) = (0, None);
        for (index, result) in self.results.iter().enumerate() {
            let result = &result.message;
            result.fits_quote(quote)?;
            let resumed_from = before.map_or(B256::ZERO, |before| before.chain);
            if result.resumed_from != resumed_from {
                return Err(DeliveryError::Chain);
            }
            if result.continuation.is_some() != before.is_some() {
                return Err(DeliveryError::Continuation);
            }
            if before.is_some_and(|before| result.output_bytes < before.output_bytes) {
                return Err(DeliveryError::Shrinks);
            }
            let own = |whole: u64, before: u64| whole.saturating_sub(before);
            let parts = own(result.parts, before.map_or(0, |before| before.parts));
            let bytes = own(result.output_bytes, before.map_or(0, |before| before.output_bytes));
            let Units { input, output } = result.usage.units();
            if parts == 0 {
                return Err(DeliveryError::NoParts);
            }
            if input > quote.max_units.input {
                return Err(DeliveryError::InputUnits { units: input, most: quote.max_units.input });
            }
            if output > most_units(bytes, parts) {
                return Err(DeliveryError::OutputSize { units: output, bytes, parts });
            }
            output_units = output_units.saturating_add(output);
            if output_units > quote.max_units.output {
                return Err(DeliveryError::OutputUnits { units: output_units, most: quote.max_units.output });
            }
            // Whoever went on from another node's parts was given the input that has been paid for.
            let cost = if before.is_none() { quote.price.cost(result.usage.units())? } else { quote.price.output_cost(output)? };
            contributions.push(Contribution { compute: result.compute, result: result.struct_hash(), cost });
            let fits = match result.finish {
                Some(finish) => finish == self.finish && index + 1 == count,
                None => index + 1 < count || !self.finish.is_whole(),
            };
            if !fits {
                return Err(DeliveryError::Finish { stated: self.finish });
            }
            before = Some(result);
        }
        let cost = Amount::checked_sum(contributions.iter().map(|contribution| contribution.cost));
        if cost.is_none_or(|cost| cost > quote.total) {
            return Err(DeliveryError::AboveTotal { cost: cost.unwrap_or(Amount::new(u128::MAX)), total: quote.total });
        }
        Ok(Completion { request_id: quote.request_id, quote: quote.struct_hash(), finish: self.finish, contributions })
    }
}
