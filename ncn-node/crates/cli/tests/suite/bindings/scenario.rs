//! The scenario of every language, in Rust: ncn-bindings/scenario.json.

use std::{collections::BTreeMap, fs, sync::Arc, time::Duration};

use futures::{StreamExt as _, future::join_all};
use ncn_client::{Client, ClientError, InferenceEvent, InferenceOutput, Order, Payment, transport};
use ncn_core::{Amount, Receipt, TransportError, Value, Values};
use serde::Deserialize;
use serde_json::{Value as Json, json};

use super::network::Scene;
use crate::scene::{repository, tokens};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Scenario {
    #[serde(rename = "about")]
    _about: String,
    groups: Vec<Vec<Call>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Call {
    name: String,
    call: String,
    #[serde(default = "honest")]
    gateway: String,
    #[serde(default)]
    model: String,
    #[serde(default)]
    inputs: BTreeMap<String, Input>,
    #[serde(default)]
    messages: Json,
    #[serde(default)]
    text: String,
    max_price: Option<Amount>,
    timeout: Option<u64>,
    after: Option<usize>,
    receipts: Option<String>,
    gives: Option<Json>,
    fails: Option<Json>,
}

fn honest() -> String {
    "honest".into()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
enum Input {
    Text(String),
    File(String),
}

/// How many calls the scenario has.
pub(super) fn calls() -> usize {
    read().groups.iter().map(Vec::len).sum()
}

fn read() -> Scenario {
    serde_json::from_str(&fs::read_to_string(repository("ncn-bindings/scenario.json")).unwrap()).unwrap()
}

/// An error's kind, as the other languages name it.
fn kind(error: &ClientError) -> String {
    let said = match error {
        ClientError::Transport(TransportError::UnknownModel(_)) => "UnknownModel".into(),
        ClientError::Transport(TransportError::InvalidRequest { .. }) => "Input".into(),
        error => format!("{error:?}"),
    };
    let name: String = said.chars().take_while(char::is_ascii_alphanumeric).collect();
    name[..1].to_lowercase() + &name[1..]
}

fn given(answer: &InferenceOutput) -> Json {
    let texts: BTreeMap<_, _> = answer.output.iter().filter_map(|(name, value)| Some((name, value.as_text()?))).collect();
    json!({ "output": texts, "text": texts.get("text"), "finish": answer.finish().to_string(), "cost": answer.cost() })
}

impl Call {
    async fn client(&self, scene: &Scene) -> Result<Client, ClientError> {
        let gateway = transport(&scene.gateways[&self.gateway]).unwrap();
        let trust = gateway.network().await?.trust_root;
        if trust.hash() != scene.hash {
            return Err(ClientError::Configuration { setting: "network", problem: "is another one".into() });
        }
        let client = Client::builder().transport(gateway).payment(Payment::Relayed).trust(trust);
        client.signer(scene.signer()).max_price(tokens(1)).build()
    }

    fn order(&self) -> Order {
        let input = |(name, input): (&String, &Input)| {
            let value = match input {
                Input::Text(text) => Value::from(text.as_str()),
                Input::File(path) => Value::png(fs::read(repository(path)).unwrap()),
            };
            (name.clone(), value)
        };
        let mut inputs: Values = self.inputs.iter().map(input).collect();
        match self.call.as_str() {
            "chat" => drop(inputs.insert("messages", self.messages.to_string().as_str())),
            "embed" => drop(inputs.insert("text", self.text.as_str())),
            _ => {}
        }
        let mut order = Order::new(&self.model, inputs);
        if let Some(limit) = self.max_price {
            order = order.max_price(limit);
        }
        if let Some(seconds) = self.timeout {
            order = order.timeout(Duration::from_secs(seconds));
        }
        order
    }

    async fn run(&self, scene: &Scene) -> Result<Json, ClientError> {
        if self.call == "verify" {
            for line in fs::read_to_string(repository(self.receipts.as_ref().unwrap())).unwrap().lines() {
                let vector: Json = serde_json::from_str(line).unwrap();
                let receipt = Receipt::from_json(vector["receipt"].to_string().as_bytes());
                let verified = receipt.and_then(|receipt| receipt.verify_self_consistent().map(drop));
                assert_eq!(Json::from(verified.is_ok()), vector["valid"], "{}", vector["what"]);
            }
            return Ok(json!({}));
        }
        let client = self.client(scene).await?;
        match self.call.as_str() {
            "connect" => return Ok(json!({})),
            "models" => {
                let mut names: Vec<_> = client.models().await?.iter().map(|info| info.model.manifest().name.clone()).collect();
                names.sort();
                return Ok(json!({ "models": names }));
            }
            "infer" => {
                let answer = client.submit(self.order()).await?.finish().await?;
                return Ok(given(&answer));
            }
            "embed" => {
                let answer = client.submit(self.order()).await?.finish().await?;
                let Some(Value::Tensor(tensor)) = answer.output.get("embedding") else { panic!("no embedding") };
                return Ok(json!({ "embedding": tensor.to_f32().unwrap() }));
            }
            _ => {}
        }
        let mut events = client.submit(self.order()).await?.events().await?;
        let (mut parts, mut restarts, mut text) = (0, 0, String::new());
        while let Some(event) = events.next().await {
            match event? {
                InferenceEvent::Part(part) => {
                    parts += 1;
                    text.push_str(part.values.text("text").unwrap_or_default());
                    if self.after == Some(parts) {
                        return Ok(json!({}));
                    }
                }
                InferenceEvent::Finished(answer) => {
                    let mut gives = given(&answer);
                    assert_eq!(gives["text"], text);
                    (gives["parts"], gives["restarts"]) = (parts.into(), restarts.into());
                    return Ok(gives);
                }
                InferenceEvent::Restarted => (parts, restarts, text) = (0, restarts + 1, String::new()),
                event => panic!("{event:?}"),
            }
        }
        panic!("no end")
    }

    async fn check(&self, scene: &Scene) {
        match (self.run(scene).await, &self.fails) {
            (Ok(given), None) => {
                for (name, expected) in self.gives.iter().filter_map(Json::as_object).flatten() {
                    let same = match (name.as_str(), expected) {
                        ("embedding", Json::Array(numbers)) => {
                            let given = given[name].as_array().unwrap();
                            given.iter().map(Json::as_f64).eq(numbers.iter().map(Json::as_f64))
                        }
                        ("output", Json::Object(outputs)) => outputs.iter().all(|(output, value)| given[name][output] == *value),
                        _ => given[name] == *expected,
                    };
                    assert!(same, "{}: {name}: {} is not {expected}", self.name, given[name]);
                }
            }
            (Err(error), Some(fails)) => {
                assert_eq!(json!({ "kind": kind(&error), "paid": error.is_paid() }), *fails, "{}: {error}", self.name);
            }
            (ended, _) => panic!("{}: {ended:?}", self.name),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scenario_in_rust() {
    let scene = Arc::new(Scene::start().await);
    for group in read().groups {
        let checks = group.into_iter().map(|call| {
            let scene = scene.clone();
            tokio::spawn(async move { call.check(&scene).await })
        });
        for checked in join_all(checks).await {
            checked.unwrap();
        }
    }
    scene.is_idle().await;
}
