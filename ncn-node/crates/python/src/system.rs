//! What only the system says or does: forks, and whose children there are.

use std::{
    fs, io,
    os::fd::{BorrowedFd, RawFd},
};

use rustix::{
    fs::{FileType, OFlags, fcntl_getfl, fstat},
    io::Errno,
    process::{Pid, WaitOptions, WaitStatus, getpid, waitpid},
};

/// Forks without Python's knowledge. None in the fork.
#[allow(unsafe_code, reason = "Python's own runs what packages have registered, in the process that is to run nothing of theirs")]
pub(crate) fn fork() -> io::Result<Option<Pid>> {
    // SAFETY: this process has one thread, which goes on in the fork as it is, with all that it holds; no lock is held by another.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        process => Ok(Pid::from_raw(process)),
    }
}

/// How many threads this process has, which is a fork and began with one. What the system lists under /proc is that of the worker alone:
/// each number that was given out since is tried.
pub(crate) fn threads() -> io::Result<usize> {
    /// The largest number that there can be.
    const LAST: i32 = 1 << 22;
    let Some(newest) = fork()? else { exit() };
    wait(newest);
    let (first, newest) = (getpid().as_raw_nonzero().get(), newest.as_raw_nonzero().get());
    // They begin anew after the last one.
    let (until, again) = if first <= newest { (newest, 0) } else { (LAST, newest) };
    Ok((first..=until).chain(1..=again).filter(|thread| is_thread(first, *thread)).count())
}

#[allow(unsafe_code, reason = "there is no safe form of it")]
fn is_thread(process: i32, thread: i32) -> bool {
    // SAFETY: signal 0 is none; the call only says whether there is such a thread.
    unsafe { libc::syscall(libc::SYS_tgkill, process, thread, 0) == 0 }
}

/// Ends this process, a fork that has changed nothing and finishes nothing.
#[allow(unsafe_code, reason = "there is no safe form of it")]
fn exit() -> ! {
    // SAFETY: it runs nothing that was registered, and does not return.
    unsafe { libc::_exit(0) }
}

/// What an open file is, and how it was opened; none if there is none of this number.
#[allow(unsafe_code, reason = "there is no safe form of it")]
pub(crate) fn describe(descriptor: RawFd) -> Option<(FileType, OFlags)> {
    // SAFETY: it is not -1, and is only asked about: where nothing is open, the system says so.
    let descriptor = unsafe { BorrowedFd::borrow_raw(descriptor) };
    Some((FileType::from_raw_mode(fstat(descriptor).ok()?.st_mode), fcntl_getfl(descriptor).ok()?))
}

/// Closes an open file that nobody here uses any more: what the package has opened, in a fork of its process.
#[allow(unsafe_code, reason = "there is no safe form of it")]
pub(crate) fn close(descriptor: RawFd) {
    // SAFETY: the caller has left out those that this program uses.
    unsafe { libc::close(descriptor) };
}

/// Waits for the end of a child; none if it is no child.
pub(crate) fn wait(child: Pid) -> Option<WaitStatus> {
    loop {
        match waitpid(Some(child), WaitOptions::empty()) {
            Err(Errno::INTR) => {}
            ended => break ended.ok().flatten().map(|(_, status)| status),
        }
    }
}

/// The children of this process, which has one thread; those that have ended, too, until they are waited for.
pub(crate) fn children() -> io::Result<Vec<Pid>> {
    let process = getpid().as_raw_nonzero();
    let listed = fs::read_to_string(format!("/proc/self/task/{process}/children"))?;
    Ok(listed.split_ascii_whitespace().filter_map(|child| Pid::from_raw(child.parse().ok()?)).collect())
}
