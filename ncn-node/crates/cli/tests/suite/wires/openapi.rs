//! The description of the calls over HTTP: that it is true, by a program that calls a gateway as it says and as it does not, and by what a gateway
//! answers to clients.

use std::process::{Command, Output};

use crate::scene::repository;

use super::*;

/// Runs a program of the environment that `cargo xtask setup` makes.
fn program(name: &str) -> Command {
    let program = repository(&format!("target/schemathesis/bin/{name}"));
    assert!(program.exists(), "{}: is missing: run `cargo xtask setup`", program.display());
    Command::new(program)
}

async fn run(mut command: Command) -> Output {
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_a_program_makes_up_are_answered_as_described() {
    let scene = Scene::new().await;
    let files = tempfile::tempdir().unwrap();
    let mut schemathesis = program("schemathesis");
    schemathesis
        .args(["run", &format!("{}/openapi.json", scene.network.gateway_url()), "--checks", "all", "--continue-on-failure"])
        // A request that is described well may still be signed by nobody; and an access may stand in the URL as well.
        .args(["--exclude-checks", "positive_data_acceptance,missing_required_header"])
        .args(["--max-examples", "30", "--seed", "1", "--no-color", "--warnings", "off"])
        .current_dir(files.path());
    let output = run(schemathesis).await;
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("Tested: 11"), "{said}");
    scene.network.gateway().network().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_clients_and_gateway_say_is_described() {
    let scene = Scene::new().await;
    let submission = scene.submission().await;
    let get = async |path: &str| -> Json { scene.call(Method::GET, path).send().await.unwrap().json().await.unwrap() };
    let transport = HttpTransport::new(&scene.network.gateway_url()).unwrap();
    let quoted = transport.submit(submission.clone()).await.unwrap();
    let quote = quoted.quote.clone().unwrap();
    scene.network.funder().transfer(scene.client.address(), Amount::TOKEN).await.unwrap();
    let transaction = scene.network.ledger(scene.client.clone()).escrow(&quote).await.unwrap();
    let paid = PaymentSubmission::Transaction(transaction);
    transport.confirm_payment(PaymentConfirmation { request_id: quote.request_id, proof: paid }).await.unwrap();
    let access = scene.access(quote.request_id, CapabilityScope::Follow, &scene.client).await;
    in_time("the end", transport.last_update(access.clone())).await.unwrap();
    let output = scene.call(Method::GET, &format!("{INFERENCE}/{}/output", quote.request_id)).bearer_auth(access_text(&access));
    let delivery: Json = output.send().await.unwrap().json().await.unwrap();
    let refused: Json = scene.call(Method::POST, INFERENCE).body("{}").send().await.unwrap().json().await.unwrap();
    let nothing = get("/nowhere").await;

    let transfer = ncn_core::PaymentAuthorization::transfer(&scene.trust, &quote, &scene.client).await.unwrap();
    let (gateway, salt) = (scene.network.gateway_address(), B256::ZERO);
    let terms = ncn_core::ChannelParams { client: scene.client.address(), gateway, salt };
    let voucher = ncn_core::SignedVoucher::sign(terms, &quote, 1, quote.total, &scene.trust, &scene.client).await.unwrap();
    let voucher = ncn_core::PaymentAuthorization::Voucher(voucher);
    let tensor = ncn_core::Tensor::from_f32(vec![1, 2], &[1.0, 2.0]).unwrap();
    let with_tensor =
        Submission { inputs: [("tensor", Value::Tensor(tensor)), ("text", Value::Text("a".into()))].into(), ..submission.clone() };
    let values = json!([
        ["Submission", submission],
        ["Submission", with_tensor],
        ["TaskStatus", quoted],
        ["TaskStatus", get(&format!("{INFERENCE}/{}", quote.request_id)).await],
        ["PaymentSubmission", paid],
        ["PaymentSubmission", PaymentSubmission::Authorization(transfer)],
        ["PaymentSubmission", PaymentSubmission::Authorization(voucher)],
        ["TicketRequest", { "count": 1 }],
        ["Ticket", transport.tickets(1).await.unwrap()[0]],
        ["ModelInfo", get("/api/v1/models").await[0]],
        ["NetworkInfo", get("/api/v1/network").await],
        ["Health", get("/health").await],
        ["CloseChannel", { "gateway": gateway, "salt": salt }],
        ["ChannelClosing", { "settled": quote.total, "signature": submission.request.signature }],
        ["Delivery", delivery],
        ["Problem", refused],
        ["Problem", nothing],
    ]);
    let files = tempfile::tempdir().unwrap();
    let (document, listed) = (files.path().join("openapi.json"), files.path().join("values.json"));
    std::fs::write(&document, get("/openapi.json").await.to_string()).unwrap();
    let script = repository("ncn-node/crates/cli/tests/schemathesis/matches.py");
    let check = async |values: &Json| {
        std::fs::write(&listed, values.to_string()).unwrap();
        let mut python = program("python");
        python.arg(&script).arg(&document).arg(&listed);
        run(python).await
    };
    let output = check(&values).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // The check can fail.
    let mut wrong = values[2][1].clone();
    wrong["quote"]["more"] = json!(1);
    assert!(!check(&json!([["TaskStatus", wrong]])).await.status.success());

    let page = scene.call(Method::GET, "/api").send().await.unwrap();
    assert_eq!(page.headers()["content-type"], "text/html; charset=utf-8");
    let page = page.text().await.unwrap();
    let document = get("/openapi.json").await;
    let names = document["paths"].as_object().unwrap().keys().chain(document["components"]["schemas"].as_object().unwrap().keys());
    for name in names {
        assert!(page.contains(name), "{name}");
    }
    assert!(!page.contains("<script") && !page.contains("http://") && !page.contains("https://"), "nothing is from outside");
}
