//! The innermost process: it takes the remaining layers upon itself and becomes the program.

use std::{ffi::OsStr, fs, os::fd::OwnedFd, path::Path};

use ncn_confine::{Launch, Layer, Missing};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    process::setsid,
};

use crate::{stage, system};

/// The argument that makes this program the innermost process. The guard's file follows it.
pub(crate) const ARGUMENT: &str = "inner";
/// How readily the kernel ends the program when the machine is out of memory: before anything else.
const FIRST_TO_GO: &str = "1000";

/// Returns only the reason when it could not become the program.
pub(crate) fn run(launch: &Launch, guard: Option<&OsStr>) -> Missing {
    leave_watch(guard).map_or_else(|missing| missing, |()| ncn_confine::run(launch, true))
}

fn leave_watch(guard: Option<&OsStr>) -> Result<(), Missing> {
    let guard = guard.and_then(OsStr::to_str).and_then(|guard| guard.parse().ok());
    let guard = guard.and_then(system::carried).ok_or_else(|| Missing::new(Layer::Lifeline, "the guard's file is missing"))?;
    // Whatever was open outside stays there.
    system::close_on_exec().map_err(|error| Missing::new(Layer::MountNamespace, error))?;
    // Not yet confined, and so beyond the program's reach: Landlock lets it signal and trace only what is confined with it.
    if system::fork(0).map_err(|error| Missing::new(Layer::Lifeline, error))?.is_none() {
        watch(&guard);
    }
    drop(guard);
    let missing = |error: Errno| Missing::new(Layer::PidNamespace, error);
    // A session of its own has no terminal to command.
    setsid().map_err(missing)?;
    stage::link_system().map_err(|error| Missing::new(Layer::Root, error))?;
    // Where the kernel knows of no such choice, nothing is lost.
    let _ = fs::write(Path::new("/proc/self/oom_score_adj"), FIRST_TO_GO);
    Ok(())
}

/// Waits for the guard's end and ends everything in this PID namespace. It ends itself with the namespace's first process.
fn watch(guard: &OwnedFd) -> ! {
    while poll(&mut [PollFd::new(guard, PollFlags::IN)], None) == Err(Errno::INTR) {}
    system::end_all();
    std::process::exit(0);
}
