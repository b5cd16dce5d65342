//! Keeps every core busy, so that tests meet a machine that has something else to do.

use std::{
    env, hint, io,
    process::{Child, Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result};

/// One spinning process per core. They end when this is dropped, and when this process ends in any way: the system then closes the pipes
/// that they read from.
pub(crate) struct Busy(Vec<Child>);

impl Busy {
    pub(crate) fn start() -> Result<Self> {
        let program = env::current_exe().context("cannot find this program")?;
        let mut busy = Self(Vec::new());
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            let child = Command::new(&program).arg("spin").stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
            busy.0.push(child.context("cannot start a process that spins")?);
        }
        Ok(busy)
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// How many still spin.
    pub(crate) fn left(&mut self) -> usize {
        self.0.iter_mut().filter_map(|child| child.try_wait().ok()).filter(Option::is_none).count()
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        for child in &mut self.0 {
            drop(child.stdin.take());
            // It fails only when the process has ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Keeps one core busy until standard input ends.
pub(crate) fn spin() -> Result<()> {
    // The process, and this thread with it, ends when `main` returns.
    thread::spawn(|| {
        loop {
            hint::spin_loop();
        }
    });
    io::copy(&mut io::stdin(), &mut io::sink()).context("standard input cannot be read")?;
    Ok(())
}
