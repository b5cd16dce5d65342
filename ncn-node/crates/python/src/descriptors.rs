//! What of the template's open files a fork keeps.

use std::{fs::OpenOptions, io, os::fd::RawFd};

use rustix::{
    fs::{FileType, OFlags},
    stdio::{dup2_stderr, dup2_stdin, dup2_stdout},
};

use crate::system;

/// As many as a worker may have open.
const MOST: RawFd = 1 << 12;

/// Closes whatever could carry something from one request to another, or to the node: all but files that are open for reading only, and
/// devices. A module may have opened or duplicated them while it was loaded; `own` are the fork's. Says which number is the highest that is left.
pub(crate) fn close_channels(own: &[RawFd]) -> io::Result<RawFd> {
    let nothing = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&nothing)?;
    dup2_stdout(&nothing)?;
    dup2_stderr(&nothing)?;
    drop(nothing);
    let mut highest = 2;
    for descriptor in 3..MOST {
        let Some((kind, flags)) = system::describe(descriptor) else { continue };
        let is_harmless = match kind {
            FileType::RegularFile => flags & (OFlags::WRONLY | OFlags::RDWR) == OFlags::empty(),
            FileType::CharacterDevice => true,
            _ => false,
        };
        if is_harmless || own.contains(&descriptor) {
            highest = descriptor;
        } else {
            system::close(descriptor);
        }
    }
    Ok(highest)
}
