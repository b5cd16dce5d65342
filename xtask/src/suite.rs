//! The steps of a test run: each is done whatever became of the others, and all that failed is told at the end.

use std::{
    io::Write as _,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// What test programs reported.
#[derive(Default)]
pub(crate) struct Count {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
}

struct Step {
    name: &'static str,
    took: Duration,
    end: End,
}

enum End {
    Good,
    Failed(String),
    /// Not done, since it cannot be done without this step.
    Needs(&'static str),
}

#[derive(Default)]
pub(crate) struct Suite {
    steps: Vec<Step>,
    pub(crate) count: Count,
}

impl Suite {
    /// Does a step that needs no other.
    pub(crate) fn step(&mut self, name: &'static str, check: impl FnOnce(&mut Count) -> Result<()>) -> Result<()> {
        say(&format!("\n== {name}"))?;
        let (started, before) = (Instant::now(), self.count.failed);
        let end = match check(&mut self.count) {
            Ok(()) => End::Good,
            Err(error) => {
                // The totals never say that nothing failed when something did.
                self.count.failed += u64::from(self.count.failed == before);
                End::Failed(format!("{error:#}"))
            }
        };
        let (took, how) = (started.elapsed(), if matches!(end, End::Good) { "" } else { ", FAILED" });
        self.steps.push(Step { name, took, end });
        say(&format!("== {name}: {:.1} s{how}", took.as_secs_f64()))
    }

    /// Does a step that cannot be done unless another was done well.
    pub(crate) fn step_after(
        &mut self,
        needed: &'static str,
        name: &'static str,
        check: impl FnOnce(&mut Count) -> Result<()>,
    ) -> Result<()> {
        if self.steps.iter().any(|step| step.name == needed && matches!(step.end, End::Good)) {
            return self.step(name, check);
        }
        self.steps.push(Step { name, took: Duration::ZERO, end: End::Needs(needed) });
        say(&format!("\n== {name}: not done: needs `{needed}`"))
    }

    /// Whether every step was done well.
    pub(crate) fn is_good(&self) -> bool {
        self.steps.iter().all(|step| matches!(step.end, End::Good))
    }

    /// Times, failures and totals.
    pub(crate) fn report(&self, took: Duration, conditions: &str) -> String {
        let time = |took: Duration, what: &str| format!("{:>8.1} s  {what}", took.as_secs_f64());
        let mut lines = vec!["\n== times".to_owned()];
        lines.extend(self.steps.iter().map(|step| time(step.took, step.name)));
        lines.push(time(took, &format!("altogether{conditions}\n")));
        let failures = self.failures();
        lines.push(match failures.len() {
            0 => "everything holds".into(),
            failed => format!("== {failed} of {} steps failed", self.steps.len()),
        });
        lines.extend(failures);
        // The last line of a run, for people and for tools.
        lines.push(format!("{} passed, {} failed", self.count.passed, self.count.failed));
        lines.join("\n")
    }

    fn failures(&self) -> Vec<String> {
        let failure = |step: &Step| match &step.end {
            End::Good => None,
            End::Failed(error) => Some(format!("{}: {error}", step.name)),
            End::Needs(needed) => Some(format!("{}: not done: needs `{needed}`", step.name)),
        };
        self.steps.iter().filter_map(failure).collect()
    }
}

pub(crate) fn say(text: &str) -> Result<()> {
    Ok(writeln!(std::io::stdout(), "{text}")?)
}

impl Count {
    /// Adds what a line of a test program says: cargo's `test result:` lines, forge's total.
    pub(crate) fn add(&mut self, line: &str) {
        if line.starts_with("test result:") {
            self.passed += number_before(line, " passed");
            self.failed += number_before(line, " failed");
        } else if line.contains("total tests)") {
            self.passed += number_before(line, " tests passed");
            self.failed += number_before(line, " failed");
        }
    }

    /// Fails when nothing was added since there were `before`.
    pub(crate) fn moved_on(&self, before: u64) -> Result<()> {
        if self.passed + self.failed == before {
            bail!("no test was run");
        }
        Ok(())
    }
}

/// The number that stands right before these words.
fn number_before(line: &str, words: &str) -> u64 {
    let digits = |text: &str| {
        let start = text.rfind(|c: char| !c.is_ascii_digit()).map_or(0, |at| at + 1);
        text.get(start..).and_then(|digits| digits.parse().ok())
    };
    // Colours come between the number and the word when a terminal is attached; a pipe has none.
    line.split_once(words).and_then(|(before, _)| digits(before)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_hides_nothing_that_comes_after_it() {
        let mut suite = Suite::default();
        suite.step("set up", |_| bail!("no network")).unwrap();
        suite
            .step("tests", |count| {
                count.add("test result: FAILED. 7 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out; finished in 1.00s");
                bail!("two are bad")
            })
            .unwrap();
        suite.step_after("set up", "needs it", |_| panic!("it cannot be done")).unwrap();
        suite
            .step("last", |count| {
                count.add("Ran 3 test suites: 5 tests passed, 0 failed, 0 skipped (5 total tests)");
                Ok(())
            })
            .unwrap();
        suite.step_after("last", "after the last", |_| Ok(())).unwrap();
        assert!(!suite.is_good());
        // The set-up counts as one, the two tests as what they are.
        let end = "== 3 of 5 steps failed
set up: no network
tests: two are bad
needs it: not done: needs `set up`
12 passed, 3 failed";
        assert!(suite.report(Duration::ZERO, "").ends_with(end), "{}", suite.report(Duration::ZERO, ""));
    }

    #[test]
    fn nothing_failed_when_every_step_was_good() {
        let mut suite = Suite::default();
        suite.step("only", |_| Ok(())).unwrap();
        assert!(suite.is_good() && suite.report(Duration::ZERO, "").ends_with("everything holds\n0 passed, 0 failed"));
        assert!(suite.count.moved_on(0).is_err(), "no test was run");
    }
}
