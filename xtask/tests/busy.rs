//! What `cargo xtask test --busy` starts ends with whoever has started it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests fail by panicking")]

use std::{
    fs,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

fn spin(command: &mut Command) -> Child {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}

/// How long a process has used a processor, in the system's ticks; none when it is gone.
fn used(process: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    (fields[0] != "Z").then(|| fields[11].parse().unwrap())
}

#[allow(clippy::disallowed_methods, reason = "no runtime runs this")]
fn until(what: &str, so: impl Fn() -> bool) {
    let started = Instant::now();
    while !so() {
        assert!(started.elapsed() < Duration::from_mins(2), "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn it_spins_until_its_standard_input_ends() {
    let mut spinning = spin(Command::new(env!("CARGO_BIN_EXE_xtask")).arg("spin"));
    let process = spinning.id();
    until("it uses its core", || used(process).is_some_and(|ticks| ticks >= 5));
    drop(spinning.stdin.take());
    assert!(spinning.wait().unwrap().success());
}

#[test]
fn it_ends_with_whoever_is_killed() {
    // A parent that holds the pipe, as the test run does, and is killed without a chance to end anything.
    let script = "import subprocess, sys, time
child = subprocess.Popen([sys.argv[1], 'spin'], stdin=subprocess.PIPE)
print(child.pid, flush=True)
time.sleep(1000)";
    let mut parent = spin(Command::new("python3").args(["-c", script, env!("CARGO_BIN_EXE_xtask")]));
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(parent.stdout.take().unwrap()), &mut line).unwrap();
    let process = line.trim().parse().unwrap();
    until("it uses its core", || used(process).is_some_and(|ticks| ticks >= 5));
    parent.kill().unwrap();
    parent.wait().unwrap();
    until("it ends", || used(process).is_none());
}
