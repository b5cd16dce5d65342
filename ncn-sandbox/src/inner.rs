//! Within the namespaces: a process that takes the remaining layers upon itself and becomes the program, and one that watches over it.

use std::{ffi::OsStr, fs, os::fd::OwnedFd, path::Path};

use ncn_confine::{Launch, Layer, Missing};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::{Errno, write},
    process::{Pid, PidfdFlags, WaitOptions, WaitStatus, pidfd_open, setsid, waitpid},
};

use crate::{stage, system};

/// The argument that makes this program the one within the namespaces. The guard's file and the one to report to follow it.
pub(crate) const ARGUMENT: &str = "inner";
/// How readily the kernel ends the program when the machine is out of memory: before anything else.
const FIRST_TO_GO: &str = "1000";
/// A program that did not end by itself is said to have ended with this and the signal's number.
const SIGNALLED: i32 = 128;

/// Returns, in the process that was to become the program, only the reason when it could not.
pub(crate) fn run(launch: &Launch, carried: [Option<&OsStr>; 2]) -> Missing {
    let file = |number: Option<&OsStr>| number.and_then(OsStr::to_str)?.parse().ok().and_then(system::carried);
    let [Some(guard), Some(status)] = carried.map(file) else {
        return Missing::new(Layer::Lifeline, "the guard's files are missing");
    };
    // Whatever was open outside stays there.
    if let Err(error) = system::close_on_exec() {
        return Missing::new(Layer::MountNamespace, error);
    }
    match system::fork(0) {
        Ok(None) => {
            drop((guard, status));
            prepare().map_or_else(|missing| missing, |()| ncn_confine::run(launch, true))
        }
        // Not confined by Landlock, and so beyond the program's reach, which may signal and trace only what is confined with it.
        Ok(Some(program)) => watch(program, &guard, &status),
        Err(error) => Missing::new(Layer::Lifeline, error),
    }
}

fn prepare() -> Result<(), Missing> {
    // A session of its own has no terminal to command.
    setsid().map_err(|error| Missing::new(Layer::PidNamespace, error))?;
    stage::link_system().map_err(|error| Missing::new(Layer::Root, error))?;
    // Where the kernel knows of no such choice, nothing is lost.
    let _ = fs::write(Path::new("/proc/self/oom_score_adj"), FIRST_TO_GO);
    Ok(())
}

/// Tells the guard how the program has ended; when the guard ends first, ends everything in this PID namespace. Ends itself then, with
/// which the namespace's first process ends, too, and all that is left in there.
fn watch(program: Pid, guard: &OwnedFd, status: &OwnedFd) -> ! {
    let ended = pidfd_open(program, PidfdFlags::empty()).and_then(|ended| {
        loop {
            let mut files = [PollFd::new(&ended, PollFlags::IN), PollFd::new(guard, PollFlags::IN)];
            match poll(&mut files, None) {
                Ok(_) => return Ok(!files[0].revents().is_empty()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
    });
    if ended == Ok(true)
        && let Ok(Some((_, how))) = waitpid(Some(program), WaitOptions::empty())
    {
        // The namespaces take longer to be taken down than to be made; nobody has to wait for that.
        let _ = write(status, &exit_status(how).to_ne_bytes());
    } else {
        system::end_all();
    }
    std::process::exit(0);
}

fn exit_status(how: WaitStatus) -> i32 {
    how.exit_status().or(how.terminating_signal().map(|signal| SIGNALLED + signal)).unwrap_or(1)
}
