use super::*;

fn definition(more: &str) -> VmDefinition {
    let text = format!(
        r#"
        name = "web"
        machine = "pc-q35-10.0"
        cpu = "max"
        vcpus = 2
        memory = "64MiB"
        {more}"#
    );
    let mut definition = VmDefinition::from_toml(&text).unwrap();
    definition.complete(Accel::Tcg, [7; 16]);
    definition
}

/// What QEMU is given, numbered from `first` on.
fn given(first: RawFd) -> Given {
    let file = |fd, path: &str| GivenMedium::File {
        fd,
        path: path.into(),
        is_device: false,
    };
    let layer = |format, medium| GivenLayer { format, medium };
    let export = GivenMedium::Nbd {
        uri: "nbd://[fd00::1]/a,b".parse().unwrap(),
        fd: None,
    };
    Given {
        run_folder: first,
        monitors: [first + 1, first + 2],
        disks: vec![
            vec![
                layer(DiskFormat::Qcow2, file(first + 3, "/images/a,b.qcow2")),
                layer(DiskFormat::Qcow2, file(first + 4, "/images/middle")),
                layer(DiskFormat::Raw, file(first + 5, "/images/base")),
            ],
            vec![layer(DiskFormat::Raw, export)],
        ],
        taps: vec![first + 6],
        serial: Some(first + 7),
        kernel: Some(first + 8),
        ..Given::default()
    }
}

fn line(definition: &VmDefinition, state_dir: &str, given: &Given, role: Role) -> String {
    let folder = VmFolder::new(Path::new(state_dir), &definition.name);
    arguments(definition, &folder, given, true, role).join(" ")
}

const DEVICES: &str = r#"
    balloon = true
    free_page_hint = true
    serial = { file = "/tmp/a,b.log" }
    extra_args = ["-device", "virtio-rng-pci"]

    [[disk]]
    id = "root"
    path = "/images/a,b.qcow2"
    format = "qcow2"

    [[disk]]
    id = "data"
    nbd = "nbd://[fd00::1]/a,b"
    format = "raw"
    cache = "writethrough"
    readonly = true

    [[nic]]
    id = "lan"
    bridge = "br0"
"#;

#[test]
fn source_and_target_differ_only_in_what_they_are_given_and_incoming() {
    let definition = definition(DEVICES);
    let source = line(&definition, "/a", &given(20), Role::Boot);
    let target = line(&definition, "/b", &given(50), Role::Incoming);
    let mut alike = target.replace("/b/", "/a/").replace(" -incoming defer", "");
    for fd in 50..=58 {
        for place in ["fd=", "set=", "fd/", "fdset/"] {
            alike = alike.replace(&format!("{place}{fd}"), &format!("{place}{}", fd - 30));
        }
    }
    assert_eq!(source, alike);
    assert_ne!(source, target);
}

#[test]
fn every_device_has_its_slot_and_id() {
    let line = line(&definition(DEVICES), "/a", &given(20), Role::Boot);
    for expected in [
        "virtio-balloon-pci,id=balloon,bus=pcie.0,addr=0x2,free-page-hint=on",
        "id=disk-root,drive=disk-root,serial=root,write-cache=on,bootindex=3,bus=pcie.0,addr=0x3",
        "id=disk-data,drive=disk-data,serial=data,write-cache=off,bootindex=4,bus=pcie.0,addr=0x4",
        "id=nic-lan,netdev=net-lan,mac=52:07:07:07:07:07,romfile=,bus=pcie.0,addr=0x5",
        "tap,id=net-lan,fd=26,vhost=off",
        "socket,id=qmp,fd=21,server=on",
    ] {
        assert!(line.contains(expected), "{expected} is missing in {line}");
    }
    assert!(line.ends_with("-device virtio-rng-pci"));
}

#[test]
fn commas_in_names_are_not_options() {
    let line = line(&definition(DEVICES), "/a", &given(20), Role::Boot);
    assert!(
        line.contains("fd=27,set=27,opaque=/tmp/a,,b.log")
            && line.contains("file,id=serial0,path=/dev/fdset/27,append=on")
    );
    assert!(line.contains("fd=23,set=23,opaque=/images/a,,b.qcow2"));
    assert!(line.contains(r#""export":"a,b""#) && line.contains(r#""host":"fd00::1""#));
}

#[test]
fn qemu_is_told_what_stands_on_what_and_opens_no_path() {
    let line = line(&definition(DEVICES), "/a", &given(20), Role::Boot);
    let nodes: Vec<Value> = line
        .split(" -blockdev ")
        .skip(1)
        .map(|rest| {
            serde_json::Deserializer::from_str(rest)
                .into_iter()
                .next()
                .unwrap()
                .unwrap()
        })
        .collect();
    let node = |name: &str| nodes.iter().find(|node| node["node-name"] == name).unwrap();
    assert_eq!(node("disk-root")["backing"], "disk1-root");
    assert_eq!(node("disk1-root")["backing"], "disk2-root");
    assert_eq!(node("disk2-root").get("backing"), None, "a raw image has none");
    assert_eq!(node("store2-root")["filename"], "/dev/fdset/25");
    assert!(node("store1-root")["read-only"] == true && node("store-root")["read-only"] == false);
    let mut alone = given(20);
    alone.disks[0].truncate(1);
    let line = self::line(&definition(DEVICES), "/a", &alone, Role::Boot);
    assert!(
        line.contains(r#""backing":null"#),
        "what a header names is not looked for: {line}"
    );
    assert!(
        !line.contains("path=/tmp") && line.starts_with("-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny")
    );
}

#[test]
fn an_i440fx_uses_its_own_bus() {
    let mut definition = definition(DEVICES);
    definition.machine = "pc-i440fx-10.0".to_owned();
    let line = line(&definition, "/a", &given(20), Role::Boot);
    assert!(line.contains("bus=pci.0") && !line.contains("pcie.0"));
}

#[test]
fn memory_is_one_named_block_or_one_per_node() {
    let plain = definition(
        r#"append = "quiet"
        kernel = "/boot/vmlinuz""#,
    );
    let plain = line(&plain, "/a", &given(20), Role::Boot);
    assert!(plain.contains("-machine pc-q35-10.0,memory-backend=pc.ram"));
    assert!(plain.contains("memory-backend-ram,id=pc.ram,size=67108864,prealloc=off,share=off"));
    assert!(plain.contains("-kernel /proc/self/fd/28 -append quiet"));

    let numa = definition("[[numa]]\nvcpus = [1]\nmemory = \"32MiB\"\n[[numa]]\nvcpus = [0]\nmemory = \"32MiB\"");
    let numa = line(&numa, "/a", &given(20), Role::Boot);
    assert!(numa.contains("-numa node,nodeid=1,memdev=ram-node1,cpus=0"));
    assert!(!numa.contains("memory-backend=pc.ram"));
}
