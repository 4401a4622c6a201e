use super::*;

const FULL: &str = r#"
name = "web"
machine = "pc-q35-10.0"
accel = "tcg"
cpu = "max"
vcpus = 2
memory = { size = "1GiB", backend = "memfd", share = true }
kernel = "/boot/vmlinuz"
append = "console=ttyS0"
serial = { file = "/tmp/serial.log" }
balloon = true
extra_args = ["-device", "virtio-rng-pci"]

[[disk]]
id = "root"
path = "/images/root.qcow2"
format = "qcow2"
cache = "writeback"

[[disk]]
id = "data"
nbd = "nbd://storage:10809/data"
format = "raw"

[[nic]]
id = "lan"
bridge = "br0"

[[numa]]
vcpus = [0]
memory = "512MiB"

[[numa]]
vcpus = [1]
memory = "512MiB"
"#;

fn problems_of(text: &str) -> Vec<String> {
    VmDefinition::from_toml(text).unwrap_err().problems()
}

#[test]
fn toml_reads_and_json_carries_the_same() {
    let definition = VmDefinition::from_toml(FULL).unwrap();
    assert_eq!(definition.memory.size, ByteSize(1 << 30));
    assert_eq!(definition.disk[0].cache, CacheMode::Writeback);
    assert_eq!(definition.serial, Some(Serial::File("/tmp/serial.log".into())));
    let json = serde_json::to_vec(&definition).unwrap();
    assert_eq!(VmDefinition::from_json(&json).unwrap(), definition);
}

#[test]
fn the_smallest_definition_has_five_fields() {
    let definition = VmDefinition::from_toml(
        r#"
        name = "a"
        machine = "pc-i440fx-7.2"
        cpu = "qemu64"
        vcpus = 1
        memory = "64MiB""#,
    )
    .unwrap();
    assert_eq!(definition.memory, Memory::from(ByteSize(64 << 20)));
    assert!(definition.disk.is_empty() && definition.uuid.is_none());
}

#[test]
fn a_wrong_field_is_named_with_its_line() {
    let text = FULL.replace("format = \"raw\"", "fromat = \"raw\"");
    let [problem] = problems_of(&text).try_into().unwrap();
    assert!(problem.contains("fromat") && problem.contains("line 23"), "{problem}");

    let text = FULL.replace("backend = \"memfd\"", "backend = \"disk\"");
    let [problem] = problems_of(&text).try_into().unwrap();
    assert!(
        problem.contains("\"disk\"") && problem.contains("memfd") && problem.contains("line 7"),
        "{problem}"
    );

    let text = FULL.replace("vcpus = 2\n", "");
    let [problem] = problems_of(&text).try_into().unwrap();
    assert!(problem.contains("vcpus"), "{problem}");

    let error = VmDefinition::from_json(br#"{"name": 3}"#).unwrap_err();
    assert!(error.to_string().contains("line 1"), "{error}");
}

#[test]
fn a_file_is_named_and_of_which_disk_something_is_wrong() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let wrong = format!(
        "config-version = 1\n{}",
        FULL.replace("nbd = \"nbd://storage:10809/data\"", "path = \"data\"")
    );
    std::fs::write(file.path(), wrong).unwrap();
    let error = VmDefinition::from_toml_file(file.path()).unwrap_err().to_string();
    let place = format!("{}:23:8: disk \"data\": path data is relative", file.path().display());
    assert!(error.starts_with(&place), "{error}");
    std::fs::write(file.path(), FULL.replace("name =", "config-version = 2\nname =")).unwrap();
    let error = VmDefinition::from_toml_file(file.path()).unwrap_err().to_string();
    assert!(
        error.contains(":2:18: config-version 2 is read by a later vmferry"),
        "{error}"
    );
}

#[test]
fn an_alias_of_a_machine_is_refused_with_what_to_write() {
    let [problem] = problems_of(&FULL.replace("pc-q35-10.0", "q35")).try_into().unwrap();
    assert!(
        problem.starts_with("line 3, column 11: machine:") && problem.contains("\"pc-q35-10.0\""),
        "{problem}"
    );
    assert_eq!(problems_of(&FULL.replace("pc-q35-10.0", "microvm")).len(), 1);
    assert_eq!(problems_of(&FULL.replace("pc-q35-10.0", "pc-q35-")).len(), 1);
}

#[test]
fn all_problems_are_told_at_once() {
    let text = r#"
        name = "../up"
        uuid = "no"
        machine = "pc"
        cpu = ""
        vcpus = 0
        memory = { size = "1KiB", backend = "file", hugepages = true }
        initrd = "initrd.img"
        free_page_hint = true

        [[disk]]
        id = "a"
        path = "relative"
        format = "raw"

        [[disk]]
        id = "a"
        format = "raw"

        [[nic]]
        id = "a b"
        bridge = "a-bridge-with-a-long-name"
        mac = "01:00:00:00:00:00"

        [[nic]]
        id = "n"
        tap = "t,x"
        mac = "nonsense"

        [[numa]]
        vcpus = [3]
        memory = "1MiB"
    "#;
    let problems = problems_of(text).join("\n");
    for expected in [
        "name: \"../up\"",
        "uuid: \"no\"",
        "machine: \"pc\"",
        "cpu:",
        "vcpus: 0",
        "memory.size: 1KiB",
        "memory.path:",
        "memory.hugepages:",
        "initrd: initrd.img",
        "kernel:",
        "free_page_hint:",
        "id: \"a\" is used twice",
        "id: \"a b\"",
        "disk \"a\": path relative",
        "disk \"a\": give it",
        "\"a-bridge-with-a-long-name\"",
        "group address",
        "\"t,x\"",
        "\"nonsense\"",
        "numa: the nodes' memory",
        "numa: each vCPU",
    ] {
        assert!(problems.contains(expected), "{expected} is missing in:\n{problems}");
    }
}

#[test]
fn an_argument_with_a_zero_byte_is_a_problem() {
    let whole = VmDefinition::from_toml(FULL).unwrap();
    let zero = || Some("/a\0b".into());
    let wrong: [fn(&mut VmDefinition, Option<PathBuf>); 4] = [
        |definition, path| definition.kernel = path,
        |definition, path| definition.initrd = path,
        |definition, path| definition.serial = path.map(Serial::File),
        |definition, _| definition.extra_args = vec!["a\0b".to_owned()],
    ];
    for make_wrong in wrong {
        let mut definition = whole.clone();
        make_wrong(&mut definition, zero());
        let error = definition.validated().unwrap_err();
        assert!(error.to_string().contains("zero byte"), "{error}");
    }
}

#[test]
fn numa_memory_that_overflows_is_a_problem() {
    let mut definition = VmDefinition::from_toml(FULL).unwrap();
    for node in &mut definition.numa {
        node.memory = ByteSize(u64::MAX - (1 << 20) + 1);
    }
    assert!(definition.validated().is_err());
}

#[test]
fn completing_draws_once_and_keeps() {
    let mut definition = VmDefinition::from_toml(FULL).unwrap();
    definition.accel = None;
    definition.complete(Accel::Kvm, [0xab; 16]);
    assert_eq!(definition.accel, Some(Accel::Kvm));
    assert_eq!(definition.uuid.as_deref(), Some("abababab-abab-4bab-abab-abababababab"));
    assert_eq!(definition.nic[0].mac.as_deref(), Some("52:ab:ab:ab:ab:ab"));
    let completed = definition.clone().validated().unwrap();
    definition.complete(Accel::Tcg, [1; 16]);
    assert_eq!(definition, completed);
}
