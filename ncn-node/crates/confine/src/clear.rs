//! Removing what somebody else has filled.

use std::{
    fs::{self, Permissions},
    io,
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

/// Removes a directory, whatever modes what is in it has and however deep it is: what lies deeper is moved up first, beside the directory,
/// under names that begin with its own. Follows no link. Nothing else may write there meanwhile.
///
/// # Errors
/// Something could not be removed; a directory that is not there is no error.
pub fn clear(directory: &Path) -> io::Result<()> {
    if fs::symlink_metadata(directory).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
        return Ok(());
    }
    let mut left = vec![directory.to_owned()];
    let mut moved = 0_u64;
    while let Some(path) = left.pop() {
        fs::set_permissions(&path, Permissions::from_mode(0o700))?;
        for entry in fs::read_dir(&path)? {
            let entry = entry?;
            if !entry.file_type()?.is_dir() {
                fs::remove_file(entry.path())?;
                continue;
            }
            // It is its own entry that says where its parent is.
            fs::set_permissions(entry.path(), Permissions::from_mode(0o700))?;
            let mut beside = directory.as_os_str().to_owned();
            beside.push(format!(".{moved}"));
            moved += 1;
            fs::rename(entry.path(), &beside)?;
            left.push(beside.into());
        }
        fs::remove_dir(&path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_depth_nor_modes_keep_anything() {
        let home = tempfile::tempdir().unwrap();
        let (outside, directory) = (home.path().join("outside"), home.path().join("d"));
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "").unwrap();
        // Deeper than a path can say, and than there are descriptors.
        fs::create_dir(&directory).unwrap();
        for level in 0..5_000 {
            let deeper = home.path().join(format!("{level}"));
            fs::create_dir(&deeper).unwrap();
            fs::write(deeper.join("file"), "").unwrap();
            fs::rename(&directory, deeper.join("d")).unwrap();
            fs::rename(&deeper, &directory).unwrap();
        }
        std::os::unix::fs::symlink(&outside, directory.join("link")).unwrap();
        fs::set_permissions(directory.join("d"), Permissions::from_mode(0o0)).unwrap();
        fs::set_permissions(&directory, Permissions::from_mode(0o0)).unwrap();
        clear(&directory).unwrap();
        clear(&directory).unwrap();
        let there: Vec<_> = fs::read_dir(home.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(there, ["outside"]);
        assert!(outside.join("kept").exists());
    }
}
