//! Who is not of the cluster does not disturb those who are.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use vmferry::pki::{Authority, Folder, Identity};
use vmferry_core::wire::hello::{Hello, Lane, VERSIONS};
use vmferry_dataplane::connection;
use vmferry_e2e::agent::PORT;
use vmferry_e2e::migration::{Migration, ensure_moved_and_verified};
use vmferry_e2e::net::{Host, Lab};
use vmferry_e2e::pki::{AUTHORITY, join, pki};
use vmferry_e2e::scenario::{Scenario, address, ensure_alive, small_guest};

/// More than the agent greets at once, by far.
const HALF_OPEN: usize = 400;
/// An agent lets strangers go within ten seconds.
const LET_GO_MAX: Duration = Duration::from_secs(30);

/// Where both agents are reached.
fn agents() -> [SocketAddr; 2] {
    [Host::A, Host::B].map(|host| SocketAddr::from((host.address(), PORT)))
}

/// Connects to every port of both hosts below the agents', and to theirs.
fn scan() -> Result<()> {
    let mut open = 0;
    for agent in agents() {
        for port in (1..2000).chain([PORT]) {
            let address = SocketAddr::new(agent.ip(), port);
            open += usize::from(TcpStream::connect_timeout(&address, LET_GO_MAX).is_ok());
        }
    }
    ensure!(open == 2, "{open} ports are open: each agent has one");
    Ok(())
}

/// Says what no agent says, and is let go.
fn garbage() -> Result<()> {
    let plain = [&b"vmferry\x01"[..], &[0xff; 64]].concat();
    // The beginning of a TLS record, and of one with a ClientHello that is none.
    let records = [&[22, 3, 1, 0xff, 0xff][..], &[22, 3, 1, 0, 8, 1, 0, 0, 4, 9, 9, 9, 9]];
    for agent in agents() {
        for bytes in [
            &[0; 1000],
            &plain[..],
            b"GET / HTTP/1.1\r\n\r\n",
            records[0],
            records[1],
        ] {
            let mut stranger = TcpStream::connect(agent)?;
            stranger.set_read_timeout(Some(LET_GO_MAX))?;
            stranger.write_all(bytes)?;
            stranger.shutdown(std::net::Shutdown::Write)?;
            let mut answer = Vec::new();
            match stranger.read_to_end(&mut answer) {
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
                Err(error) => bail!("{agent} does not let go of who says {:02x?}: {error}", &bytes[..8]),
            }
            ensure!(
                answer.len() < 1000,
                "{agent} answers a stranger with {} bytes",
                answer.len()
            );
        }
    }
    Ok(())
}

/// Introduces itself with the certificate in that folder; gives what both agents say.
fn introduces(lab: &Lab, from: Host, folder: &Folder) -> Result<[Result<(), String>; 2]> {
    let identity = Identity::open(folder.clone())?;
    let hello = Hello {
        versions: VERSIONS,
        host: folder.certificate()?.host,
        software: "test".to_owned(),
        port: PORT,
        lane: Lane::Control,
        connection: None,
        heard: None,
    };
    lab.within(from, || {
        Ok(agents().map(|agent| {
            let connected = connection::connect(agent, identity.shown(), &hello, Duration::ZERO);
            connected.map(drop).map_err(|error| error.to_string())
        }))
    })
}

#[test]
fn strangers_leave_a_running_migration_undisturbed() -> Result<()> {
    let lab = Lab::new()?;
    let scenario = Scenario::set_up(&lab)?;
    let mut guest = scenario.run(Host::A, "web", &small_guest(0, Vec::new())?)?;
    guest.ask("fill random 25165824")?;

    // One that has a certificate of the cluster, and one of a cluster of its own whose host has a known name.
    std::fs::create_dir_all(lab.folder().join(Host::Storage.name()))?;
    join(&lab, Host::Storage, scenario.vmferry())?;
    let revoked = Folder::new(&lab.folder().join(Host::Storage.name()));
    let elsewhere: PathBuf = lab.folder().join("elsewhere");
    std::fs::create_dir_all(&elsewhere)?;
    let wrong = Folder::new(&elsewhere);
    Authority::create(&wrong, Host::B.name(), "elsewhere:1")?;
    for welcome in introduces(&lab, Host::Storage, &revoked)? {
        assert_eq!(welcome, Ok(()));
    }

    let mut migration = Migration::begin(
        &scenario.a,
        "web",
        &address(Host::B),
        &["--bandwidth", "2MB/s", "--verify"],
    )?;
    migration.until_precopy()?;

    lab.within(Host::Client, scan)?;
    lab.within(Host::Client, garbage)?;
    let output = pki(&lab, AUTHORITY, scenario.vmferry())
        .args(["revoke", Host::Storage.name()])
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Both agents know of it by then: one has the authority, and the other is told by the command.
    let [at_a, at_b] = introduces(&lab, Host::Storage, &revoked)?;
    for said in [at_a, at_b] {
        let said = said.err().context("a revoked host is welcome")?;
        ensure!(said.contains("certificate was revoked"), "{said}");
    }
    for said in introduces(&lab, Host::Client, &wrong)? {
        let said = said.err().context("a host of another cluster is welcome")?;
        ensure!(said.contains("of another cluster"), "{said}");
    }
    // Held open until the end, half of them with the beginning of a handshake.
    let half_open = lab.within(Host::Client, || {
        let mut held = Vec::new();
        for number in 0..HALF_OPEN {
            let mut stranger = TcpStream::connect(agents()[number % 2])?;
            if number % 4 < 2 {
                // It may have been closed for a later one.
                let _ = stranger.write_all(&[22, 3, 1, 1, 0]);
            }
            held.push(stranger);
        }
        Ok(held)
    })?;

    let listed = scenario.a.cli(["ps"])?.success()?;
    ensure!(
        !listed["migration"].is_null(),
        "it was over before all strangers had come: {listed}"
    );
    let report = migration.report()?;
    ensure_moved_and_verified(&report)?;
    ensure_alive(&mut guest)?;
    // And the way back begins while they hold what they can.
    scenario.moves("web", Host::B, Host::A, &[])?;
    drop(half_open);
    scenario.settles(&["web"], &[])?;
    ensure_alive(&mut guest)
}
