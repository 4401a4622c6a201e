//! VMs that libvirt owns, moved through a tunnel by a stock virsh.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Stdio};

use anyhow::{Context, Result, anyhow, ensure};
use vmferry_e2e::agent::built_vmferry;
use vmferry_e2e::guest::Guest;
use vmferry_e2e::image::{ext4_disk, fsck};
use vmferry_e2e::libvirt::{IMAGES, Libvirt, SOCKETS};
use vmferry_e2e::net::{Host, Lab};
use vmferry_e2e::qemu::{Disk, Qemu, Spec};
use vmferry_e2e::scenario::{BOOT_MAX, ensure_alive, small_guest};
use vmferry_e2e::tunnel::{PORT, TunnelEnd};
use vmferry_qmp::{Capability, EventKind, MigrationStatus};

/// Two hosts with a libvirtd each.
struct Ground<'lab> {
    lab: &'lab Lab,
    vmferry: PathBuf,
    a: Libvirt<'lab>,
    b: Libvirt<'lab>,
}

impl<'lab> Ground<'lab> {
    fn set_up(lab: &'lab Lab) -> Result<Self> {
        Ok(Self {
            lab,
            vmferry: built_vmferry(false)?,
            a: Libvirt::start(lab, Host::A)?,
            b: Libvirt::start(lab, Host::B)?,
        })
    }

    fn start_vm(&self, name: &str, spec: &Spec) -> Result<Guest> {
        self.a.start_vm(name, spec)?;
        Guest::connect(self.lab, Host::Client, spec.address(), BOOT_MAX)
    }

    /// The end on host A, with a socket for the migrations of each of these VMs and one for disks.
    fn source(&self, vms: &[&str]) -> Result<TunnelEnd> {
        let to = format!("{}:{PORT}", Host::B.address());
        let disks = socket("disks");
        let sockets: Vec<String> = vms.iter().map(|vm| socket(vm)).collect();
        let listen = sockets.iter().flat_map(|path| ["--listen", path.as_str()]);
        let arguments: Vec<&str> = ["source", "--to", &to, "--disks", &disks]
            .into_iter()
            .chain(listen)
            .collect();
        TunnelEnd::start(
            self.lab,
            Host::A,
            &self.vmferry,
            self.a.command(&self.vmferry),
            &arguments,
        )
    }

    fn target(&self) -> Result<TunnelEnd> {
        let listen = format!("{}:{PORT}", Host::B.address());
        let arguments = ["target", "--listen", &listen, "--sockets", SOCKETS, "--from", "host-a"];
        TunnelEnd::start(
            self.lab,
            Host::B,
            &self.vmferry,
            self.b.command(&self.vmferry),
            &arguments,
        )
    }

    /// Moves the VM from A to B and returns the bytes that A sent for it, whatever they were.
    fn moves(&self, vm: &str, flags: &[&str]) -> Result<u64> {
        let before = self.lab.tx_bytes(Host::A)?;
        let uri = self.b.uri();
        self.a.virsh(&[&["migrate", "--live", vm, &uri], flags].concat())?;
        self.has(&[], &[vm])?;
        Ok(self.lab.tx_bytes(Host::A)? - before)
    }

    /// Moves it back, by libvirt's own means.
    fn moves_back(&self, vm: &str) -> Result<()> {
        self.b.virsh(&["migrate", "--live", vm, &self.a.uri()])?;
        self.has(&[vm], &[])
    }

    /// Waits until these VMs run on the hosts, and no others are there.
    fn has(&self, on_a: &[&str], on_b: &[&str]) -> Result<()> {
        self.a.until_has(on_a)?;
        self.b.until_has(on_b)
    }

    /// Begins to move the VM, and waits until so many bytes were sent for that.
    fn begin(&self, vm: &str, bytes: u64) -> Result<Virsh> {
        let said = self.lab.folder().join(format!("virsh-{vm}"));
        let (uri, through) = (self.b.uri(), through(vm));
        let before = self.lab.tx_bytes(Host::A)?;
        // On a terminal: of an interrupt virsh hears by the character, and aborts nothing for the signal.
        let virsh = format!("virsh --connect qemu:///system migrate --live {vm} {uri} --migrateuri {through}");
        let process = self
            .a
            .command("script")
            .args(["--quiet", "--return", "--command", &virsh, "/dev/null"])
            .stdin(Stdio::piped())
            .stdout(File::create(&said)?)
            .stderr(Stdio::null())
            .spawn()?;
        let mut virsh = Virsh { process, said };
        while self.lab.tx_bytes(Host::A)? - before < bytes {
            if let Some(status) = virsh.process.try_wait()? {
                return Err(anyhow!("virsh ended: {status}: {}", fs::read_to_string(&virsh.said)?));
            }
        }
        Ok(virsh)
    }
}

/// A virsh that migrates.
struct Virsh {
    process: Child,
    said: PathBuf,
}

impl Virsh {
    /// Presses Ctrl-C.
    fn interrupt(&mut self) -> Result<()> {
        let keyboard = self.process.stdin.as_mut().context("virsh has no terminal")?;
        Ok(keyboard.write_all(b"\x03")?)
    }

    fn succeeds(mut self) -> Result<()> {
        let status = self.ended()?;
        ensure!(status.success(), "{status}: {}", fs::read_to_string(&self.said)?);
        Ok(())
    }

    /// Waits for its end. Nothing closes its terminal before that.
    fn ended(&mut self) -> Result<ExitStatus> {
        let keyboard = self.process.stdin.take();
        let status = self.process.wait()?;
        drop(keyboard);
        Ok(status)
    }

    /// Waits for its end, which has to be an error, and returns what it said.
    fn fails(mut self) -> Result<String> {
        let status = self.ended()?;
        let said = fs::read_to_string(&self.said)?;
        ensure!(status.code() == Some(1) && said.contains("error:"), "{status}: {said}");
        Ok(said)
    }
}

fn socket(name: &str) -> String {
    format!("{SOCKETS}/{name}.sock")
}

/// The URI that has libvirt migrate through the tunnel.
fn through(name: &str) -> String {
    format!("unix://{}", socket(name))
}

#[test]
fn a_vm_moves_in_each_of_libvirts_ways_with_fewer_bytes_than_by_libvirt_alone() -> Result<()> {
    let lab = Lab::new()?;
    let ground = Ground::set_up(&lab)?;
    let mut guest = ground.start_vm("web", &small_guest(0, Vec::new())?)?;
    guest.ask("fill text 25165824")?;
    let _ends = (ground.target()?, ground.source(&["web"])?);
    let (uri, peer_to_peer) = (through("web"), "--p2p");
    let through = ["--migrateuri", &uri];
    for flags in [&[][..], &[peer_to_peer], &["--parallel", "--parallel-connections", "2"]] {
        let alone = ground.moves("web", flags)?;
        ensure_alive(&mut guest)?;
        ground.moves_back("web")?;
        let tunnelled = ground.moves("web", &[&through, flags].concat())?;
        ensure_alive(&mut guest)?;
        println!("virsh migrate --live {flags:?}: {alone} bytes by libvirt alone, {tunnelled} through the tunnel");
        ensure!(tunnelled < alone, "{flags:?}: {tunnelled} bytes instead of {alone}");
        ground.moves_back("web")?;
    }
    ground.moves("web", &[&through[..], &["--persistent", "--undefinesource"]].concat())?;
    ensure_alive(&mut guest)?;
    ensure!(ground.a.defined()?.is_empty() && ground.b.defined()? == ["web"]);
    Ok(())
}

#[test]
fn disks_that_are_not_shared_move_along() -> Result<()> {
    const DISK_BYTES: u64 = 64 << 20;
    let lab = Lab::new()?;
    let ground = Ground::set_up(&lab)?;
    ext4_disk(&ground.a.image("disk.img"), DISK_BYTES, None)?;
    File::create(ground.b.image("disk.img"))?.set_len(DISK_BYTES)?;
    let disk = Disk {
        file: format!("{IMAGES}/disk.img"),
        format: "raw".to_owned(),
        read_only: false,
        mount: "/disk".to_owned(),
    };
    let mut guest = ground.start_vm("db", &small_guest(0, vec![disk])?)?;
    guest.ask("disk-write /disk/log 20")?;
    let _ends = (ground.target()?, ground.source(&["db"])?);
    let (memory, disks) = (through("db"), through("disks"));
    ground.moves(
        "db",
        &["--migrateuri", &memory, "--copy-storage-all", "--disks-uri", &disks],
    )?;
    ensure_alive(&mut guest)?;
    guest.ask("disk-write /disk/log 20")?;
    ensure!(guest.ask_number("disk-check /disk/log", "records")? == 40);
    guest.power_off()?;
    ground.has(&[], &[])?;
    fsck(&ground.b.image("disk.img"), "raw")
}

#[test]
fn two_vms_move_at_once() -> Result<()> {
    let lab = Lab::new()?;
    let ground = Ground::set_up(&lab)?;
    let mut web = ground.start_vm("web", &small_guest(0, Vec::new())?)?;
    let mut db = ground.start_vm("db", &small_guest(1, Vec::new())?)?;
    let _ends = (ground.target()?, ground.source(&["web", "db"])?);
    let moves = ["web", "db"].map(|vm| ground.begin(vm, 0));
    for moved in moves {
        moved?.succeeds()?;
    }
    ground.has(&[], &["db", "web"])?;
    ensure_alive(&mut web)?;
    ensure_alive(&mut db)
}

#[test]
fn whatever_ends_the_tunnel_or_the_move_leaves_the_guest_at_its_source() -> Result<()> {
    let lab = Lab::new()?;
    let ground = Ground::set_up(&lab)?;
    let mut guest = ground.start_vm("web", &small_guest(0, Vec::new())?)?;
    guest.ask("fill random 25165824")?;
    let (mut target, mut source) = (ground.target()?, ground.source(&["web"])?);
    // All of the guest takes some ten seconds then.
    lab.set_rate(Host::A, Some(20))?;
    let mut stays = |why: &'static str| -> Result<()> {
        ground.has(&["web"], &[]).context(why)?;
        ensure_alive(&mut guest).context(why)
    };

    let mut virsh = ground.begin("web", 3 << 20)?;
    virsh.interrupt()?;
    // Whether QEMU's answer to the abort or the end of its connection is first at libvirt, decides how it calls it.
    let said = virsh.fails()?;
    ensure!(said.contains("migration out"), "{said}");
    stays("virsh was interrupted")?;

    let virsh = ground.begin("web", 3 << 20)?;
    source.kill()?;
    virsh.fails()?;
    stays("the source's end was killed")?;
    source = ground.source(&["web"])?;

    let virsh = ground.begin("web", 3 << 20)?;
    target.kill()?;
    target = ground.target()?;
    virsh.fails()?;
    stays("the target's end was killed")?;

    // The guest moves, and the link is away for a while in the middle of that. The log of the end so far tells of a link that
    // broke as well.
    source.kill()?;
    source = ground.source(&["web"])?;
    let virsh = ground.begin("web", 3 << 20)?;
    lab.link_down(Host::B)?;
    source.until_logged("the link broke")?;
    lab.link_up(Host::B)?;
    source.until_logged("the link is there again")?;
    lab.set_rate(Host::A, None)?;
    virsh.succeeds()?;
    ground.has(&[], &["web"])?;
    drop((source, target));
    ensure_alive(&mut guest)
}

/// As a manager does that neither turns the return path on nor has sockets of the same path on both hosts.
#[test]
fn bare_qemus_move_a_guest_without_a_return_path() -> Result<()> {
    let lab = Lab::new()?;
    let vmferry = built_vmferry(false)?;
    let spec = small_guest(0, Vec::new())?;
    let from = Qemu::boot(&lab, Host::A, &spec)?;
    let mut guest = Guest::connect(&lab, Host::Client, spec.address(), BOOT_MAX)?;
    guest.ask("fill text 25165824")?;
    let to = Qemu::await_guest(&lab, Host::B, &spec)?;

    let folders = ["qemus-a", "qemus-b"].map(|name| lab.folder().join(name));
    folders.iter().try_for_each(fs::create_dir)?;
    let [near, far] = folders.map(|folder| folder.display().to_string());
    let (address, socket) = (format!("{}:{PORT}", Host::B.address()), format!("{near}/web"));
    let target = ["target", "--listen", &address, "--sockets", &far];
    let source = ["source", "--to", &address, "--listen", &socket];
    let _ends = (
        TunnelEnd::start(&lab, Host::B, &vmferry, lab.command(Host::B, &vmferry), &target)?,
        TunnelEnd::start(&lab, Host::A, &vmferry, lab.command(Host::A, &vmferry), &source)?,
    );
    to.block_on(to.qmp().migrate_incoming(&format!("unix:{far}/web"), false))?;
    let (mut gone, mut here) = (from.qmp().events(), to.qmp().events());
    from.block_on(async {
        from.qmp()
            .migrate_set_capabilities(&[(Capability::Events, true)])
            .await?;
        from.qmp().migrate(&format!("unix:{socket}")).await?;
        loop {
            match gone.next().await?.kind {
                EventKind::Migration(MigrationStatus::Completed) => return Ok(()),
                EventKind::Migration(MigrationStatus::Failed) => return Err(anyhow!("it failed")),
                _ => {}
            }
        }
    })?;
    to.block_on(async {
        while here.next().await.context("the target's QEMU ended")?.kind != EventKind::Resume {}
        Ok::<_, anyhow::Error>(())
    })?;
    ensure_alive(&mut guest)
}
