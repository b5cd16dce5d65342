//! A node is lost in the middle of an output, and another one goes on: the client has one output, and every node that gave a part of it is
//! paid.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures::{StreamExt as _, stream};
use ncn_client::{InferenceEvent, InferenceOutput, Order};
use ncn_core::{
    Amount, B256, Confinement, Continuation, Execution, Executor, ExecutorError, FinishReason, OutputChunk, PayeeRole, Usage,
    Value, Values,
    executor::{ModelPackage, Outputs},
    model::ModelFormat,
};
use ncn_devnet::{LocalNetwork, quickstart};
use serde_json::json;

use crate::{
    harmful::changed,
    scene::tokens,
    wait::{TIMEOUT, in_time},
};

const BASE: u128 = 1_000_000;
const INPUT: u128 = 20_000;
const WORD: u128 = 300;
const WORDS: u64 = 100;
const RERUN: Option<Continuation> = Some(Continuation::Rerun);
const CONTEXT: Option<Continuation> = Some(Continuation::Context);

/// One run of the model.
#[derive(Clone, Copy)]
struct Run {
    /// After so many words its node is lost.
    dies_after: u64,
    /// What stands before each word's number.
    says: &'static str,
}

const fn lost_after(words: u64) -> Run {
    Run { dies_after: words, says: "" }
}

/// Says words, a part and a unit each; its first runs are as they are here.
struct Dying {
    runs: Mutex<VecDeque<Run>>,
    continues: Option<Continuation>,
    /// States more confinement than its node's record.
    boasts: AtomicBool,
}

#[async_trait]
impl Executor for Dying {
    fn formats(&self) -> Vec<ModelFormat> {
        vec![ModelFormat::Onnx]
    }

    fn confinement(&self, _: &B256) -> Confinement {
        if self.boasts.load(Ordering::SeqCst) { Confinement::Full } else { Confinement::None }
    }

    fn is_deterministic(&self, _: &B256) -> bool {
        self.continues == Some(Continuation::Rerun)
    }

    /// Goes on with the number after the last one.
    fn continue_from(&self, execution: &Execution, prefix: &Values, units: u64) -> Option<Execution> {
        assert_eq!(prefix.text("text").unwrap().split_whitespace().count() as u64, units);
        let parameters = json!({ "after": units }).to_string();
        (self.continues == Some(Continuation::Context)).then(|| Execution { parameters, ..execution.clone() })
    }

    async fn load(&self, _: &ModelPackage) -> Result<(), ExecutorError> {
        Ok(())
    }

    async fn unload(&self, _: &B256) -> Result<(), ExecutorError> {
        Ok(())
    }

    async fn run(&self, execution: Execution) -> Result<Outputs, ExecutorError> {
        let parameters: serde_json::Value = serde_json::from_str(&execution.parameters).unwrap();
        let after = parameters["after"].as_u64().unwrap_or_default();
        let run = self.runs.lock().unwrap().pop_front().unwrap_or(lost_after(u64::MAX));
        let word = move |number: u64| {
            if number > run.dies_after {
                return Err(ExecutorError::Worker("killed".into()));
            }
            let values = Values::from([("text", Value::from(format!("{}{number} ", run.says).as_str()))]);
            let usage = Usage { input_units: 1, output_units: number - after, duration_micros: 1 };
            Ok(OutputChunk { values, usage, finish: (number == WORDS).then_some(FinishReason::Stop) })
        };
        // A checkpoint comes after 32 parts at the latest: what is lost has been given in part.
        Ok(stream::iter((after + 1..=WORDS).map(word)).boxed())
    }
}

struct Heard {
    answer: InferenceOutput,
    text: String,
    restarts: usize,
    network: LocalNetwork,
}

impl Heard {
    /// How many words each node gave, and was paid for.
    async fn shares(&self) -> Vec<u64> {
        let receipt = &self.answer.receipt;
        receipt.verify(&self.network.trust_root().await.unwrap()).unwrap();
        let results = &receipt.delivery.results;
        for (result, contribution) in results.iter().zip(&receipt.completion.contributions) {
            assert_eq!(result.message.compute, contribution.compute);
        }
        let paid = receipt.payments.payouts.iter().filter(|payout| payout.role == PayeeRole::Compute).count();
        assert_eq!(paid, results.len(), "each is paid");
        results.iter().map(|result| result.message.usage.output_units).collect()
    }
}

fn words(says: &str, count: u64) -> String {
    let words: Vec<_> = (1..=count).map(|number| format!("{says}{number} ")).collect();
    words.concat()
}

/// Has the model say its words through a network of two compute nodes.
async fn listen(runs: &[Run], continues: Option<Continuation>) -> Heard {
    listen_to(runs, continues, false).await
}

async fn listen_to(runs: &[Run], continues: Option<Continuation>, boasts: bool) -> Heard {
    let directory = tempfile::tempdir().unwrap();
    let package = changed(directory.path(), |manifest| {
        manifest["outputs"] = json!([{ "type": "text", "name": "text" }]);
        manifest["limits"]["max_output_units"] = WORDS.into();
        manifest["price"] = json!({
            "base": BASE.to_string(),
            "input": { "unit": "row", "price": INPUT.to_string() },
            "output": { "unit": "row", "price": WORD.to_string() },
        });
    });
    let runs = Mutex::new(runs.iter().copied().collect());
    let executor = Arc::new(Dying { runs, continues, boasts: AtomicBool::new(false) });
    let network = LocalNetwork::builder().executor(executor.clone()).models(vec![package]).start().await.unwrap();
    // What their records say is said by now.
    executor.boasts.store(boasts, Ordering::SeqCst);
    let client = network.client().await.unwrap().max_price(tokens(1)).build().unwrap();
    let order = Order::new(quickstart::NAME, [("image", Value::png(quickstart::SAMPLE))]).timeout(TIMEOUT * 2);
    let paid = client.submit(order).await.unwrap().pay().await.unwrap();
    let (mut text, mut restarts) = (String::new(), 0);
    let mut events = paid.events();
    let answer = in_time("the answer", async {
        loop {
            match events.next().await.unwrap().unwrap() {
                InferenceEvent::Part(part) => text.push_str(part.values.text("text").unwrap()),
                InferenceEvent::Finished(answer) => break *answer,
                InferenceEvent::Restarted => {
                    text.clear();
                    restarts += 1;
                }
                event => panic!("unknown: {event:?}"),
            }
        }
    })
    .await;
    Heard { answer, text, restarts, network }
}

fn cost(words: u64) -> Amount {
    Amount::new(BASE + INPUT + WORD * u128::from(words))
}

#[tokio::test(flavor = "multi_thread")]
async fn another_node_goes_on_where_one_was_lost() {
    let heard = listen(&[lost_after(40)], RERUN).await;
    let shares = heard.shares().await;
    let results = &heard.answer.receipt.delivery.results;
    assert_eq!((heard.text.as_str(), heard.answer.output.text("text")), (&*words("", WORDS), Some(&*words("", WORDS))));
    assert!(shares.len() == 2 && (32..=40).contains(&shares[0]) && shares[0] + shares[1] == WORDS, "{shares:?}");
    assert_ne!(results[0].message.compute, results[1].message.compute);
    assert_eq!(results[1].message.resumed_from, results[0].message.chain);
    assert_eq!([0, 1].map(|node| results[node].message.continuation), [None, RERUN]);
    assert_eq!((heard.answer.finish(), heard.answer.cost()), (FinishReason::Stop, cost(WORDS)), "as if one had given all");
    assert_eq!(heard.restarts, 0, "the client sees one output");
}

/// A model that gives other parts each time takes those that are there as context, and the receipt says so.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_there_is_the_context_of_what_follows() {
    let heard =
        listen(&[lost_after(40), Run { dies_after: 70, says: "x" }, Run { dies_after: u64::MAX, says: "y" }], CONTEXT).await;
    let shares = heard.shares().await;
    let [first, second, third] = *shares else { panic!("{shares:?}") };
    assert!((32..=40).contains(&first) && (64..=70).contains(&(first + second)) && first + second + third == WORDS, "{shares:?}");
    let says = |word: u64| match word {
        _ if word <= first => "",
        _ if word <= first + second => "x",
        _ => "y",
    };
    let all: Vec<_> = (1..=WORDS).map(|word| format!("{}{word} ", says(word))).collect();
    let all = all.concat();
    assert_eq!((heard.text.as_str(), heard.answer.output.text("text")), (&*all, Some(&*all)));
    let results = &heard.answer.receipt.delivery.results;
    assert_eq!([0, 1, 2].map(|node| results[node].message.continuation), [None, CONTEXT, CONTEXT]);
    assert_eq!((heard.answer.finish(), heard.answer.cost()), (FinishReason::Stop, cost(WORDS)));
    // What a lost node has given after its last word, the next one gives otherwise.
    assert!(heard.restarts <= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn and_another_one_where_that_was_lost() {
    let heard = listen(&[lost_after(35), lost_after(70)], RERUN).await;
    let shares = heard.shares().await;
    assert!(shares.len() == 3 && shares.iter().sum::<u64>() == WORDS, "{shares:?}");
    assert_eq!((heard.text, heard.answer.cost(), heard.restarts), (words("", WORDS), cost(WORDS), 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_node_ends_is_paid_to_those_who_gave_it() {
    // The third one is lost before it comes to where the second one was.
    let heard = listen(&[lost_after(35), lost_after(70), lost_after(50)], RERUN).await;
    let shares = heard.shares().await;
    let given: u64 = shares.iter().sum();
    assert!(shares.len() == 2 && (64..=70).contains(&given), "{shares:?}");
    assert_eq!(heard.answer.output.text("text"), Some(&*words("", given)));
    assert_eq!((heard.answer.finish(), heard.answer.cost()), (FinishReason::NodeLost, cost(given)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_continued_begins_anew() {
    // The other node's model says something else: by its parts, or by its word.
    for (runs, continues) in [
        (&[lost_after(40), Run { dies_after: u64::MAX, says: "x" }, Run { dies_after: u64::MAX, says: "y" }][..], RERUN),
        (&[lost_after(40), Run { dies_after: u64::MAX, says: "y" }], None),
    ] {
        let heard = listen(runs, continues).await;
        assert_eq!(heard.shares().await, [WORDS]);
        assert_eq!((heard.text.as_str(), heard.answer.output.text("text")), (&*words("y", WORDS), Some(&*words("y", WORDS))));
        assert_eq!((heard.restarts, heard.answer.cost()), (1, cost(WORDS)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_given_first_counts_when_nobody_ends_what_began_anew() {
    let heard = listen(&[lost_after(70), Run { dies_after: 35, says: "x" }], None).await;
    let shares = heard.shares().await;
    assert!(shares.len() == 1 && (64..=70).contains(&shares[0]), "{shares:?}");
    assert_eq!(heard.answer.output.text("text"), Some(&*words("", shares[0])));
    assert_eq!((heard.answer.finish(), heard.answer.cost()), (FinishReason::NodeLost, cost(shares[0])));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_short_of_the_parts_that_are_there_does_not_end_them() {
    let heard = listen(&[lost_after(99), lost_after(10), lost_after(20)], RERUN).await;
    let shares = heard.shares().await;
    assert!(shares.len() == 1 && (96..=99).contains(&shares[0]), "{shares:?}");
    assert_eq!(heard.answer.finish(), FinishReason::NodeLost);
    tokio::time::timeout(Duration::from_mins(1), heard.network.shutdown()).await.unwrap();
}

/// Nodes whose ends no validator approves are not paid for them, and do not make their request fail.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_validators_refuse_is_paid_up_to_where_it_is_good() {
    let heard = listen_to(&[], RERUN, true).await;
    assert_eq!(heard.shares().await, [WORDS - 1]);
    assert_eq!(heard.answer.output.text("text"), Some(&*words("", WORDS - 1)));
    assert_eq!((heard.answer.finish(), heard.answer.cost()), (FinishReason::NodeLost, cost(WORDS - 1)));
}
