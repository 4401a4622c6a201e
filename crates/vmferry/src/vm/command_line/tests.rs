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

fn line(definition: &VmDefinition, state_dir: &str, taps: &[&str], role: Role) -> String {
    let folder = VmFolder::new(Path::new(state_dir), &definition.name);
    let taps: Vec<String> = taps.iter().map(|&tap| tap.to_owned()).collect();
    arguments(definition, &folder, &taps, role).join(" ")
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
fn source_and_target_differ_only_in_sockets_taps_and_incoming() {
    let definition = definition(DEVICES);
    let source = line(&definition, "/a", &["tap1"], Role::Boot);
    let target = line(&definition, "/b", &["tap2"], Role::Incoming);
    let alike = target
        .replace("/b/", "/a/")
        .replace("tap2", "tap1")
        .replace(" -incoming defer", "");
    assert_eq!(source, alike);
    assert_ne!(source, target);
}

#[test]
fn every_device_has_its_slot_and_id() {
    let line = line(&definition(DEVICES), "/a", &["tap1"], Role::Boot);
    for expected in [
        "virtio-balloon-pci,id=balloon,bus=pcie.0,addr=0x2,free-page-hint=on",
        "id=disk-root,drive=disk-root,serial=root,write-cache=on,bootindex=3,bus=pcie.0,addr=0x3",
        "id=disk-data,drive=disk-data,serial=data,write-cache=off,bootindex=4,bus=pcie.0,addr=0x4",
        "id=nic-lan,netdev=net-lan,mac=52:07:07:07:07:07,romfile=,bus=pcie.0,addr=0x5",
        "tap,id=net-lan,ifname=tap1,script=no,downscript=no,vhost=off",
    ] {
        assert!(line.contains(expected), "{expected} is missing in {line}");
    }
    assert!(line.ends_with("-device virtio-rng-pci"));
}

#[test]
fn commas_in_names_are_not_options() {
    let line = line(&definition(DEVICES), "/a", &["tap1"], Role::Boot);
    assert!(line.contains("path=/tmp/a,,b.log"));
    assert!(line.contains(r#""filename":"/images/a,b.qcow2""#));
    assert!(line.contains(r#""export":"a,b""#) && line.contains(r#""host":"fd00::1""#));
}

#[test]
fn an_i440fx_uses_its_own_bus() {
    let mut definition = definition(DEVICES);
    definition.machine = "pc-i440fx-10.0".to_owned();
    let line = line(&definition, "/a", &["tap1"], Role::Boot);
    assert!(line.contains("bus=pci.0") && !line.contains("pcie.0"));
}

#[test]
fn memory_is_one_named_block_or_one_per_node() {
    let plain = definition(
        r#"append = "quiet"
        kernel = "/boot/vmlinuz""#,
    );
    let plain = line(&plain, "/a", &[], Role::Boot);
    assert!(plain.contains("-machine pc-q35-10.0,memory-backend=pc.ram"));
    assert!(plain.contains("memory-backend-ram,id=pc.ram,size=67108864,prealloc=off,share=off"));
    assert!(plain.contains("-kernel /boot/vmlinuz -append quiet"));

    let numa = definition("[[numa]]\nvcpus = [1]\nmemory = \"32MiB\"\n[[numa]]\nvcpus = [0]\nmemory = \"32MiB\"");
    let numa = line(&numa, "/a", &[], Role::Boot);
    assert!(numa.contains("-numa node,nodeid=1,memdev=ram-node1,cpus=0"));
    assert!(!numa.contains("memory-backend=pc.ram"));
}
