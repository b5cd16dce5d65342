//! Tickets: the gateway's part in the draw of each order's committee. What it gives out is not kept: a ticket's salt follows from its id.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

use ncn_client::unix_now;
use ncn_core::{
    B256, InferenceRequest, TransportError, UnixTime, keccak256,
    transport::{MAX_TICKETS, Ticket},
    trust::draw_of,
};

use super::redemption::RETRY_AFTER;

/// How long a ticket can be used, in seconds.
const VALIDITY: u64 = 10 * 60;
/// How many used ones are remembered, each until it could not be used any more.
const MAX_USED: usize = 100_000;

/// All tickets of a gateway's process. Those of another process are not known: clients ask for new ones.
pub(super) struct Tickets {
    secret: B256,
    /// Tickets that an order came with, and until when they could be used.
    used: Mutex<BTreeSet<(UnixTime, B256)>>,
}

impl Tickets {
    pub(super) fn new() -> Self {
        Self { secret: B256::random(), used: Mutex::default() }
    }

    /// Gives out new ones.
    pub(super) fn issue(&self, count: u32) -> Result<Vec<Ticket>, TransportError> {
        if !(1..=MAX_TICKETS).contains(&count) {
            return Err(TransportError::invalid("count", format!("{count} tickets: from 1 to {MAX_TICKETS} are given at once")));
        }
        let until = unix_now() + VALIDITY;
        Ok((0..count).map(|_| self.ticket(until)).collect())
    }

    fn ticket(&self, until: UnixTime) -> Ticket {
        let mut id = B256::random();
        for (byte, of_until) in id.iter_mut().zip(until.to_be_bytes()) {
            *byte = of_until;
        }
        Ticket { id, draw: draw_of(&self.salt(&id)) }
    }

    fn salt(&self, id: &B256) -> B256 {
        keccak256([self.secret, *id].concat())
    }

    /// The salt of an order, whose ticket cannot be used again: a client that knows the salt could choose its next order's committee.
    pub(super) fn take(&self, id: &B256, order: &InferenceRequest) -> Result<B256, TransportError> {
        let refuse = |problem: &str| Err(TransportError::invalid("request.draw", format!("{problem}: take another ticket")));
        let salt = self.salt(id);
        if draw_of(&salt) != order.draw {
            return refuse("is of no ticket that this gateway has given since it started");
        }
        let until = id.first_chunk().map_or(0, |bytes| UnixTime::from_be_bytes(*bytes));
        let now = unix_now();
        if until < now {
            return refuse("is of a ticket that is too old");
        }
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        while used.first().is_some_and(|(until, _)| *until < now) {
            used.pop_first();
        }
        if used.len() >= MAX_USED {
            return Err(TransportError::Overloaded { retry_after: RETRY_AFTER });
        }
        if !used.insert((until, *id)) {
            return refuse("is of a ticket that another order came with");
        }
        drop(used);
        Ok(salt)
    }

    /// A ticket was taken for an order that is not taken in.
    pub(super) fn give_back(&self, id: &B256) {
        let until = id.first_chunk().map_or(0, |bytes| UnixTime::from_be_bytes(*bytes));
        self.used.lock().unwrap_or_else(PoisonError::into_inner).remove(&(until, *id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(draw: B256) -> InferenceRequest {
        InferenceRequest {
            client: ncn_core::Address::ZERO,
            subnet: B256::ZERO,
            model_digest: B256::ZERO,
            input_hash: B256::ZERO,
            parameters: "{}".into(),
            max_price: ncn_core::Amount::new(1),
            deadline: 0,
            nonce: B256::ZERO,
            draw,
        }
    }

    fn refusal(taken: Result<B256, TransportError>) -> String {
        match taken {
            Err(TransportError::InvalidRequest { field, problem }) if field == "request.draw" => problem,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_ticket_is_for_one_order() {
        let tickets = Tickets::new();
        let given = tickets.issue(MAX_TICKETS).unwrap();
        assert_eq!(given.iter().collect::<std::collections::HashSet<_>>().len(), MAX_TICKETS as usize);
        for ticket in &given {
            let salt = tickets.take(&ticket.id, &order(ticket.draw)).unwrap();
            assert_eq!(draw_of(&salt), ticket.draw);
            assert!(refusal(tickets.take(&ticket.id, &order(ticket.draw))).contains("another order"));
            tickets.give_back(&ticket.id);
            assert_eq!(tickets.take(&ticket.id, &order(ticket.draw)).unwrap(), salt);
        }
        assert!(tickets.issue(0).is_err() && tickets.issue(MAX_TICKETS + 1).is_err());
    }

    #[test]
    fn a_ticket_of_others_or_of_old_is_refused() {
        let (tickets, others) = (Tickets::new(), Tickets::new());
        let foreign = others.issue(1).unwrap()[0];
        assert!(refusal(tickets.take(&foreign.id, &order(foreign.draw))).contains("no ticket"));
        let [one, two] = tickets.issue(2).unwrap()[..] else { panic!() };
        assert!(refusal(tickets.take(&one.id, &order(two.draw))).contains("no ticket"));
        let old = tickets.ticket(unix_now() - 1);
        assert!(refusal(tickets.take(&old.id, &order(old.draw))).contains("too old"));
        // Nor does a later end make it another one that is good.
        let mut later = old;
        later.id[..8].copy_from_slice(&(unix_now() + VALIDITY).to_be_bytes());
        assert!(refusal(tickets.take(&later.id, &order(old.draw))).contains("no ticket"));
        assert!(tickets.take(&one.id, &order(one.draw)).is_ok(), "what was refused is not used");
    }

    #[test]
    fn what_is_remembered_is_bounded_and_forgotten() {
        let tickets = Tickets::new();
        let remember = |until: UnixTime, count: usize| {
            let id = |number: usize| B256::left_padding_from(&number.to_be_bytes());
            tickets.used.lock().unwrap().extend((0..count).map(|number| (until, id(number))));
        };
        let ticket = tickets.issue(1).unwrap()[0];
        remember(unix_now() + VALIDITY, MAX_USED);
        assert!(matches!(tickets.take(&ticket.id, &order(ticket.draw)), Err(TransportError::Overloaded { .. })));
        tickets.used.lock().unwrap().clear();
        remember(unix_now() - 1, MAX_USED);
        assert!(tickets.take(&ticket.id, &order(ticket.draw)).is_ok());
        assert_eq!(tickets.used.lock().unwrap().len(), 1);
    }
}
