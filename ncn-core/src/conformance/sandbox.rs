use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    path::PathBuf,
};

use super::{Rules, Verdict, Violation};
use crate::{Confinement, Policy, ResourceLimits, Sandbox, SandboxCommand, SandboxError};

/// What the suite for [`Sandbox`] needs.
#[derive(Clone, Debug)]
pub struct SandboxFixture {
    /// A POSIX shell.
    pub shell: PathBuf,
    /// An empty directory.
    pub work_directory: PathBuf,
}

impl SandboxFixture {
    /// Runs a script to its end, giving it `input`; returns its status and what it printed.
    fn run(&self, sandbox: &dyn Sandbox, script: &str, input: &str) -> Result<(bool, String), Violation> {
        let rule = "a process starts";
        let broken = |what: String| Violation { rule, what };
        let mut child = sandbox.start(&self.command(script), &self.policy(Confinement::None)).map_err(|e| broken(e.to_string()))?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let (Some(mut stdin), Some(mut stdout)) = (stdin, stdout) else {
            return Err(Violation { rule: "standard input and output are pipes", what: "they are not".into() });
        };
        // A process that does not read its input closes the pipe: that is its right.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        let mut printed = String::new();
        stdout.read_to_string(&mut printed).map_err(|error| broken(error.to_string()))?;
        let status = child.wait().map_err(|error| broken(error.to_string()))?;
        Ok((status.success(), printed))
    }

    fn command(&self, script: &str) -> SandboxCommand {
        SandboxCommand {
            program: self.shell.clone(),
            arguments: vec!["-c".into(), script.into()],
            environment: BTreeMap::from([("GIVEN".into(), "yes".into())]),
        }
    }

    fn policy(&self, at_least: Confinement) -> Policy {
        // What is written stays, for the suite to see.
        let limits = ResourceLimits { writable_bytes: None, ..ResourceLimits::default() };
        Policy { limits, at_least, ..Policy::new(&self.work_directory) }
    }
}

/// Runs the suite for [`Sandbox`].
pub fn sandbox(sandbox: &dyn Sandbox, fixture: &SandboxFixture) -> Verdict {
    let mut rules = Rules::default();
    let (done, printed) = fixture.run(sandbox, "read line; echo \"got $line\"", "hello\n")?;
    rules.check("a process reads and writes", done && printed == "got hello\n", printed)?;
    let (done, _) = fixture.run(sandbox, "exit 3", "")?;
    rules.check("a failure is seen", !done, ())?;

    let (_, printed) = fixture.run(sandbox, "echo \"$GIVEN/$HOME/$CARGO_HOME/$RUSTUP_HOME/$USER\"", "")?;
    rules.check("the environment is the command's and no more", printed == "yes////\n", printed)?;
    let (done, printed) = fixture.run(sandbox, "pwd -P && echo written > here && cat here", "")?;
    rules.check("it starts in the work directory and can write there", done && printed.ends_with("written\n"), printed)?;
    let written = fixture.work_directory.join("here").exists();
    rules.check("the work directory is the caller's", written, ())?;
    // `ps` may be missing: the shell's own /proc entry names its process group (the fifth field).
    let (_, printed) = fixture.run(sandbox, "read -r stat < /proc/self/stat; set -- $stat; echo \"$1 $5\"", "")?;
    let numbers: Vec<_> = printed.split_whitespace().collect();
    rules.check("it leads a process group of its own", numbers.first() == numbers.get(1) && numbers.len() == 2, printed)?;

    let missing = SandboxCommand { program: fixture.work_directory.join("missing"), ..fixture.command("") };
    let refused = sandbox.start(&missing, &fixture.policy(Confinement::None));
    rules.check("a missing program is said so", matches!(refused, Err(SandboxError::Start { .. })), refused.is_ok())?;
    for wanted in [Confinement::None, Confinement::Reduced, Confinement::Full] {
        let started = sandbox.start(&fixture.command("exit 0"), &fixture.policy(wanted));
        let reached = sandbox.confinement();
        let refused = matches!(&started, Err(SandboxError::TooWeak { .. }));
        if let Ok(mut child) = started {
            let _ = child.wait();
        }
        rules.check("less confinement than wanted is refused, and only that", refused == (reached < wanted), (wanted, reached))?;
    }
    Ok(rules.0)
}
