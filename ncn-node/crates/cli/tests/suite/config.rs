//! Options out of files, as operators write them.

use std::{fs, path::Path, process::Command};

use crate::scene::ncn;

fn run(here: &Path, environment: &[(&str, &str)], arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(ncn());
    command.args(arguments).current_dir(here).env_remove("NCN_RPC").envs(environment.iter().copied());
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn the_example_has_every_option_and_its_defaults_are_those_of_the_program() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    for node in ["gateway", "compute", "registry"] {
        let (status, example, _) = run(here, &[], &["config", "example", node]);
        assert_eq!(status, Some(0));
        let (_, help, _) = run(here, &[], &[node, "--help"]);
        let named = |line: &str| line.trim_start_matches('#').split_once(" = ").map(|(key, _)| key.to_owned());
        let keys: Vec<_> = example.lines().filter(|line| !line.starts_with("# ")).filter_map(named).collect();
        for key in &keys {
            assert!(help.contains(&format!("--{key} ")), "{node} has --{key}");
        }
        let words: Vec<_> = help.lines().filter_map(|line| line.trim().strip_prefix("--")?.split(' ').next()).collect();
        for option in words.into_iter().filter(|option| !matches!(*option, "config" | "check")) {
            assert!(keys.iter().any(|key| key == option), "the example of {node} has {option}");
        }
        // With nothing but what it needs, it is as it was without a file; with its defaults written down, too.
        let is_needed = |line: &&str| !line.starts_with('#') && !line.is_empty();
        let plain: Vec<_> = example.lines().filter(is_needed).collect();
        // Placeholders stand for options without a default, in capitals.
        let is_default = |line: &&str| named(line).is_some() && !line.contains("= \"") || line.contains("127.0.0.1");
        let defaults =
            example.lines().filter(|line| !line.starts_with("# ")).filter_map(|line| line.strip_prefix("#")).filter(is_default);
        let whole: Vec<_> = plain.iter().copied().chain(defaults).collect();
        assert!(whole.len() > plain.len() + 1, "{whole:?}");
        for (name, text) in [("plain.toml", plain), ("whole.toml", whole)] {
            fs::write(here.join(name), text.join("\n")).unwrap();
            let (status, _, error) = run(here, &[], &[node, "--config", name, "--check"]);
            assert_eq!((status, &*error), (Some(0), ""), "{node}: {name}");
        }
    }
}

#[test]
fn what_is_wrong_with_a_file_is_said_by_line_and_all_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    let check = |text: &str| {
        fs::write(here.join("node.toml"), text).unwrap();
        let (status, _, error) = run(here, &[], &["gateway", "--config", "node.toml", "--check"]);
        (status, error)
    };
    let needed = "key = \"key\"\nstate = \"state\"\n";
    let (status, error) = check(&format!(
        "{needed}settle-after = \"soon\"\n\nlisten = [\"127.0.0.1:1\", \"127.0.0.1:99999\"]\nsettle_value = 1\ndrain = true\nsockets = [1]\n[gateway]\n"
    ));
    assert_eq!((status, error.lines().count()), (Some(2), 1), "{error}");
    for said in [
        "line 3: ",
        "'soon'",
        "line 5: ",
        "127.0.0.1:99999",
        "line 6: settle_value: is no option",
        "line 7: drain: has to be a text or a number",
        "line 8: sockets",
        "line 9: gateway: is no option",
    ] {
        assert!(error.contains(said), "{said}: {error}");
    }
    for (text, said) in [
        ("key = ", "line 1: "),
        ("key = \"a\"\nkey = \"b\"\n", "line 2: "),
        ("key = \"a\"\n\n[[x]\n", "line 3: "),
        ("\u{0}", "line 1: "),
        ("config = \"other.toml\"", "line 1: config: is no option"),
        ("key = 2026-11-30", "line 1: key: has to be a text or a number"),
        ("key = {a = 1}", "line 1: key: has to be a text or a number"),
    ] {
        let (status, error) = check(text);
        assert!(status == Some(2) && error.contains("--config node.toml: ") && error.contains(said), "{text}: {error}");
    }
    // It is not the file that lacks something, but both together.
    let (status, error) = check("drain = 1");
    assert!(status == Some(2) && error.contains("--key"), "{error}");
    let (status, error) = check(&format!("{needed}tls-key = \"key.pem\"\n"));
    assert!(status == Some(2) && error.contains("--tls-certificate"), "{error}");
    fs::write(here.join("long.toml"), format!("# {}", "a".repeat(100_000))).unwrap();
    let (status, _, error) = run(here, &[], &["gateway", "--config", "long.toml"]);
    assert!(status == Some(2) && error.contains("64 KiB"), "{error}");
    let (status, _, error) = run(here, &[], &["gateway", "--config", "nowhere.toml"]);
    assert!(status == Some(2) && error.contains("--config nowhere.toml: "), "{error}");
}

#[test]
fn the_command_line_goes_before_the_environment_and_this_before_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    // Which of them counts is seen by what is wrong with it.
    let url = |name: &str| format!("ftp://{name}");
    let said = |file: bool, environment: bool, line: bool| {
        let text = format!("key = \"key\"\nstate = \"state\"\n{}", if file { "url = \"ftp://file\"\n" } else { "" });
        fs::write(here.join("node.toml"), text).unwrap();
        let (of_environment, of_line) = (url("environment"), url("line?x"));
        let environment = if environment { vec![("NCN_GATEWAY_URL", &*of_environment)] } else { Vec::new() };
        let mut arguments = vec!["gateway", "--config", "node.toml", "--check"];
        if line {
            arguments.extend(["--url", &of_line]);
        }
        run(here, &environment, &arguments).0
    };
    assert_eq!(said(false, false, false), Some(0));
    assert_eq!((said(true, false, false), said(false, true, false), said(false, false, true)), (Some(2), Some(2), Some(2)));
    let good = |arguments: &[&str], environment: &[(&str, &str)]| {
        run(here, environment, &[&["gateway", "--config", "node.toml", "--check"], arguments].concat())
    };
    fs::write(here.join("node.toml"), "key = \"key\"\nstate = \"state\"\nurl = \"ftp://file\"\nlisten = [\"127.0.0.1:1\"]\n")
        .unwrap();
    assert_eq!(good(&[], &[("NCN_GATEWAY_URL", "http://environment:1")]).0, Some(0));
    assert_eq!(good(&["--url", "http://line:1"], &[("NCN_GATEWAY_URL", "ftp://environment")]).0, Some(0));
    // A list takes the place of another, and is not added to it.
    fs::write(here.join("node.toml"), "key = \"key\"\nstate = \"state\"\nlisten = [\"0.0.0.0:1\"]\n").unwrap();
    assert_eq!(good(&[], &[]).0, Some(2), "nobody can call it");
    assert_eq!(good(&["--listen", "127.0.0.1:1"], &[]).0, Some(0));
    assert_eq!(good(&[], &[("NCN_GATEWAY_LISTEN", "127.0.0.1:1,127.0.0.1:2")]).0, Some(0));
}
