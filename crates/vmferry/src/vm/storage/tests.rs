use super::*;
use std::{os::unix::fs::symlink, process::Command};
use tempfile::TempDir;

struct Images(TempDir);

impl Images {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("images")).unwrap();
        fs::write(folder.path().join("outside"), [0; 4096]).unwrap();
        fs::write(folder.path().join("images/base"), [0; 4096]).unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A qcow2 image over another, whose name it is told.
    fn overlay(&self, name: &str, backing: &str, format: &str) -> PathBuf {
        let path = self.path(name);
        let mut create = Command::new("qemu-img");
        create.args(["create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", format]);
        assert!(create.arg(&path).arg("1M").status().unwrap().success());
        path
    }

    fn open(&self, name: &str, format: DiskFormat) -> Result<Vec<String>, String> {
        let disk = Disk {
            id: "root".into(),
            path: Some(self.path(name)),
            nbd: None,
            format,
            cache: Default::default(),
            readonly: false,
        };
        let places = Places::of_directory(self.path("images"));
        let layers = open_chain(&disk, Some(&places), Access::Use).map_err(|error| error.to_string())?;
        let name = |layer: &Layer| match &layer.medium {
            Medium::File { path, .. } => path.file_name().unwrap().to_str().unwrap().to_owned(),
            Medium::Nbd { uri, .. } => uri.to_string(),
        };
        Ok(layers.iter().map(name).collect())
    }
}

#[test]
fn a_chain_is_opened_down_to_its_base() {
    let images = Images::new();
    images.overlay("images/middle", "base", "raw");
    images.overlay("images/top", images.path("images/middle").to_str().unwrap(), "qcow2");
    assert_eq!(
        images.open("images/top", DiskFormat::Qcow2).unwrap(),
        ["top", "middle", "base"]
    );
    // What is in a raw disk is its guest's.
    assert_eq!(images.open("images/top", DiskFormat::Raw).unwrap(), ["top"]);
}

#[test]
fn a_header_does_not_lead_out_of_the_directories() {
    let images = Images::new();
    symlink(images.path("outside"), images.path("images/link")).unwrap();
    let outside = images.path("outside").display().to_string();
    for backing in ["../outside", &outside, &format!("file:{outside}"), "link"] {
        images.overlay("images/middle", backing, "raw");
        images.overlay("images/top", "middle", "qcow2");
        for name in ["images/middle", "images/top"] {
            let said = images.open(name, DiskFormat::Qcow2).unwrap_err();
            assert!(
                said.contains("its backing file") && said.contains("disk-directories"),
                "{said}"
            );
        }
    }
    for backing in ["json:{\"driver\":\"file\"}", "ssh://host/file", "fat:/etc"] {
        images.overlay("images/top", backing, "raw");
        let said = images.open("images/top", DiskFormat::Qcow2).unwrap_err();
        assert!(said.contains("only paths and NBD URIs"), "{said}");
    }
    images.overlay("images/top", "nbd://elsewhere/disk", "raw");
    let said = images.open("images/top", DiskFormat::Qcow2).unwrap_err();
    assert!(said.contains("disk-uris"), "{said}");
    let said = images.open("images/link", DiskFormat::Raw).unwrap_err();
    assert!(said.contains("disk-directories"), "{said}");
}

#[test]
fn a_circle_and_a_format_that_is_not_said_end_the_chain() {
    let images = Images::new();
    images.overlay("images/one", "other", "qcow2");
    images.overlay("images/other", "one", "qcow2");
    let said = images.open("images/one", DiskFormat::Qcow2).unwrap_err();
    assert!(said.contains("one too many"), "{said}");
    images.overlay("images/top", "base", "vmdk");
    let said = images.open("images/top", DiskFormat::Qcow2).unwrap_err();
    assert!(said.contains("vmdk"), "{said}");
}

#[test]
fn a_link_that_appears_after_the_look_is_not_followed() {
    let images = Images::new();
    let found = Places::of_directory(images.path("images"))
        .find(&images.path("images/base"))
        .unwrap();
    assert!(open_without_links(&found, false).is_ok());
    fs::remove_file(&found).unwrap();
    symlink(images.path("outside"), &found).unwrap();
    assert!(open_without_links(&found, false).is_err());
}
