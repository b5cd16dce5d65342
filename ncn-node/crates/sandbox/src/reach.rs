//! What root grants is within reach of the user that it becomes: in this process's mount namespace, what is granted is shown as that
//! user's, and directories on the way that it may not enter are covered by ones with nothing in them but what was granted.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    fs, io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::{MetadataExt as _, chown, symlink},
    },
    path::{Path, PathBuf},
};

use ncn_confine::{Launch, Layer, Missing, SYSTEM};
use rustix::{
    fs::CWD,
    mount::{MountFlags, MoveMountFlags, OpenTreeFlags, mount, move_mount, open_tree},
};

use crate::system;

/// True when a path lies within these or within what every program may execute, as it is written and as it is.
pub(crate) fn is_within(path: &Path, granted: &[PathBuf]) -> bool {
    let within = |path: &Path| {
        let system = SYSTEM.iter().map(Path::new);
        let beneath =
            |directory: &Path| path.starts_with(directory) || directory.canonicalize().is_ok_and(|real| path.starts_with(real));
        system.chain(granted.iter().map(PathBuf::as_path)).any(beneath)
    };
    within(path) && path.canonicalize().is_ok_and(|real| within(&real))
}

/// A granted path, detached from where it was.
struct Tree {
    path: PathBuf,
    is_directory: bool,
    mount: OwnedFd,
}

/// Has this user reach everything that is granted.
pub(crate) fn make_reachable(launch: &Launch, user: u32) -> Result<(), Missing> {
    let grants = &launch.grants;
    let program = (!launch.report && !is_within(&launch.program, &grants.executable)).then_some(&launch.program);
    let granted: Vec<_> = grants.readable.iter().chain(&grants.executable).chain(program).collect();
    let mut covered = BTreeSet::new();
    let mut namespaces = BTreeMap::new();
    let mut trees = Vec::new();
    let mut links = Vec::new();
    for path in granted.iter().copied().chain(&grants.devices).chain([&grants.work_directory]) {
        let failed = |error: io::Error| Missing::new(Layer::User, format!("{}: {error}", path.display()));
        let real = path.canonicalize().map_err(failed)?;
        let metadata = real.metadata().map_err(failed)?;
        let barred = barred(&real, user);
        let shown_as_own = metadata.uid() != user && granted.contains(&path);
        if *path == grants.work_directory && launch.limits.writable_bytes.is_none() {
            chown(&real, Some(user), Some(user)).map_err(failed)?;
        }
        if shown_as_own || barred.is_some() {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
            let mount = open_tree(CWD, &real, flags).map_err(|error| failed(error.into()))?;
            if shown_as_own {
                let owner = (metadata.uid(), metadata.gid());
                let namespace = match namespaces.entry(owner) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(new) => new.insert(system::mapping(owner, user).map_err(failed)?),
                };
                // Not every file system can do that. Where it cannot, the files' own permissions count.
                let _ = system::map_owners(mount.as_fd(), namespace.as_fd());
            }
            trees.push(Tree { path: real.clone(), is_directory: metadata.is_dir(), mount });
        }
        links.extend((*path != real).then_some((path, real)));
        covered.extend(barred);
    }
    let failed = |path: &Path, error: io::Error| Missing::new(Layer::User, format!("{}: {error}", path.display()));
    for directory in &covered {
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("tmpfs", directory, "tmpfs", flags, c"size=1m,mode=0755").map_err(|error| failed(directory, error.into()))?;
    }
    // What lies within another comes after it.
    trees.sort_by_key(|tree| tree.path.components().count());
    for tree in &trees {
        attach(tree).map_err(|error| failed(&tree.path, error))?;
    }
    for (path, real) in links {
        if covered.iter().any(|directory| path.starts_with(directory)) && path.symlink_metadata().is_err() {
            let made = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| symlink(real, path));
            made.map_err(|error| failed(path, error))?;
        }
    }
    Ok(())
}

/// The first directory on the way to a path that this user may not enter.
fn barred(path: &Path, user: u32) -> Option<PathBuf> {
    let mut way: Vec<_> = path.ancestors().skip(1).collect();
    way.reverse();
    let way = way.into_iter();
    system::with_rights_of(user, user, || {
        way.into_iter().find(|directory| directory.join(".").metadata().is_err()).map(Path::to_path_buf)
    })
}

fn attach(tree: &Tree) -> io::Result<()> {
    if !tree.path.exists() {
        if let Some(parent) = tree.path.parent() {
            fs::create_dir_all(parent)?;
        }
        if tree.is_directory { fs::create_dir(&tree.path)? } else { drop(fs::File::create_new(&tree.path)?) }
    }
    Ok(move_mount(&tree.mount, "", CWD, &tree.path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}
