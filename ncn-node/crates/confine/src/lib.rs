//! Confines the calling thread, and whatever it starts or becomes, with what an ordinary Linux process can give up for good: access to
//! files and network (Landlock), system calls (seccomp), resources (limits), and the way to new privileges.
//!
//! A process that is to confine another program calls [`confine`] and then becomes that program: [`Launch`] is its command line, and
//! [`run`] all of it. Namespaces are not made here: see the program `ncn-sandbox`, which uses this crate for its innermost stage.

#![cfg(target_os = "linux")]

mod access;
mod calls;
mod clear;
mod launch;
mod layer;
mod limits;
mod report;

use std::{io, os::unix::process::CommandExt as _, process::Command};

pub use access::{HARMLESS, NULL, REQUIRED_LANDLOCK, SYSTEM, landlock, landlock_abi};
pub use clear::clear;
pub use launch::{Grants, Launch, Limits};
pub use layer::{Layer, Missing};
pub use report::{NAMESPACES, Report};

/// What a process of its own is told to do once it is confined, in place of a program: print its [`Report`] and end.
pub const REPORT: &str = "report";

/// Confines the calling thread: every layer, or an error that names the one that is missing. Of a launch that is `partial`, Landlock is applied
/// as far as the kernel has it.
///
/// Limits on resources are the whole process's. `own_users` says that the process is in a user namespace of its own, so that the limit
/// on processes counts only what is confined with it.
pub fn confine(launch: &Launch, own_users: bool) -> Result<(), Missing> {
    limits::apply(&launch.limits, &launch.grants, own_users)?;
    access::apply(&launch.grants, launch.program.as_ref(), !launch.partial)?;
    calls::apply()
}

/// Takes one of the layers of [`confine`] alone upon the calling thread, to see whether it can be had; of other layers it says nothing.
pub fn check(layer: Layer, launch: &Launch) -> Result<(), Missing> {
    match layer {
        Layer::Landlock | Layer::NoNewPrivileges => access::apply(&launch.grants, launch.program.as_ref(), true),
        Layer::Seccomp => calls::apply(),
        Layer::Limits => limits::apply(&launch.limits, &launch.grants, false),
        _ => Ok(()),
    }
}

/// Confines this process and has it become the program of `launch`, or print its [`Report`]. Returns only the reason when that fails.
pub fn run(launch: &Launch, own_users: bool) -> Missing {
    if let Err(missing) = confine(launch, own_users) {
        return missing;
    }
    if launch.report {
        use io::Write as _;
        let said = Report::of_this_process().and_then(|report| io::stdout().write_all(report.to_string().as_bytes()));
        return match said {
            Ok(()) => std::process::exit(0),
            Err(error) => Missing::new(Layer::Program, &error),
        };
    }
    let error = Command::new(&launch.program).args(&launch.arguments).exec();
    Missing::new(Layer::Program, format!("{}: {error}", launch.program.display()))
}
