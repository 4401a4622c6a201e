//! Directories and NBD exports that something may be on.

use std::{
    fs,
    path::{Component, Path, PathBuf},
};

use vmferry_content::{NbdServer, NbdUri};

/// Where device nodes are. Only root makes them and the links to them there, so that a link out of a listed directory, such as
/// a volume group's, is as good as the node; but not where everybody may write.
const DEVICES: &str = "/dev";
const SHARED_MEMORY: &str = "/dev/shm";

/// Directories with all that is in them, and NBD exports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Places {
    /// Absolute paths.
    pub directories: Vec<PathBuf>,
    /// An export with no name stands for all of its server, one whose name ends in `/` for all whose names begin so.
    pub uris: Vec<NbdUri>,
}

impl Places {
    /// One directory.
    pub fn of_directory(directory: impl Into<PathBuf>) -> Self {
        Self {
            directories: vec![directory.into()],
            uris: Vec::new(),
        }
    }

    /// Whether the file at `path` is in one of the directories; see [`Places::find`].
    pub fn covers(&self, path: &Path) -> bool {
        self.find(path).is_some()
    }

    /// The path without links of the file at `path`, if that is in one of the directories. One that is not there counts as
    /// where its name says. It looks the path up, and opens nothing; what is opened then has to be what is returned, as links
    /// can change meanwhile.
    pub fn find(&self, path: &Path) -> Option<PathBuf> {
        if !path.is_absolute() {
            return None;
        }
        let climbs = path.components().any(|part| part == Component::ParentDir);
        let real = match fs::canonicalize(path) {
            Ok(real) => real,
            Err(_) if climbs => return None,
            Err(_) => path.to_owned(),
        };
        let is_in = |directory: &PathBuf| {
            let directory_is = fs::canonicalize(directory).unwrap_or_else(|_| directory.clone());
            real.starts_with(directory_is) || (!climbs && is_device_link(directory, path, &real))
        };
        self.directories.iter().any(is_in).then_some(real)
    }

    /// Whether a file or socket may be made at `path`: the directory that it is in is one of these or in one, and no link
    /// stands at its own name.
    pub fn has_room_for(&self, path: &Path) -> bool {
        let is_link = fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_symlink());
        path.file_name().is_some() && !is_link && path.parent().is_some_and(|parent| self.covers(parent))
    }

    /// Whether the export is one of these.
    pub fn covers_export(&self, uri: &NbdUri) -> bool {
        self.uris.iter().any(|listed| {
            let begins = listed.export.is_empty() || listed.export.ends_with('/');
            let named = match begins {
                // Some servers take a name for a path.
                true => uri.export.starts_with(&listed.export) && !uri.export.split('/').any(|part| part == ".."),
                false => uri.export == listed.export,
            };
            named && is_same_server(&listed.server, &uri.server)
        })
    }
}

fn is_device_link(directory: &Path, path: &Path, real: &Path) -> bool {
    let is_device = |path: &Path| path.starts_with(DEVICES) && !path.starts_with(SHARED_MEMORY);
    path.starts_with(directory) && is_device(directory) && is_device(real)
}

fn is_same_server(one: &NbdServer, other: &NbdServer) -> bool {
    match (one, other) {
        (NbdServer::Tcp { host: one, port: at }, NbdServer::Tcp { host, port }) => {
            one.eq_ignore_ascii_case(host) && at == port
        }
        (NbdServer::Unix(one), NbdServer::Unix(other)) => one == other,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_and_dots_do_not_lead_out_of_a_directory() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["images", "images-of-others", "images/deep"] {
            fs::create_dir(path(name)).unwrap();
        }
        for name in ["images/disk", "images/deep/disk", "images-of-others/disk", "secret"] {
            fs::write(path(name), "").unwrap();
        }
        symlink("../secret", path("images/link")).unwrap();
        symlink(path("images-of-others"), path("images/others")).unwrap();
        symlink("deep/disk", path("images/inside")).unwrap();
        symlink("images", path("other-name")).unwrap();
        let places = Places::of_directory(path("images"));
        for covered in [
            "images/disk",
            "images/deep/disk",
            "images/inside",
            "images/absent",
            "other-name/disk",
        ] {
            assert!(places.covers(&path(covered)), "{covered}");
        }
        for outside in [
            "images/link",
            "images/others/disk",
            "images-of-others/disk",
            "images/../secret",
            "images/absent/../../secret",
            "secret",
            "absent",
        ] {
            assert!(!places.covers(&path(outside)), "{outside}");
        }
        assert!(!places.covers(Path::new("images/disk")), "relative to what?");
        assert!(!Places::default().covers(&path("images/disk")));
        // The operator may have named the directory by a link.
        assert!(Places::of_directory(path("other-name")).covers(&path("images/disk")));
    }

    #[test]
    fn a_new_file_is_made_in_a_directory_and_not_through_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("logs")).unwrap();
        symlink("/etc/passwd", path("logs/link")).unwrap();
        symlink(folder.path(), path("logs/out")).unwrap();
        let places = Places::of_directory(path("logs"));
        assert!(places.has_room_for(&path("logs/web.log")));
        for outside in ["logs/link", "logs/out/web.log", "web.log", "logs/..", "logs/../web.log"] {
            assert!(!places.has_room_for(&path(outside)), "{outside}");
        }
    }

    #[test]
    fn a_volume_group_stands_for_its_volumes() {
        let volumes = Path::new("/dev/vg0");
        let is_one = |path: &str, real: &str| is_device_link(volumes, Path::new(path), Path::new(real));
        assert!(is_one("/dev/vg0/web", "/dev/dm-3"));
        assert!(!is_one("/dev/vg1/web", "/dev/dm-4"));
        assert!(!is_one("/dev/vg0/web", "/etc/shadow"));
        assert!(!is_device_link(
            Path::new("/dev/shm"),
            Path::new("/dev/shm/web"),
            Path::new("/dev/sda")
        ));
        assert!(!is_device_link(
            Path::new("/srv"),
            Path::new("/srv/web"),
            Path::new("/dev/sda")
        ));
    }

    #[test]
    fn exports_are_compared_part_by_part() {
        let covers = |listed: &str, uri: &str| {
            let uris = vec![listed.parse().unwrap()];
            let directories = Vec::new();
            Places { directories, uris }.covers_export(&uri.parse().unwrap())
        };
        assert!(covers("nbd://host", "nbd://host/web") && covers("nbd://host/", "nbd://HOST:10809"));
        assert!(covers("nbd://host/vms/", "nbd://host/vms/web") && covers("nbd://host/web", "nbd://host/web"));
        for (listed, uri) in [
            ("nbd://host", "nbd://host.evil/web"),
            ("nbd://host", "nbd://host:10810/web"),
            ("nbd://host", "nbd://host@evil/web"),
            ("nbd://host:1", "nbd://host:11/web"),
            ("nbd://host/vms/", "nbd://host/vms"),
            ("nbd://host/vms/", "nbd://host/vms/../secret"),
            ("nbd://host/vms/", "nbd://host/vms/%2e%2e/secret"),
            ("nbd://host/web", "nbd://host/web2"),
            ("nbd://host", "nbd+unix:///web?socket=/host"),
            ("nbd+unix:///?socket=/run/nbd", "nbd+unix:///web?socket=/run/nbd2"),
        ] {
            assert!(!covers(listed, uri), "{listed} covers {uri}");
        }
        assert!(covers(
            "nbd+unix:///?socket=/run/nbd",
            "nbd+unix:///web?socket=/run/nbd"
        ));
    }
}
