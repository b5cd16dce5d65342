//! What registry nodes say to each other.

use std::time::Duration;

use ncn_core::{AnswerTime, RegistryStatus, membership::News};
use prost::{Message, bytes::Bytes};

use super::{WireError, address, bytes, required};
use crate::{
    entries::{Described, check_entries},
    proto::{self, news},
};

/// Reads a message that came in one frame. What repeats in it is counted before anything is made of it.
///
/// # Errors
/// It has more entries than its length allows, or is malformed.
pub fn decode<M: Message + Default + Described>(frame: Bytes) -> Result<M, WireError> {
    check_entries::<M>(&frame)?;
    M::decode(frame).map_err(|error| WireError::new("message", error.to_string()))
}

impl From<RegistryStatus> for proto::RegistryStatus {
    fn from(status: RegistryStatus) -> Self {
        let RegistryStatus { peer, addresses, peers, nodes, subnets, pending, refused, uptime } = status;
        Self {
            peer,
            addresses,
            peers,
            nodes,
            subnets,
            refused: refused.into_iter().map(|(reason, count)| proto::Refusals { reason, count }).collect(),
            uptime,
            pending,
        }
    }
}

impl From<proto::RegistryStatus> for RegistryStatus {
    fn from(status: proto::RegistryStatus) -> Self {
        let proto::RegistryStatus { peer, addresses, peers, nodes, subnets, refused, uptime, pending } = status;
        Self {
            peer,
            addresses,
            peers,
            nodes,
            subnets,
            refused: refused.into_iter().map(|refusals| (refusals.reason, refusals.count)).collect(),
            uptime,
            pending,
        }
    }
}

impl From<AnswerTime> for proto::AnswerTime {
    fn from(AnswerTime { validator, asked, approved, mean }: AnswerTime) -> Self {
        let mean_micros = mean.as_micros().try_into().unwrap_or(u64::MAX);
        Self { validator: bytes(validator), asked, approved, mean_micros }
    }
}

impl TryFrom<proto::AnswerTime> for AnswerTime {
    type Error = WireError;

    fn try_from(time: proto::AnswerTime) -> Result<Self, WireError> {
        let proto::AnswerTime { validator, asked, approved, mean_micros } = time;
        let validator = address("answer_time.validator", &validator)?;
        Ok(Self { validator, asked, approved, mean: Duration::from_micros(mean_micros) })
    }
}

impl From<News> for proto::News {
    fn from(news: News) -> Self {
        let news = match news {
            News::Record(record) => news::News::Record(record.into()),
            News::Heartbeat(heartbeat) => news::News::Heartbeat(heartbeat.into()),
            News::Departure(departure) => news::News::Departure(departure.into()),
            News::Subnet(subnet) => news::News::Subnet(subnet.into()),
            News::Pending(pending) => news::News::Pending(pending.into()),
        };
        Self { news: Some(news) }
    }
}

impl TryFrom<proto::News> for News {
    type Error = WireError;

    fn try_from(news: proto::News) -> Result<Self, WireError> {
        Ok(match required("news", news.news)? {
            news::News::Record(record) => Self::Record(record.try_into()?),
            news::News::Heartbeat(heartbeat) => Self::Heartbeat(heartbeat.try_into()?),
            news::News::Departure(departure) => Self::Departure(departure.try_into()?),
            news::News::Subnet(subnet) => Self::Subnet(subnet.try_into()?),
            news::News::Pending(pending) => Self::Pending(pending.try_into()?),
        })
    }
}
