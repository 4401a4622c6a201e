//! Real QEMUs, none of which boots anything.

use super::*;
use crate::vm::UserRange;
use std::path::Path;
use tempfile::TempDir;
use vmferry_qmp::RunState;

fn definition(more: &str) -> VmDefinition {
    let text = format!(
        r#"
        name = "idle"
        machine = "pc-q35-7.2"
        cpu = "max"
        vcpus = 1
        memory = "16MiB"
        {more}"#
    );
    let mut definition = VmDefinition::from_toml(&text).unwrap();
    definition.complete(Accel::Tcg, [7; 16]);
    definition
}

async fn launch_in(state_dir: &TempDir, definition: &VmDefinition, role: Role) -> Result<RunningVm, LaunchError> {
    let folder = VmFolder::new(state_dir.path(), &definition.name);
    launcher().launch(definition.clone(), folder, role, None).await
}

/// As confined as this machine allows.
fn launcher() -> Launcher {
    Launcher {
        qemu: "qemu-system-x86_64".into(),
        confinement: Confinement::find(UserRange::default(), true),
    }
}

#[tokio::test]
async fn a_vm_starts_is_found_again_and_ends() {
    let state_dir = tempfile::tempdir().unwrap();
    let definition = definition("balloon = true");
    let vm = launch_in(&state_dir, &definition, Role::Boot).await.unwrap();
    assert_eq!(vm.qmp.query_status().await.unwrap().status, RunState::Prelaunch);
    assert_eq!(Some(vm.qmp.query_uuid().await.unwrap()), definition.uuid);
    vm.qmp.cont().await.unwrap();
    let again = launch_in(&state_dir, &definition, Role::Boot).await;
    assert!(matches!(again, Err(LaunchError::AlreadyRuns { .. })));

    // An agent that went away leaves its guest running, and the next one finds it.
    let pid = vm.process.pid();
    drop(vm);
    let folder = VmFolder::new(state_dir.path(), "idle");
    let found = find_again(folder.clone()).await.unwrap().unwrap();
    assert_eq!(found.process.pid(), pid);
    assert_eq!(found.definition, definition);
    assert!(found.qmp.query_status().await.unwrap().running);

    found.end().await.unwrap();
    assert!(find_again(folder.clone()).await.unwrap().is_none());
    assert!(!folder.qmp().exists() && !folder.pid().exists() && folder.definition().exists());
}

#[tokio::test]
async fn qemu_takes_every_kind_of_device_but_a_nic() {
    let state_dir = tempfile::tempdir().unwrap();
    let image = state_dir.path().join("disk,with a comma.img");
    fs::write(&image, vec![0; 1 << 20]).unwrap();
    for (machine, backend) in [
        ("pc-q35-7.2", "ram"),
        ("pc-i440fx-7.2", "memfd"),
        ("pc-q35-7.2", "file"),
    ] {
        let path = if backend == "file" { "path = '/dev/shm'" } else { "" };
        let text = format!(
            r#"
            name = "devices"
            machine = "{machine}"
            cpu = "max"
            vcpus = 2
            serial = {{ socket = "{folder}/serial,sock" }}
            balloon = true
            free_page_hint = true

            [memory]
            size = "64MiB"
            backend = "{backend}"
            share = true
            {path}

            [[numa]]
            vcpus = [0]
            memory = "32MiB"

            [[numa]]
            vcpus = [1]
            memory = "32MiB"

            [[disk]]
            id = "root"
            path = "{image}"
            format = "raw"
            cache = "writeback"
            readonly = true

            [[disk]]
            id = "again"
            path = "{image}"
            format = "raw"
            cache = "writethrough"
            readonly = true
            "#,
            folder = state_dir.path().display(),
            image = image.display(),
        );
        let mut definition = VmDefinition::from_toml(&text).unwrap();
        definition.complete(Accel::Tcg, [7; 16]);
        let vm = launch_in(&state_dir, &definition, Role::Boot).await.unwrap();
        assert_eq!(vm.qmp.query_block().await.unwrap().len(), 2);
        let blocks = vm.qmp.ram_blocks().await.unwrap();
        let nodes = blocks.iter().filter(|block| block.name.starts_with("ram-node"));
        assert_eq!(nodes.map(|block| block.used_bytes).sum::<u64>(), 64 << 20);
        vm.end().await.unwrap();
    }
}

#[tokio::test]
async fn an_incoming_vm_waits_for_a_migration() {
    let state_dir = tempfile::tempdir().unwrap();
    let vm = launch_in(&state_dir, &definition(""), Role::Incoming).await.unwrap();
    assert_eq!(vm.qmp.query_status().await.unwrap().status, RunState::InMigrate);
    vm.end().await.unwrap();
}

#[tokio::test]
async fn what_qemu_says_against_it_is_the_error() {
    let state_dir = tempfile::tempdir().unwrap();
    let missing = definition("[[disk]]\nid = \"root\"\npath = \"/no/such/image\"\nformat = \"raw\"");
    let error = launch_in(&state_dir, &missing, Role::Boot)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("/no/such/image") && error.contains("No such file"),
        "{error}"
    );

    let folder = VmFolder::new(state_dir.path(), "idle");
    let launcher = Launcher {
        qemu: "/no/such/qemu".into(),
        ..launcher()
    };
    let error = launcher
        .launch(definition(""), folder, Role::Boot, None)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("/no/such/qemu"), "{error}");
}

#[tokio::test]
async fn a_vm_whose_bridge_is_missing_leaves_no_qemu() {
    let state_dir = tempfile::tempdir().unwrap();
    let definition = definition("[[nic]]\nid = \"lan\"\nbridge = \"vmf-no-bridge\"");
    let error = launch_in(&state_dir, &definition, Role::Boot)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("vmf-no-bridge"), "{error}");
    let folder = VmFolder::new(state_dir.path(), "idle");
    assert!(find_again(folder).await.unwrap().is_none());
}

#[tokio::test]
async fn a_broken_migration_ends_an_incoming_vm_and_its_log_says_why() {
    let state_dir = tempfile::tempdir().unwrap();
    let vm = launch_in(&state_dir, &definition(""), Role::Incoming).await.unwrap();
    vm.qmp
        .migrate_incoming(&format!("unix:{}", VmFolder::INCOMING), false)
        .await
        .unwrap();
    let mut stream = tokio::net::UnixStream::connect(vm.folder.incoming()).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stream, b"not a migration stream")
        .await
        .unwrap();
    drop(stream);
    vm.process.ended().await.unwrap();
    assert!(
        vm.last_words().contains("load of migration failed"),
        "{}",
        vm.last_words()
    );
}

#[tokio::test]
async fn what_everybody_may_not_read_is_given_to_qemu_alone() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let state_dir = tempfile::tempdir().unwrap();
    let secret = state_dir.path().join("disk");
    fs::write(&secret, vec![0; 1 << 20]).unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let past_cache = state_dir.path().join("past-the-cache");
    fs::copy(&secret, &past_cache).unwrap();
    let before = secret.metadata().unwrap();
    // A kernel of the oldest kind needs no header.
    let kernel = state_dir.path().join("kernel");
    fs::write(&kernel, vec![0; 8192]).unwrap();
    fs::set_permissions(&kernel, fs::Permissions::from_mode(0o600)).unwrap();
    let text = format!(
        "serial = \"pty\"\nkernel = {kernel:?}\nextra_args = [\"-netdev\", \"user,id=user\"]\n\
         [[disk]]\nid = \"root\"\npath = {secret:?}\nformat = \"raw\"\ncache = \"writeback\"\n\
         [[disk]]\nid = \"past\"\npath = {past_cache:?}\nformat = \"raw\"",
    );
    let vm = launch_in(&state_dir, &definition(&text), Role::Boot).await.unwrap();
    vm.qmp.cont().await.unwrap();

    let confinement = Confinement::find(UserRange::default(), true);
    let status = fs::read_to_string(format!("/proc/{}/status", vm.process.pid())).unwrap();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim();
    assert_eq!(field("Seccomp:"), "2", "its system calls are filtered");
    assert_eq!(field("NoNewPrivs:"), "1");
    if confinement.users.is_some() {
        let uid = field("Uid:").split_whitespace().next().unwrap().parse::<u32>().unwrap();
        assert!((300_000..=365_535).contains(&uid), "{uid}");
        assert_eq!(field("Groups:"), "", "of no other group");
        assert_eq!(field("CapEff:").trim_matches('0'), "", "without any capability");
        let again = confinement.choose_user("idle", false).unwrap().unwrap();
        assert_ne!(again.user().uid, uid, "the next VM of that name is somebody else");
    }
    let user: u32 = field("Uid:").split_whitespace().next().unwrap().parse().unwrap();
    let cgroups = fs::read_to_string(format!("/proc/{}/cgroup", vm.process.pid())).unwrap();
    let cgroup = cgroups.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or("");
    let is_its_own = cgroup.ends_with(&format!("/idle.{user}"));
    assert_eq!(is_its_own, confinement.cgroups.is_some(), "{cgroups}");
    let after = secret.metadata().unwrap();
    let facts = |file: fs::Metadata| (file.uid(), file.gid(), file.mode(), file.ctime(), file.ctime_nsec());
    assert_eq!(facts(after), facts(before), "nothing about the file changes");
    vm.end().await.unwrap();
    for mount in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
        let left = Path::new(mount).join(cgroup);
        assert!(!is_its_own || !left.exists(), "it goes with its QEMU");
    }
}
