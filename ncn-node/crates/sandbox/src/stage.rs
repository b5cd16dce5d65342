//! What is prepared with privileges, before birdcage takes over.

use std::{
    ffi::CString,
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use ncn_confine::{Launch, Layer, Missing, SYSTEM};
use rustix::{
    fs::Mode,
    mount::{MountFlags, MountPropagationFlags, mount, mount_change},
    process::{DumpableBehavior, chdir, getegid, geteuid, set_dumpable_behavior, umask},
    system::sethostname,
};

use crate::{reach, system};

/// Whom root becomes unless it is told otherwise: nobody.
pub(crate) const NOBODY: u32 = 65_534;
/// How much bounded writable space has for each file: files take memory besides what is in them.
const BYTES_PER_FILE: u64 = 16 << 10;

/// What every program may execute, as far as birdcage has to know. What is only a link into /usr costs a mount, for nothing but that
/// this program can be started again; linked statically, it needs no libraries for that, and [`link_system`] makes the link.
pub(crate) fn system() -> impl Iterator<Item = &'static Path> {
    SYSTEM.iter().map(Path::new).filter(|path| path.exists() && !(cfg!(linked_statically) && in_usr(path).is_some()))
}

/// In the new root: the links that [`mod@system`] leaves out.
pub(crate) fn link_system() -> io::Result<()> {
    let missing = SYSTEM.iter().map(Path::new).filter(|path| path.symlink_metadata().is_err());
    missing
        .filter_map(|path| Some((path, path.file_name()?)))
        .filter(|(_, name)| Path::new("/usr").join(name).is_dir())
        .try_for_each(|(path, name)| symlink(Path::new("usr").join(name), path))
}

/// The directory of the same name in /usr, when that is what a path leads to.
fn in_usr(path: &Path) -> Option<PathBuf> {
    let same = Path::new("/usr").join(path.file_name()?);
    (path.canonicalize().ok()? == same).then_some(same)
}

/// Makes the namespaces that birdcage does not, has everything that is granted within reach, bounds what can be written, and gives
/// up all privileges.
pub(crate) fn prepare(launch: &Launch) -> Result<(), Missing> {
    let (user, group) = (geteuid(), getegid());
    let root = user.is_root();
    let owner = match (root, launch.user.unwrap_or(NOBODY)) {
        (true, 0) => return Err(Missing::new(Layer::User, "--user: must not be root")),
        (true, other) => (other, other),
        (false, _) => (user.as_raw(), group.as_raw()),
    };
    let bounded = launch.limits.writable_bytes;
    let mut namespaces = libc::CLONE_NEWUTS | libc::CLONE_NEWCGROUP;
    if root || bounded.is_some() {
        namespaces |= libc::CLONE_NEWNS;
    }
    if !root {
        namespaces |= libc::CLONE_NEWUSER;
    }
    system::unshare(namespaces).map_err(|error| Missing::new(Layer::UserNamespace, error))?;
    if root {
        // What is mounted here must not appear in the host's namespace.
        let private = mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC);
        private.map_err(|error| Missing::new(Layer::MountNamespace, error))?;
        // What is made on the way to granted paths is for the user to enter.
        umask(Mode::from_raw_mode(0o022));
        reach::make_reachable(launch, owner.0)?;
    } else {
        map_to_itself(owner).map_err(|error| Missing::new(Layer::UserNamespace, error))?;
    }
    sethostname(b"ncn").map_err(|error| Missing::new(Layer::UtsNamespace, error))?;
    if let Some(bytes) = bounded {
        bound(&launch.grants.work_directory, bytes, owner).map_err(|error| Missing::new(Layer::WritableSpace, error))?;
    }
    if root {
        become_other(owner.0)?;
    }
    chdir(&launch.grants.work_directory).map_err(|error| Missing::new(Layer::WritableSpace, format!("the work directory: {error}")))
}

/// Becomes this user, for good.
pub(crate) fn become_other(user: u32) -> Result<(), Missing> {
    system::become_user(user, user).map_err(|error| Missing::new(Layer::User, error))?;
    // Without this, /proc/self would stay root's, and birdcage could not write to it.
    set_dumpable_behavior(DumpableBehavior::Dumpable).map_err(|error| Missing::new(Layer::User, error))
}

/// In a new user namespace: this process stays who it is.
pub(crate) fn map_to_itself((user, group): (u32, u32)) -> io::Result<()> {
    fs::write("/proc/self/uid_map", format!("{user} {user} 1"))?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/gid_map", format!("{group} {group} 1"))
}

/// Puts a file system of this size in memory over a directory.
fn bound(directory: &Path, bytes: u64, (user, group): (u32, u32)) -> io::Result<()> {
    let files = (bytes / BYTES_PER_FILE).max(16);
    let options = CString::new(format!("size={bytes},nr_inodes={files},mode=0700,uid={user},gid={group}"))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    Ok(mount("tmpfs", directory, "tmpfs", flags, &*options)?)
}
