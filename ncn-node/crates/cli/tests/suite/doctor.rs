//! `ncn doctor`, as people run it.

use std::process::{Command, Output};

use ncn_executor::sandbox::HELPER_VARIABLE;
use serde_json::Value;

use crate::scene::{helper, ncn};

fn doctor(command: &mut Command) -> (Option<i32>, Value) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let said = String::from_utf8_lossy(&stderr);
    (status.code(), serde_json::from_slice(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout:?} {said}")))
}

/// The names of what a section has, or has not.
fn names(all: &Value, section: &str, ok: bool) -> Vec<String> {
    let items = all[section].as_array().unwrap().iter();
    items.filter(|item| item["ok"] == ok).map(|item| item["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_machine_that_has_every_layer_is_well() {
    let (status, all) = doctor(Command::new(ncn()).args(["doctor", "--json"]).env(HELPER_VARIABLE, helper()));
    assert_eq!((status, &all["level"], &all["strict"]), (Some(0), &"full".into(), &true.into()), "{all}");
    let layers = names(&all, "confinement", true);
    assert_eq!(layers.len(), 16, "the helper and each layer: {layers:?}");
    assert!(!names(&all, "engines", true).is_empty(), "{all}");

    let output = Command::new(ncn()).arg("doctor").env(HELPER_VARIABLE, helper()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.contains("  ok  Landlock\n") && text.ends_with("level: full\n"), "{text}");
}

#[test]
fn without_user_namespaces_it_says_so_and_what_to_do() {
    helper();
    // In a user namespace whose limit can be set without touching the machine's, as a user who is not its root.
    let script = "echo 0 > /proc/sys/user/max_user_namespaces && exec \"$0\" doctor --json";
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-user=1000", "--keep-caps", "sh", "-c", script]).arg(ncn()).env(HELPER_VARIABLE, helper());
    let (status, all) = doctor(&mut command);
    assert_eq!((status, &all["strict"]), (Some(1), &false.into()), "{all}");
    assert_ne!(all["level"], "full");
    let confinement = all["confinement"].as_array().unwrap();
    let missing: Vec<_> = confinement.iter().filter(|item| item["ok"] == false).collect();
    let users = missing.iter().find(|item| item["name"] == "user namespace").expect("it is missing");
    assert!(users["missing"].as_str().is_some_and(|missing| missing.contains("No space left")), "{users}");
    assert!(!missing.is_empty() && missing.iter().all(|item| item["missing"].is_string() && item["remedy"].is_string()), "{all}");
}

#[test]
fn without_the_helper_it_says_how_to_get_it() {
    let mut command = Command::new(ncn());
    let (status, all) = doctor(command.args(["doctor", "--json"]).env(HELPER_VARIABLE, "/nonexistent"));
    assert_eq!((status, &all["level"]), (Some(1), &"reduced".into()), "{all}");
}
