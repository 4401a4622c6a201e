//! Files that are there whole or not at all.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::SystemTime,
};

/// Extension of files that are still being written.
const DRAFT: &str = "new";

/// A file that takes its name with [`Draft::publish`], and is removed if it is dropped before. Only its owner may read it.
#[derive(Debug)]
pub(crate) struct Draft {
    file: File,
    path: PathBuf,
    published: bool,
}

impl Draft {
    /// A new file beside `path`. There may be several at once; the last to be published stays.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        static DRAFTS: AtomicU64 = AtomicU64::new(0);
        loop {
            let number = DRAFTS.fetch_add(1, Ordering::Relaxed);
            let path = path.with_extension(format!("{number}.{DRAFT}"));
            let created = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path);
            match created {
                // Left by an earlier process.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                created => {
                    return Ok(Self {
                        file: created?,
                        path,
                        published: false,
                    });
                }
            }
        }
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Its name before it is published.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives it the name `path`, durably.
    pub(crate) fn publish(mut self, path: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.path, path)?;
        self.published = true;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.published {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Makes a folder that only its owner may look into, unless it is there, and removes drafts that a crash left in it.
pub(crate) fn prepare_folder(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if is_draft(&path) {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// The name of the file that belongs to `name`, which may be anything.
pub(crate) fn file_name(name: &str, extension: &str) -> String {
    let hash = blake3::hash(name.as_bytes()).to_hex();
    format!("{}.{extension}", &hash[..32])
}

/// A file in a folder.
#[derive(Debug)]
pub(crate) struct StoredFile {
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
    modified: SystemTime,
}

/// All files in `folder`, drafts too.
pub(crate) fn files(folder: &Path) -> io::Result<Vec<StoredFile>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let metadata = match entry.metadata() {
            // Removed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            metadata => metadata?,
        };
        files.push(StoredFile {
            path: entry.path(),
            bytes: metadata.len(),
            modified: metadata.modified()?,
        });
    }
    Ok(files)
}

/// Removes finished files, those first that were modified longest ago, until all together have at most `bytes_max`.
/// Returns what they have then, which is more if there are drafts only.
pub(crate) fn remove_oldest(mut files: Vec<StoredFile>, bytes_max: u64) -> io::Result<u64> {
    let mut bytes = files.iter().map(|file| file.bytes).sum::<u64>();
    files.retain(|file| !is_draft(&file.path));
    files.sort_by_key(|file| file.modified);
    for file in files {
        if bytes <= bytes_max {
            break;
        }
        remove(&file.path)?;
        bytes -= file.bytes;
    }
    Ok(bytes)
}

/// Removes a file, unless it is gone already.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

fn is_draft(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == DRAFT)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Others remove files meanwhile: the memory of a VM that runs here now, an index that is damaged.
    #[test]
    fn what_is_gone_already_makes_room_too() {
        let folder = tempfile::tempdir().unwrap();
        let paths = ["a", "b", "c"].map(|name| folder.path().join(name));
        for path in &paths {
            fs::write(path, [1; 100]).unwrap();
        }
        let files = files(folder.path()).unwrap();
        fs::remove_file(&paths[0]).unwrap();
        assert_eq!(remove_oldest(files, 0).unwrap(), 0);
        assert!(paths.iter().all(|path| !path.exists()));
    }
}
