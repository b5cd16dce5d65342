//! Tries each layer by itself, in a child that ends with it.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    path::PathBuf,
};

use libc::c_int;
use ncn_confine::{Launch, Layer, Missing};
use rustix::{
    pipe::{PipeFlags, pipe_with},
    process::{WaitOptions, getegid, geteuid, getpid, waitpid},
    stdio::dup2_stdout,
};

use crate::{guard, stage, system};

/// The argument that asks for it: a line for each layer, its name if it can be had, and otherwise why not.
pub(crate) const ARGUMENT: &str = "--check";

const ALONE: [(Layer, c_int); 7] = [
    (Layer::UserNamespace, 0),
    (Layer::PidNamespace, libc::CLONE_NEWPID),
    (Layer::MountNamespace, libc::CLONE_NEWNS),
    (Layer::NetworkNamespace, libc::CLONE_NEWNET),
    (Layer::IpcNamespace, libc::CLONE_NEWIPC),
    (Layer::UtsNamespace, libc::CLONE_NEWUTS),
    (Layer::CgroupNamespace, libc::CLONE_NEWCGROUP),
];

/// Says for each layer whether it can be had. `launch` is for its work directory, limits and user.
pub(crate) fn run(launch: &Launch) -> io::Result<()> {
    let mut said = io::stdout().lock();
    let mut say = |layer: Layer, tried: Result<(), Missing>| match tried {
        Ok(()) => writeln!(said, "{layer}"),
        Err(other) if other.layer != layer => writeln!(said, "{}", Missing::new(layer, other)),
        Err(missing) => writeln!(said, "{missing}"),
    };
    let lifeline = rustix::process::pidfd_open(getpid(), rustix::process::PidfdFlags::empty());
    say(Layer::Lifeline, lifeline.map(|_| ()).map_err(|error| Missing::new(Layer::Lifeline, error)))?;
    // Each as the user that the program would be.
    let user = if geteuid().is_root() { launch.user.unwrap_or(stage::NOBODY) } else { geteuid().as_raw() };
    let group = if geteuid().is_root() { user } else { getegid().as_raw() };
    let become_user = || if geteuid().is_root() { stage::become_other(user) } else { Ok(()) };
    let other = in_child(0, Layer::User, become_user);
    let can_become = other.is_ok();
    say(Layer::User, other)?;
    for (layer, namespace) in ALONE {
        let apart = || {
            // Who cannot become another is told so once, and the rest as who they are.
            if can_become {
                become_user()?;
            }
            system::unshare(libc::CLONE_NEWUSER).map_err(missing(layer))?;
            stage::map_to_itself((user, group)).map_err(missing(layer))?;
            system::unshare(namespace).map_err(missing(layer))
        };
        say(layer, in_child(0, layer, apart))?;
    }
    for (layer, writable) in [(Layer::WritableSpace, Some(1 << 20)), (Layer::Root, None)] {
        let mut launch = launch.clone();
        launch.limits.writable_bytes = writable;
        let whole = || {
            let nothing = File::options().write(true).open("/dev/null").map_err(missing(layer))?;
            dup2_stdout(nothing).map_err(|error| Missing::new(layer, error))?;
            let status = guard::run(&launch)?;
            if status == 0 { Ok(()) } else { Err(Missing::new(layer, "the namespaces could not be set up")) }
        };
        say(layer, in_child(0, layer, whole))?;
    }
    for layer in [Layer::Landlock, Layer::Seccomp, Layer::NoNewPrivileges, Layer::Limits] {
        say(layer, in_child(0, layer, || ncn_confine::check(layer, launch)))?;
    }
    Ok(())
}

fn missing(layer: Layer) -> impl Fn(io::Error) -> Missing {
    move |error| Missing::new(layer, error)
}

/// Does something in a child in such namespaces.
fn in_child(namespaces: c_int, layer: Layer, act: impl FnOnce() -> Result<(), Missing>) -> Result<(), Missing> {
    let failed = missing(layer);
    let (problem, said) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| failed(error.into()))?;
    let Some(child) = system::fork(namespaces).map_err(&failed)? else {
        drop(problem);
        let done = act();
        if let Err(missing) = &done {
            let _ = write!(File::from(said), "{missing}");
        }
        std::process::exit(i32::from(done.is_err()));
    };
    drop(said);
    let mut line = String::new();
    File::from(problem).read_to_string(&mut line).map_err(&failed)?;
    let status = waitpid(Some(child), WaitOptions::empty()).map_err(|error| failed(error.into()))?;
    if status.is_some_and(|(_, status)| status.exit_status() == Some(0)) {
        return Ok(());
    }
    Err(line.parse().unwrap_or_else(|()| Missing::new(layer, format!("it was ended {line}"))))
}

/// What is checked: a command line that is one otherwise.
pub(crate) fn launch(work: Option<std::ffi::OsString>) -> Launch {
    let mut launch = Launch { report: true, ..Launch::default() };
    launch.grants.work_directory = work.map_or_else(std::env::temp_dir, PathBuf::from);
    launch
}
