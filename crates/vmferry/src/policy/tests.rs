use std::os::unix::fs::symlink;

use super::*;

fn policy(lines: &str) -> Policy {
    toml::from_str::<PolicySettings>(lines).unwrap().resolve()
}

fn definition(more: &str) -> VmDefinition {
    let text = format!("name = 'web'\nmachine = 'pc-q35-10.0'\ncpu = 'max'\nvcpus = 1\n{more}",);
    VmDefinition::from_toml(&text).unwrap()
}

/// What the policy says about a definition with these lines, one reason a line.
fn said(policy: &Policy, more: &str) -> String {
    let memory = if more.contains("memory") {
        ""
    } else {
        "memory = '1GiB'\n"
    };
    let objections = policy.objections(&definition(&format!("{memory}{more}")));
    objections.iter().map(|objection| format!("{objection}\n")).collect()
}

#[test]
fn without_a_policy_a_peer_can_name_nothing_of_the_host_but_images_and_networks() {
    let none = policy("");
    assert_eq!(none.check_sender("anybody"), Ok(()));
    assert_eq!(said(&none, "serial = 'pty'\n[[nic]]\nid = 'lan'\nbridge = 'br0'"), "");
    let disk = |place: &str| format!("[[disk]]\nid = 'root'\n{place}\nformat = 'raw'");
    assert!(said(&none, &disk("path = '/etc/shadow'")).contains("/etc/shadow is not in `disk-directories`"));
    assert!(said(&none, &disk("nbd = 'nbd://elsewhere/x'")).contains("is not in `disk-uris`"));
    assert_eq!(
        said(&none, &disk("path = '/var/lib/vmferry/images/absent'")),
        "",
        "told when it is compared"
    );
    for (more, word) in [
        ("extra_args = ['-device', 'virtio-rng-pci']", "qemu-arguments"),
        ("serial = { file = '/etc/cron.d/web' }", "serial-directories"),
        ("serial = { socket = '/run/docker.sock' }", "serial-directories"),
        ("kernel = '/etc/shadow'", "boots from /etc/shadow"),
        (
            "kernel = '/boot/vmlinuz'\ninitrd = '/boot/../etc/shadow'",
            "boots from /boot/../etc/shadow",
        ),
        (
            "memory = { size = '1GiB', backend = 'file', path = '/etc' }",
            "memory is to be in /etc",
        ),
        (
            "memory = { size = '1GiB', backend = 'file', path = '/etc/passwd' }",
            "memory is to be in /etc/passwd",
        ),
    ] {
        let said = said(&none, more);
        assert!(said.contains(word) && said.lines().count() == 1, "{more}: {said}");
    }
    assert_eq!(said(&none, "kernel = '/boot/vmlinuz'"), "");
    assert_eq!(
        said(&none, "memory = { size = '1GiB', backend = 'file', path = '/dev/shm' }"),
        ""
    );
}

#[test]
fn every_reason_is_told_at_once() {
    let strict = policy("bridges = ['br1']\ntaps = []\nmemory-max = '512MiB'\nvms-max = 2\nsenders = ['a']");
    let said = said(
        &strict,
        "extra_args = ['-snapshot']\n[[disk]]\nid = 'root'\npath = '/etc/shadow'\nformat = 'raw'\n\
         [[nic]]\nid = 'lan'\nbridge = 'br0'\n[[nic]]\nid = 'wan'\ntap = 'tap0'",
    );
    for words in [
        "disk \"root\"",
        "NIC \"lan\" may not be on bridge br0",
        "NIC \"wan\" may not use tap tap0",
        "has 1GiB of memory and may have 512MiB",
        "[\"-snapshot\"]",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert_eq!(said.lines().count(), 5, "{said}");
    assert!(strict.check_sender("a").is_ok() && strict.check_sender("b").is_err());
    assert_eq!(strict.check_count(1), None);
    assert_eq!(strict.check_count(2), Some(Objection::Vms { here: 2, most: 2 }));
}

#[test]
fn what_is_listed_may_be_used() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    fs::write(path("disk"), [0; 4096]).unwrap();
    symlink("/etc/passwd", path("link")).unwrap();
    let lists = policy(&format!(
        "disk-directories = [{0:?}]\nserial-directories = [{0:?}]\ndisk-uris = ['nbd://storage/vms/']\nbridges = ['br0']",
        folder.path()
    ));
    let disk = |place: String| format!("[[disk]]\nid = 'root'\n{place}\nformat = 'raw'");
    assert_eq!(said(&lists, &disk(format!("path = {:?}", path("disk")))), "");
    assert!(said(&lists, &disk(format!("path = {:?}", path("link")))).contains("disk-directories"));
    assert_eq!(said(&lists, &disk("nbd = 'nbd://storage/vms/web'".to_owned())), "");
    assert!(said(&lists, &disk("nbd = 'nbd://storage.evil/vms/web'".to_owned())).contains("disk-uris"));
    assert_eq!(said(&lists, &format!("kernel = {:?}", path("disk"))), "");
    assert_eq!(
        said(&lists, &format!("serial = {{ file = {:?} }}", path("web.log"))),
        ""
    );
    assert!(said(&lists, &format!("serial = {{ file = {:?} }}", path("link"))).contains("serial-directories"));
    assert_eq!(said(&lists, "[[nic]]\nid = 'lan'\nbridge = 'br0'"), "");
}

#[test]
fn only_listed_sequences_of_arguments_are_taken() {
    let lists = policy(
        "qemu-arguments = [['-device', 'virtio-rng-pci'], ['-snapshot'], ['-device', 'virtio-rng-pci', '-no-reboot'], []]",
    );
    let uncovered = |words: &str| {
        let arguments: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
        lists.uncovered(&arguments).join(" ")
    };
    for taken in [
        "",
        "-snapshot",
        "-device virtio-rng-pci -snapshot -device virtio-rng-pci",
        "-device virtio-rng-pci -no-reboot -snapshot",
    ] {
        assert_eq!(uncovered(taken), "");
    }
    assert_eq!(uncovered("-snapshot -no-reboot"), "-no-reboot");
    assert_eq!(uncovered("-device -snapshot"), "-device -snapshot");
    assert_eq!(uncovered("virtio-rng-pci"), "virtio-rng-pci");
    assert_eq!(uncovered("-device virtio-rng-pci,id=x"), "-device virtio-rng-pci,id=x");
}

#[test]
fn an_objection_reads_back_as_it_was_written() {
    let objection = Objection::Disk {
        id: "root".into(),
        problem: "it is nowhere".into(),
    };
    let text = serde_json::to_string(&objection).unwrap();
    assert_eq!(serde_json::from_str::<Objection>(&text).unwrap(), objection);
}
