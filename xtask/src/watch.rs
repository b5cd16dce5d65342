//! Runs programs, passes on what they print, and remembers what of it tells why one failed.

use std::{
    ffi::OsStr,
    io::{self, BufRead as _, BufReader, Read, Write as _},
    path::Path,
    process::{Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError, Sender},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

/// After a program's end, its output is read until nothing comes for so long: a process that it has left behind may have the pipe open
/// for ever.
const QUIET: Duration = Duration::from_secs(10);

enum Line {
    Output(String),
    Error(String),
}

/// Runs a program in a directory, and fails when it does.
pub(crate) fn run<S: AsRef<OsStr>>(program: impl AsRef<OsStr>, arguments: &[S], directory: &Path) -> Result<()> {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(directory);
    watch(command, |_| ())
}

/// Runs a program, shows each line of its standard output to `look`, and fails when the program does: with the first line that tells of an
/// error, or else with the last line.
pub(crate) fn watch(command: Command, mut look: impl FnMut(&str)) -> Result<()> {
    follow(command, |line| match line {
        Line::Output(line) => {
            writeln!(io::stdout(), "{line}")?;
            look(line);
            Ok(())
        }
        Line::Error(line) => Ok(writeln!(io::stderr(), "{line}")?),
    })
}

fn follow(mut command: Command, mut show: impl FnMut(&Line) -> Result<()>) -> Result<()> {
    let program = command.get_program().display().to_string();
    let shown = command.get_args().fold(program.clone(), |shown, argument| format!("{shown} {}", argument.display()));
    let spawned = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = spawned.with_context(|| format!("{program} does not start: is it installed?"))?;
    let (sender, lines) = mpsc::channel();
    // One thread for each pipe: the program may fill either first.
    pass_on(child.stdout.take().context("no output")?, sender.clone(), Line::Output);
    pass_on(child.stderr.take().context("no output")?, sender, Line::Error);
    let (mut first_error, mut last) = (None, String::new());
    loop {
        let line = match lines.recv_timeout(QUIET) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) if child.try_wait()?.is_none() => continue,
            Err(_) => break,
        };
        show(&line)?;
        let (Line::Output(line) | Line::Error(line)) = line;
        if first_error.is_none() && tells_of_an_error(&line) {
            first_error = Some(line.trim().to_owned());
        }
        if !line.trim().is_empty() {
            line.trim().clone_into(&mut last);
        }
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("`{shown}` failed ({status}): {}", first_error.unwrap_or(last));
    }
    Ok(())
}

fn pass_on(from: impl Read + Send + 'static, to: Sender<Line>, kind: fn(String) -> Line) {
    thread::spawn(move || {
        for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
            if to.send(kind(line)).is_err() {
                return;
            }
        }
    });
}

fn tells_of_an_error(line: &str) -> bool {
    let line = line.trim_start();
    is_failed_test(line) || ["error", "Error", "ERROR", "npm error", "Diff in "].iter().any(|start| line.starts_with(start))
}

/// Whether a line is a test program's about a test that failed: Rust's, or forge's.
pub(crate) fn is_failed_test(line: &str) -> bool {
    (line.starts_with("test ") && line.ends_with(" ... FAILED")) || line.trim_start().starts_with("[FAIL")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_failure_is_told_by_its_first_error() {
        for (script, expected) in [
            ("echo fine; echo 'error: the first' >&2; sleep 0.1; echo 'error: the second' >&2; exit 3", "error: the first"),
            ("echo 'test a::b ... FAILED'; exit 101", "test a::b ... FAILED"),
            ("echo one; echo two; exit 1", "two"),
        ] {
            let failed = follow(shell(script), |_| Ok(())).unwrap_err().to_string();
            assert!(failed.starts_with("`sh -c ") && failed.ends_with(expected), "{failed}");
        }
        let missing = follow(Command::new("/nonexistent"), |_| Ok(())).unwrap_err().to_string();
        assert!(missing.contains("is it installed?"), "{missing}");
    }

    #[test]
    fn every_line_is_shown() {
        let (mut output, mut errors) = (Vec::new(), Vec::new());
        let show = |line: &Line| {
            match line {
                Line::Output(line) => output.push(line.clone()),
                Line::Error(line) => errors.push(line.clone()),
            }
            Ok(())
        };
        follow(shell("echo one; echo other >&2; printf '\\377 two'"), show).unwrap();
        assert_eq!((output, errors), (vec!["one".to_owned(), "\u{fffd} two".to_owned()], vec!["other".to_owned()]));
    }
}
