//! What the system has no safe interface for.

#![allow(unsafe_code, reason = "system calls that make processes, or change who a process is")]

use std::{
    ffi::{CString, c_int},
    fmt, fs,
    io::{self, Write as _},
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, IntoRawFd as _, OwnedFd},
};

use rustix::process::{DumpableBehavior, Pid, WaitOptions, set_dumpable_behavior, waitpid};

/// Says something on standard error, if anybody listens.
pub(crate) fn say(what: &dyn fmt::Display) {
    let _ = writeln!(io::stderr(), "ncn-sandbox: {what}");
}

/// Makes a child in namespaces of its own; `None` in the child.
pub(crate) fn fork(namespaces: c_int) -> io::Result<Option<Pid>> {
    let flags = libc::c_long::from(namespaces | libc::SIGCHLD);
    // SAFETY: without CLONE_VM and a stack this is fork(2): the child goes on with a copy of everything, in this only thread.
    let child = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match i32::try_from(child) {
        Ok(0) => Ok(None),
        Ok(child) if child > 0 => Ok(Pid::from_raw(child)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Leaves namespaces for new ones.
pub(crate) fn unshare(namespaces: c_int) -> io::Result<()> {
    // SAFETY: no memory is passed, and this process has only one thread.
    done(unsafe { libc::unshare(namespaces) })
}

/// Takes charge of a file that was open when this program started.
pub(crate) fn carried(number: i32) -> Option<OwnedFd> {
    // SAFETY: only its flags are asked for.
    let open = number > 2 && unsafe { libc::fcntl(number, libc::F_GETFD) } >= 0;
    // SAFETY: it is open, and nothing else in this program knows of it.
    open.then(|| unsafe { OwnedFd::from_raw_fd(number) })
}

/// Ends every process in this PID namespace but its first and this one.
pub(crate) fn end_all() {
    // SAFETY: no memory is passed.
    unsafe { libc::kill(-1, libc::SIGKILL) };
}

fn done(result: c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Becomes a user and group, with no other groups, for good.
pub(crate) fn become_user(user: u32, group: u32) -> io::Result<()> {
    // SAFETY: no memory is passed but an empty list; this process has only one thread, whose identity this is.
    unsafe {
        done(libc::setgroups(0, std::ptr::null()))?;
        done(libc::setresgid(group, group, group))?;
        done(libc::setresuid(user, user, user))
    }
}

/// Does something with a user's and group's rights to files, and without the privileges of root.
pub(crate) fn with_rights_of<T>(user: u32, group: u32, act: impl FnOnce() -> T) -> T {
    let switch = |user, group| {
        // SAFETY: no memory is passed; this process has only one thread, whose rights these are.
        unsafe {
            libc::setfsgid(group);
            libc::setfsuid(user);
        }
    };
    switch(user, group);
    let result = act();
    switch(0, 0);
    result
}

/// Shows the files below a mount as owned by others, as a user namespace maps their owners.
pub(crate) fn map_owners(mount: BorrowedFd<'_>, namespace: BorrowedFd<'_>) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::try_from(namespace.as_raw_fd()).unwrap_or(u64::MAX),
    };
    let empty = CString::default();
    let flags = libc::AT_EMPTY_PATH.cast_unsigned();
    // SAFETY: path and attributes live until the call returns, and the size given is the attributes'.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            empty.as_ptr(),
            flags,
            &raw const attributes,
            size_of_val(&attributes),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A user namespace that maps one owner and group to this user and its group.
pub(crate) fn mapping(owner: (u32, u32), user: u32) -> io::Result<OwnedFd> {
    // It shares this process's open files, and leaves one behind.
    let Some(child) = fork(libc::CLONE_FILES)? else {
        let opened = || {
            become_user(user, user)?;
            set_dumpable_behavior(DumpableBehavior::Dumpable)?;
            unshare(libc::CLONE_NEWUSER)?;
            fs::write("/proc/self/uid_map", format!("{} {user} 1", owner.0))?;
            fs::write("/proc/self/setgroups", "deny")?;
            fs::write("/proc/self/gid_map", format!("{} {user} 1", owner.1))?;
            io::Result::Ok(fs::File::open("/proc/self/ns/user")?.into_raw_fd())
        };
        std::process::exit(opened().unwrap_or(0));
    };
    let status = waitpid(Some(child), WaitOptions::empty())?.and_then(|(_, status)| status.exit_status());
    match status {
        // SAFETY: the child has opened this file for this process, and nothing else knows of it.
        Some(file) if file > 2 => Ok(unsafe { OwnedFd::from_raw_fd(file) }),
        _ => Err(io::Error::other("its owner cannot be mapped: this user may make no user namespace")),
    }
}

/// Has every file but standard input, output and error closed when this process becomes another program.
pub(crate) fn close_on_exec() -> io::Result<()> {
    // SAFETY: only flags are changed; no file is closed while this program runs.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
