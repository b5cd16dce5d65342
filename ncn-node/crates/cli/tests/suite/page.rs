//! The gateway's page, in a browser.

use std::collections::BTreeSet;

use ncn_core::Receipt;
use reqwest::{Method, StatusCode};
use serde_json::{Value as Json, json};

use crate::{
    browser::{Browser, keys},
    cli::Devnet,
    wait::eventually,
};

/// How much every text stands out from what is behind it, at least: WCAG 2.2, 1.4.3.
const CONTRAST: f64 = 4.5;

/// The texts that stand out less, and how much they do.
const FAINT: &str = r"
    const channel = (value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
    const rgb = (color) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1); return [...canvas.getImageData(0, 0, 1, 1).data]; };
    const light = ([r, g, b]) => 0.2126 * channel(r / 255) + 0.7152 * channel(g / 255) + 0.0722 * channel(b / 255);
    const ground = (of) => { for (; of; of = of.parentElement) { const color = rgb(getComputedStyle(of).backgroundColor); if (color[3] === 255) return color; } return [255, 255, 255]; };
    const faint = [];
    for (const of of document.querySelectorAll('body *')) {
      const text = [...of.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
      if (!text || !of.checkVisibility()) continue;
      const [a, b] = [light(rgb(getComputedStyle(of).color)), light(ground(of))].sort((a, b) => b - a);
      const contrast = (a + 0.05) / (b + 0.05);
      if (contrast < arguments_contrast) faint.push(`${of.tagName} ${of.textContent.trim().slice(0, 30)}: ${contrast.toFixed(2)}`);
    }
    return faint;";

async fn faint(browser: &Browser) -> Json {
    browser.run(&FAINT.replace("arguments_contrast", &CONTRAST.to_string())).await
}

/// Presses Tab until something that fits has the focus, and shows that it has.
async fn tab_to(browser: &Browser, expression: &str) {
    for _ in 0..60 {
        browser.press(keys::TAB).await;
        if browser.run(&format!("const e = document.activeElement; return Boolean({expression})")).await == true {
            let outline = browser.run("return getComputedStyle(document.activeElement).outlineStyle").await;
            assert_ne!(outline, "none", "{expression}");
            return;
        }
    }
    panic!("not reached by keyboard: {expression}");
}

#[tokio::test(flavor = "multi_thread")]
async fn people_try_a_model_and_see_its_request_by_keyboard() {
    let directory = tempfile::tempdir().unwrap();
    let devnet = Devnet::start_with(directory.path(), &[]);
    let browser = Browser::open((1200, 1000)).await;
    browser.go(&format!("{}/", devnet.gateway)).await;
    browser.wait_for("document.querySelector('#link').className === 'live'").await;
    browser.wait_for("!document.querySelector('#trial').hidden").await;
    browser.wait_for("document.querySelectorAll('#validators tr').length === 5").await;
    let stakes =
        browser.run("return [...document.querySelectorAll('#validators td:nth-child(2)')].map((e) => e.textContent)").await;
    assert_eq!(stakes, json!(["1,000", "1,000", "1,000", "1,000", "1,000"]));
    let nodes = browser.run("return [...document.querySelectorAll('#nodes td:nth-child(2)')].map((e) => e.textContent)").await;
    assert_eq!(nodes, json!(["digits", "digits"]));

    tab_to(&browser, "e.closest('#form') && e.tagName === 'BUTTON'").await;
    browser.press(keys::ENTER).await;
    browser.wait_for("document.querySelector('#form-output').textContent.includes('label: 7')").await;
    browser.wait_for("document.querySelector('#requests tr')?.textContent.includes('completed')").await;
    browser.wait_for("document.querySelector('#paidOut').textContent === '0.01'").await;
    let delivered = browser.run("return document.querySelector('#steps li:last-child b').textContent").await;
    assert_eq!(delivered, "1");

    tab_to(&browser, "e.closest('#requests')").await;
    browser.press(keys::ENTER).await;
    browser.wait_for("document.querySelector('#detail').open && document.querySelector('#detail pre')").await;
    let receipt = browser.run("return document.querySelector('#detail pre').textContent").await;
    let receipt: Receipt = serde_json::from_str(receipt.as_str().unwrap()).unwrap();
    receipt.verify(&receipt.trust_root).unwrap();
    let said = browser.run("return document.querySelector('#detail dl').textContent").await;
    assert!(said.as_str().unwrap().contains(&receipt.quote.request_id.to_string()), "{said}");
    let steps = browser.run("return document.querySelectorAll('#detail tbody tr').length").await;
    assert_eq!(steps, 9, "the steps that are not the client's");
    browser.press(keys::ESCAPE).await;
    browser.wait_for("!document.querySelector('#detail').open").await;

    let complaints = browser.complaints().await;
    assert!(complaints.is_empty(), "{complaints:?}");
    let loaded = browser.run("return performance.getEntriesByType('resource').map((entry) => new URL(entry.name).origin)").await;
    let origins: BTreeSet<_> = loaded.as_array().unwrap().iter().map(|origin| origin.as_str().unwrap()).collect();
    assert_eq!(origins.into_iter().collect::<Vec<_>>(), [devnet.gateway.trim_end_matches('/')]);

    drop(devnet);
    browser.wait_for("document.querySelector('#link').className === 'lost'").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_is_read_on_a_phone_and_in_the_dark() {
    let directory = tempfile::tempdir().unwrap();
    let devnet = Devnet::start_with(directory.path(), &[]);
    let browser = Browser::open((1200, 1000)).await;
    let mut grounds = BTreeSet::new();
    for theme in ["light", "dark"] {
        browser.prefer("prefers-color-scheme", theme).await;
        for (width, height) in [(360, 740), (1200, 1000)] {
            browser.resize(width, height).await;
            browser.go(&format!("{}/", devnet.gateway)).await;
            browser.wait_for("!document.querySelector('#trial').hidden").await;
            browser.run("document.querySelector('#form button').click()").await;
            browser.wait_for("document.querySelector('#form-state a')").await;
            browser.wait_for("document.querySelector('#requests tr')?.textContent.includes('completed')").await;
            // Tables that are wider than the window scroll, the page does not.
            let wide = browser.run("return document.documentElement.scrollWidth - innerWidth").await;
            assert!(wide.as_i64().unwrap() <= 0, "{theme} {width}: {wide} too wide");
            assert_eq!(faint(&browser).await, json!([]), "{theme} {width}");
            browser.run("document.querySelector('#form-state a').click()").await;
            browser.wait_for("document.querySelector('#detail pre')").await;
            assert_eq!(faint(&browser).await, json!([]), "{theme} {width}, a request");
            let wide = browser.run("const d = document.querySelector('#detail'); return d.scrollWidth - d.clientWidth").await;
            assert!(wide.as_i64().unwrap() <= 0, "{theme} {width}: a request is {wide} too wide");
            browser.run("document.querySelector('#detail').close()").await;
            let picture = format!("{}/page-{theme}-{width}.png", env!("CARGO_TARGET_TMPDIR"));
            browser.picture(picture.as_ref()).await;
            grounds.insert(browser.run("return getComputedStyle(document.body).backgroundColor").await.to_string());
        }
    }
    assert_eq!(grounds.len(), 2, "the dark page is dark: {grounds:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_gives_strangers_nothing_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let devnet = Devnet::start_with(directory.path(), &[]);
    let http = ncn_client::http().unwrap().build().unwrap();
    let url = |path: &str| format!("{}{path}", devnet.gateway.trim_end_matches('/'));
    let offered: Json = http.get(url("/trial")).send().await.unwrap().json().await.unwrap();
    let sample = &offered["models"][0]["inputs"][0]["sample"];
    let wanted = json!({ "model": "digits", "inputs": { "image": sample } }).to_string();
    let refused = [
        // Another site's page, whose name was made to lead here.
        (
            http.post(url("/trial")).header("host", "evil.example").header("content-type", "application/json").body(wanted.clone()),
            403,
        ),
        (http.get(url("/trial")).header("host", "evil.example:50051"), 403),
        (http.get(url("/trial")).header("host", "127.0.0.1.evil.example"), 403),
        // What a page of another site can send without asking.
        (http.post(url("/trial")).header("content-type", "text/plain").body(wanted.clone()), 415),
        (http.post(url("/trial")).header("content-type", "application/json").body("{"), 400),
        (
            http.post(url("/trial"))
                .header("content-type", "application/json")
                .body(json!({ "model": "digits", "inputs": {}, "more": 1 }).to_string()),
            400,
        ),
        (http.request(Method::DELETE, url("/trial")), 405),
        (http.get(url("/overview")).header("host", "evil.example"), 403),
        (http.get(url("/")).header("host", "evil.example"), 403),
        (http.post(url("/overview")), 405),
        (http.get(url("/overview/0x12")), 400),
        (http.get(url(&format!("/overview/0x{}", "00".repeat(32)))), 404),
        (http.get(url("/overview/%3Cscript%3E")), 400),
    ];
    for (request, status) in refused {
        let request = request.build().unwrap();
        let asked = format!("{} {} {:?}", request.method(), request.url(), request.headers());
        let answer = http.execute(request).await.unwrap();
        assert_eq!(answer.status().as_u16(), status, "{asked}");
    }
    let answer = http
        .post(url("/trial"))
        .header("content-type", "application/json")
        .body(json!({ "model": "none", "inputs": {} }).to_string());
    let said = answer.send().await.unwrap().text().await.unwrap();
    assert!(said.contains("failed") && said.contains("digits"), "{said}");
    for path in ["/", "/page.js", "/page.css", "/overview"] {
        let answer = http.get(url(path)).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        let policy = answer.headers()["content-security-policy"].to_str().unwrap().to_owned();
        assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{path}: {policy}");
    }
    // A picture as cameras take it: too large for the model, which says so.
    let large = json!({ "file": { "media_type": "image/png", "data": "AAAA".repeat(1 << 18) } });
    let large = json!({ "model": "digits", "inputs": { "image": large } }).to_string();
    let answer = http.post(url("/trial")).header("content-type", "application/json").body(large).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let said = answer.text().await.unwrap();
    assert!(said.contains("failed") && said.contains("image"), "{said}");
    // A form that is closed before its answer costs nothing more than its request, and the network goes on.
    drop(http.post(url("/trial")).header("content-type", "application/json").body(wanted).send().await.unwrap());
    eventually("the request has its end", async || {
        let overview: Json = http.get(url("/overview")).send().await.unwrap().json().await.unwrap();
        let requests = overview["requests"].as_array().unwrap();
        !requests.is_empty() && requests.iter().all(|request| request["state"]["ended"].is_string())
    })
    .await;
}
