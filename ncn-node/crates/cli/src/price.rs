//! Whether a listed price may be paid: by the caller's limit, or by the answer of the person at the terminal.

use std::io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _};

use ncn_client::Estimate;
use ncn_core::Amount;
use tokio::sync::oneshot;

use crate::{Failure, account::tokens, sanitize};

/// More than anybody types to answer a question.
const MAX_ANSWER_BYTES: u64 = 1 << 10;

#[derive(clap::Args)]
pub(crate) struct PriceArguments {
    /// The most to pay, in tokens. Without it, a terminal shows the listed price and asks; elsewhere this or --yes is needed
    #[arg(long, value_name = "TOKENS", value_parser = tokens)]
    max_price: Option<Amount>,
    /// Pay the listed price, whatever it is, without a question
    #[arg(long)]
    yes: bool,
}

/// What has to happen before a price may be paid.
#[derive(Debug, PartialEq, Eq)]
enum Decision {
    /// It may be paid, up to this limit.
    Limit(Amount),
    /// The person at the terminal decides.
    Ask,
    /// Nobody would see the price.
    Refuse,
}

impl PriceArguments {
    const fn decide(&self, listed: Amount, terminal: bool) -> Decision {
        match (self.max_price, self.yes, terminal) {
            (Some(limit), _, _) => Decision::Limit(limit),
            (None, true, _) => Decision::Limit(listed),
            (None, false, true) => Decision::Ask,
            (None, false, false) => Decision::Refuse,
        }
    }

    /// The most that the request may cost. Fails when the caller has set no limit and has not agreed to what it can cost.
    pub(crate) async fn agree(&self, model: &str, estimate: &Estimate) -> Result<Amount, Failure> {
        let most = estimate.maximum;
        let costs = if estimate.price.is_flat() {
            format!("costs {most}")
        } else {
            format!("costs up to {most}, typically {}: {}", estimate.typical, estimate.price)
        };
        // The question goes to standard error, so that standard output may be redirected.
        let terminal = io::stdin().is_terminal() && io::stderr().is_terminal();
        match self.decide(most, terminal) {
            Decision::Limit(limit) => Ok(limit),
            Decision::Ask if agreed(&ask(&format!("{} {costs}. Pay? [y/N] ", sanitize(model))).await?) => Ok(most),
            Decision::Ask => Err(Failure::Failed(format!("price: {most} was not agreed to: nothing was signed or paid"))),
            Decision::Refuse => Err(Failure::Input(format!(
                "price: {model} {costs}: give --max-price TOKENS, or --yes to pay what is listed; nothing was signed or paid"
            ))),
        }
    }
}

fn agreed(answer: &str) -> bool {
    matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

async fn ask(question: &str) -> Result<String, Failure> {
    let mut err = io::stderr();
    err.write_all(question.as_bytes())?;
    err.flush()?;
    let (sender, answer) = oneshot::channel();
    // A detached thread: a runtime waits for its own blocking threads when it ends, and an interrupted question is never answered.
    std::thread::spawn(move || {
        let mut line = String::new();
        let read = io::stdin().lock().take(MAX_ANSWER_BYTES).read_line(&mut line);
        let _ = sender.send(read.map(|_| line));
    });
    Ok(answer.await.map_err(Failure::failed)??)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_price_is_paid_only_when_it_was_limited_or_agreed_to() {
        let price = Amount::TOKEN;
        let arguments = |max_price, yes| PriceArguments { max_price, yes };
        for terminal in [false, true] {
            let limit = Amount::new(5);
            assert_eq!(arguments(Some(limit), false).decide(price, terminal), Decision::Limit(limit));
            assert_eq!(arguments(Some(limit), true).decide(price, terminal), Decision::Limit(limit), "the limit holds");
            assert_eq!(arguments(None, true).decide(price, terminal), Decision::Limit(price));
        }
        assert_eq!(arguments(None, false).decide(price, true), Decision::Ask);
        assert_eq!(arguments(None, false).decide(price, false), Decision::Refuse);
    }

    #[test]
    fn only_a_yes_is_a_yes() {
        assert!(["y\n", "Y", " yes \r\n", "YES\n"].into_iter().all(agreed));
        assert!(!["", "\n", "n\n", "no", "yes please", "j\n", "0"].into_iter().any(agreed));
    }
}
