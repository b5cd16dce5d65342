//! What of the interpreter's open files a fork keeps.

use std::os::fd::RawFd;

use pyo3::prelude::*;
use rustix::fs::FileType;

/// As many as a worker may have open.
const MOST: RawFd = 1 << 12;
/// The part of a descriptor's flags that says whether it is written to; zero is reading only.
const ACCESS: i32 = 0o3;

/// Closes whatever could carry something from one request to another, or to the node: pipes, sockets, and files that are open for writing.
/// A module may have opened or duplicated them while it was loaded; `own` are the fork's.
pub(crate) fn close_channels(py: Python<'_>, own: &[RawFd]) -> PyResult<()> {
    let (os, fcntl) = (py.import("os")?, py.import("fcntl")?);
    let get_flags = fcntl.getattr("F_GETFL")?;
    // Standard input, output and errors lead nowhere, or to the node's log.
    for descriptor in (3..MOST).filter(|descriptor| !own.contains(descriptor)) {
        // It fails when there is none of this number.
        let Ok(stat) = os.call_method1("fstat", (descriptor,)) else { continue };
        let mode: u32 = stat.getattr("st_mode")?.extract()?;
        let flags: i32 = fcntl.call_method1("fcntl", (descriptor, &get_flags))?.extract()?;
        let carries = match FileType::from_raw_mode(mode) {
            FileType::Fifo | FileType::Socket => true,
            FileType::RegularFile => flags & ACCESS != 0,
            _ => false,
        };
        if carries {
            os.call_method1("close", (descriptor,))?;
        }
    }
    Ok(())
}
