//! The outermost process: it is what the caller started, waits, and ends everything when the caller is gone.

use std::{
    os::fd::{AsRawFd as _, OwnedFd},
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
};

use birdcage::{
    Birdcage, Exception, Sandbox as _,
    process::{Child, Command},
};
use ncn_confine::{HARMLESS, Launch, Layer, Missing, NULL};
use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{Mode, OFlags},
    io::{Errno, FdFlags, fcntl_setfd},
    process::{DumpableBehavior, Pid, PidfdFlags, Signal, getpid, getppid, pidfd_open, pidfd_send_signal, set_dumpable_behavior},
};

use crate::{inner, reach, stage};

/// Starts the program and waits for its end; the exit status is the program's, or 128 and the number of the signal that ended it.
pub(crate) fn run(launch: &Launch) -> Result<u8, Missing> {
    let parent = parent(launch)?;
    let guard = pidfd_open(getpid(), PidfdFlags::empty()).map_err(lifeline)?;
    stage::prepare(launch)?;
    let mut child = cage(launch, &guard)?;
    // From here on, nobody else of this user needs to look into this process.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(|error| Missing::new(Layer::User, error))?;
    outlive(&child, &parent)?;
    let ended = child.wait().map_err(|error| Missing::new(Layer::Lifeline, error))?;
    let signalled = ended.signal().map(|signal| signal.saturating_add(128));
    Ok(ended.code().or(signalled).and_then(|status| u8::try_from(status).ok()).unwrap_or(1))
}

fn lifeline(error: Errno) -> Missing {
    Missing::new(Layer::Lifeline, error)
}

/// Whoever started this, if that is still who it should be.
fn parent(launch: &Launch) -> Result<OwnedFd, Missing> {
    let gone = || Missing::new(Layer::Lifeline, "whoever started this is gone already");
    let parent = getppid().ok_or_else(gone)?;
    let file = pidfd_open(parent, PidfdFlags::empty()).map_err(lifeline)?;
    // It may have ended, and its number been given to another, before it was opened; then this process has another parent by now.
    let expected = launch.parent.map_or(Some(parent), |id| i32::try_from(id).ok().and_then(Pid::from_raw));
    if getppid() == expected { Ok(file) } else { Err(gone()) }
}

/// Waits until the child has ended, and ends it when the parent has.
fn outlive(child: &Child, parent: &OwnedFd) -> Result<(), Missing> {
    let child = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or_else(|| lifeline(Errno::SRCH))?;
    let child = pidfd_open(child, PidfdFlags::empty()).map_err(lifeline)?;
    loop {
        let mut ends = [PollFd::new(&child, PollFlags::IN), PollFd::new(parent, PollFlags::IN)];
        match poll(&mut ends, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(lifeline(error)),
        }
        let [child_end, parent_end] = ends;
        if !child_end.revents().is_empty() {
            return Ok(());
        }
        if !parent_end.revents().is_empty() {
            // It is the first of its PID namespace: all others in there end with it.
            let _ = pidfd_send_signal(&child, Signal::KILL);
        }
    }
}

/// Has birdcage start the innermost process, in namespaces with nothing in them but what is granted.
fn cage(launch: &Launch, guard: &OwnedFd) -> Result<Child, Missing> {
    let grants = &launch.grants;
    let mut cage = Birdcage::new();
    let mut except = |exception, path: &Path| {
        let excepted = cage.add_exception(exception).map(|_| ());
        excepted.map_err(|error| Missing::new(Layer::Program, format!("{}: {error}", path.display())))
    };
    let system: Vec<&Path> = stage::system().collect();
    for path in system.into_iter().chain(grants.executable.iter().map(PathBuf::as_path)) {
        except(Exception::ExecuteAndRead(path.into()), path)?;
    }
    // /proc is birdcage's to make. The others help where they are.
    for path in HARMLESS.into_iter().filter(|path| !path.starts_with("/proc")) {
        let _ = except(Exception::Read(path.into()), path.as_ref());
    }
    for path in &grants.readable {
        except(Exception::Read(path.clone()), path)?;
    }
    for path in grants.devices.iter().map(PathBuf::as_path).chain([NULL.as_ref(), grants.work_directory.as_path()]) {
        except(Exception::WriteAndRead(path.into()), path)?;
    }
    if !launch.report && !reach::is_within(&launch.program, &grants.executable) {
        except(Exception::ExecuteAndRead(launch.program.clone()), &launch.program)?;
    }
    for variable in &launch.environment {
        except(Exception::Environment(variable.to_string_lossy().into_owned()), variable.as_ref())?;
    }

    // This program is not in the new root: its file is carried there, open, and so is what tells of the guard's end.
    let carried = |error: Errno| Missing::new(Layer::Program, error);
    let myself = rustix::fs::open("/proc/self/exe", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(carried)?;
    for file in [&myself, guard] {
        fcntl_setfd(file, FdFlags::empty()).map_err(carried)?;
    }
    let mut command = Command::new(format!("/proc/self/fd/{}", myself.as_raw_fd()));
    command.arg(inner::ARGUMENT).arg(guard.as_raw_fd().to_string()).args(launch.to_arguments());
    cage.spawn(command).map_err(|error| Missing::new(Layer::UserNamespace, error))
}
