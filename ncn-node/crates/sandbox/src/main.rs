//! `ncn-sandbox`: starts one program confined by every layer that Linux has, and ends with it.
//!
//! Three processes, each the parent of the next:
//!
//! 1. `guard` is what the caller started. It prepares what needs privileges, gives them up, has birdcage make the namespaces, and
//!    waits: it ends everything when the caller is gone.
//! 2. birdcage's first process, within them: in a root with nothing in it but what was granted. All others end with it.
//! 3. `inner` is this program again. It takes the remaining layers upon itself and becomes the program. Before that it leaves a
//!    `watch` behind, which the program cannot touch, and which ends everything when the guard is gone.

#[cfg(target_os = "linux")]
mod check;
#[cfg(target_os = "linux")]
mod guard;
#[cfg(target_os = "linux")]
mod inner;
#[cfg(target_os = "linux")]
mod reach;
#[cfg(target_os = "linux")]
mod stage;
#[cfg(target_os = "linux")]
mod system;

use std::process::ExitCode;

#[cfg(target_os = "linux")]
fn main() -> ExitCode {
    use ncn_confine::{Launch, Layer, Missing};

    /// The exit status when the program could not be started.
    const FAILED: u8 = 126;

    let mut arguments = std::env::args_os().skip(1);
    let launch = |line: &mut dyn Iterator<Item = std::ffi::OsString>| {
        Launch::parse(line)
            .map_err(|problem| Missing::new(Layer::Program, format!("{problem}\nusage: ncn-sandbox {}", Launch::USAGE)))
    };
    let mut first = arguments.next();
    if first.as_deref() == Some(check::ARGUMENT.as_ref()) {
        return if check::run(&check::launch(arguments.next())).is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let done = if first.as_deref() == Some(inner::ARGUMENT.as_ref()) {
        let guard = arguments.next();
        launch(&mut arguments).and_then(|launch| Err(inner::run(&launch, guard.as_deref())))
    } else {
        launch(&mut first.take().into_iter().chain(arguments)).and_then(|launch| guard::run(&launch))
    };
    match done {
        Ok(status) => ExitCode::from(status),
        Err(missing) => {
            system::say(&missing);
            ExitCode::from(FAILED)
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn main() -> ExitCode {
    ExitCode::FAILURE
}
