//! Hosts that join a cluster, renew their certificates and are revoked, by the command line and running agents.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use vmferry::pki::{Certificate, Folder, Identity, client};
use vmferry_core::wire::hello::{Hello, Lane, VERSIONS};
use vmferry_dataplane::connection;
use vmferry_dataplane::transport::{self, Limits};

const VMFERRY: &str = env!("CARGO_BIN_EXE_vmferry");

/// A host: a state directory, and an agent while one runs.
struct Host {
    name: &'static str,
    folder: TempDir,
    /// Further ones of the agent.
    options: Vec<String>,
    agent: Option<Child>,
    peers: SocketAddr,
}

impl Host {
    fn new(name: &'static str) -> Host {
        Host {
            name,
            folder: TempDir::new().unwrap(),
            options: Vec::new(),
            agent: None,
            peers: SocketAddr::from(([127, 0, 0, 1], 0)),
        }
    }

    fn pki(&self) -> Folder {
        Folder::new(self.folder.path())
    }

    fn identity(&self) -> Identity {
        Identity::open(self.pki()).unwrap()
    }

    fn certificate(&self) -> Certificate {
        self.pki().certificate().unwrap()
    }

    async fn start_agent(&mut self, port: u16) {
        let mut agent = self.agent_command(port).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(agent.stdout.take().unwrap());
        stdout.read_line(&mut line).await.unwrap();
        let address = line
            .split("listening on ")
            .nth(1)
            .and_then(|rest| rest.split(',').next());
        self.peers = address.and_then(|address| address.parse().ok()).expect(&line);
        self.agent = Some(agent);
    }

    fn agent_command(&self, port: u16) -> Command {
        let mut command = Command::new(VMFERRY);
        command
            .args(["agent", "--listen", &format!("127.0.0.1:{port}"), "--state-dir"])
            .arg(self.folder.path())
            .arg("--socket")
            .arg(self.folder.path().join("agent.sock"))
            .args(&self.options)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Runs `vmferry pki`, with that on its standard input.
    async fn ask(&self, arguments: &[&str], input: &str) -> Output {
        let mut command = Command::new(VMFERRY);
        command
            .args(["--json", "pki"])
            .args(arguments)
            .arg("--state-dir")
            .arg(self.folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stdin = child.stdin.take().unwrap().into_owned_fd().unwrap();
        // One that does not read its input may be gone.
        let _ = fs::File::from(stdin).write_all(input.as_bytes());
        child.wait_with_output().await.unwrap()
    }

    async fn does(&self, arguments: &[&str], input: &str) -> Value {
        let output = self.ask(arguments, input).await;
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// It fails, and says this.
    async fn fails(&self, arguments: &[&str], input: &str, with: &str) {
        let output = self.ask(arguments, input).await;
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && said.contains(with), "{arguments:?}: {said}");
    }

    /// Connects to another's agent as this host's would.
    fn connects_to(&self, other: &Host) -> Result<(), String> {
        connects(&self.identity(), self.name, other.peers)
    }
}

fn connects(identity: &Identity, name: &str, address: SocketAddr) -> Result<(), String> {
    let hello = Hello {
        versions: VERSIONS,
        host: name.to_owned(),
        software: "test".to_owned(),
        port: 1,
        lane: Lane::Control,
        connection: None,
        heard: None,
    };
    let connected = connection::connect(address, identity.shown(), &hello, std::time::Duration::ZERO);
    connected.map(drop).map_err(|error| error.to_string())
}

/// A port of this host that nobody else gets, as the authority's address has to be known before its agent runs.
fn free_port() -> u16 {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    socket.local_addr().unwrap().port()
}

/// The host of an authority, with its agent.
async fn authority() -> Host {
    let mut a = Host::new("a");
    let port = free_port();
    a.does(&["init", "--name", "a", "--address", &format!("127.0.0.1:{port}")], "")
        .await;
    a.start_agent(port).await;
    a
}

async fn token(authority: &Host, host: &str) -> String {
    authority.does(&["invite", host], "").await["token"]
        .as_str()
        .unwrap()
        .to_owned()
}

async fn joined(authority: &Host, name: &'static str) -> Host {
    let host = Host::new(name);
    let token = token(authority, name).await;
    assert_eq!(host.does(&["join", "--token-file", "-"], &token).await["host"], name);
    host
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_joins_once_with_its_token_and_not_with_another() {
    let a = authority().await;
    let secret = token(&a, "b").await;
    let b = Host::new("b");
    // From a file as well as from standard input; nothing of it remains in the folder.
    let file = b.folder.path().join("token");
    fs::write(&file, &secret).unwrap();
    b.does(&["join", "--token-file", file.to_str().unwrap()], "").await;
    fs::remove_file(file).unwrap();
    assert_eq!(b.connects_to(&a), Ok(()));
    assert_eq!(mode(&b.folder.path().join("pki")), 0o700);
    let files: Vec<PathBuf> = [a.folder.path(), b.folder.path()]
        .iter()
        .flat_map(|folder| fs::read_dir(folder.join("pki")).unwrap())
        .map(|file| file.unwrap().path())
        .collect();
    let hidden = secret.rsplit('/').next().unwrap();
    for file in &files {
        assert_eq!(mode(file), 0o600, "{}", file.display());
        assert!(
            !fs::read_to_string(file).unwrap().contains(hidden),
            "{}",
            file.display()
        );
    }

    let c = Host::new("c");
    c.fails(&["join", "--token-file", "-"], &secret, "the token was used")
        .await;
    c.fails(
        &["join", "--token-file", "-"],
        &secret[..secret.len() - 2],
        "is damaged",
    )
    .await;
    c.fails(&["join", "--token-file", "-"], "hunter2", "that is no token")
        .await;
    // Another's secret, and a later token for the same host.
    let first = token(&a, "c").await;
    let second = token(&a, "c").await;
    c.fails(&["join", "--token-file", "-"], &first, "another was made")
        .await;
    let made_up = format!("{}{}", &second[..second.len() - 64], "0".repeat(64));
    c.fails(&["join", "--token-file", "-"], &made_up, "the token was used")
        .await;
    assert!(!c.pki().has_certificate());
    c.does(&["join", "--token-file", "-"], &second).await;
    c.fails(&["join", "--token-file", "-"], &second, "of a cluster already")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_has_expired_is_of_no_use() {
    let a = authority().await;
    let secret = token(&a, "b").await;
    let ledger = a.folder.path().join("pki/ledger.json");
    let mut entries: Value = serde_json::from_slice(&fs::read(&ledger).unwrap()).unwrap();
    entries["invitations"][0]["until_unix"] = 1_000_000.into();
    fs::write(&ledger, entries.to_string()).unwrap();
    let b = Host::new("b");
    b.fails(&["join", "--token-file", "-"], &secret, "has expired").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_does_not_give_its_token_to_a_stranger() {
    let (a, stranger) = (authority().await, authority().await);
    let secret = token(&a, "b").await;
    // The token leads to a stranger, who has an authority of the same host's name.
    let diverted = secret.replace(&a.peers.to_string(), &stranger.peers.to_string());
    assert_ne!(diverted, secret);
    let b = Host::new("b");
    b.fails(&["join", "--token-file", "-"], &diverted, "of another cluster")
        .await;
    // It was not used up.
    b.does(&["join", "--token-file", "-"], &secret).await;
    assert!(b.connects_to(&stranger).unwrap_err().contains("of another cluster"));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_authority_invites_nobody_and_takes_nobody_in() {
    let a = authority().await;
    let mut b = joined(&a, "b").await;
    b.start_agent(0).await;
    b.fails(&["invite", "c"], "", "authority is on a").await;
    b.fails(&["revoke", "a"], "", "authority is on a").await;
    let secret = token(&a, "c").await.replace(&a.peers.to_string(), &b.peers.to_string());
    let c = Host::new("c");
    c.fails(
        &["join", "--token-file", "-"],
        &secret,
        "does not do what this connection is for",
    )
    .await;
    for name in ["C", "c d", "c.", ""] {
        a.fails(&["invite", name], "", "host's name").await;
    }
    a.fails(&["init", "--name", "a"], "", "of a cluster already").await;
    c.fails(&["status"], "", "vmferry pki init").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_uses_a_new_certificate_from_the_next_connection_on() {
    let a = authority().await;
    let mut b = joined(&a, "b").await;
    b.start_agent(0).await;
    let seen = || {
        let security = a.identity().security();
        let link = transport::connect(b.peers, Limits::default(), &security, transport::Purpose::Lane);
        assert_eq!(link.unwrap().host(), Some("b"));
    };
    seen();
    let before = b.certificate();
    b.does(&["rotate"], "").await;
    assert_ne!(b.certificate().serial, before.serial);
    seen();
    // The old one is still valid; now it is of no use, and the agent shows the new one.
    let of_authority = a.certificate();
    a.does(&["rotate"], "").await;
    assert_ne!(a.certificate().serial, of_authority.serial);
    assert_eq!(b.connects_to(&a), Ok(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_renews_its_certificate_when_two_thirds_of_its_life_are_over() {
    let a = authority().await;
    let mut b = joined(&a, "b").await;
    // One as the authority signs them, six days ago.
    let file = |name: &str| fs::read_to_string(a.folder.path().join("pki").join(name)).unwrap();
    let key = rcgen::KeyPair::from_pem(&file("authority.key")).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_pem(&file("authority.pem"), key).unwrap();
    let mut params = rcgen::CertificateParams::new(["b".to_owned()]).unwrap();
    let now = time::OffsetDateTime::now_utc();
    (params.not_before, params.not_after) = (now - time::Duration::days(6), now + time::Duration::days(1));
    params.extended_key_usages = vec![
        rcgen::ExtendedKeyUsagePurpose::ServerAuth,
        rcgen::ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.use_authority_key_identifier_extension = true;
    let key = rcgen::KeyPair::generate().unwrap();
    let old = params.signed_by(&key, &issuer).unwrap().pem() + &key.serialize_pem();
    fs::write(b.pki().host(), old).unwrap();
    let old = b.certificate();
    assert!(old.is_to_be_renewed());
    b.start_agent(0).await;
    while b.certificate() == old {
        tokio::task::yield_now().await;
    }
    assert!(!b.certificate().is_to_be_renewed());
    assert_eq!(b.connects_to(&a), Ok(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_revoked_is_trusted_nowhere() {
    let a = authority().await;
    let mut b = joined(&a, "b").await;
    b.start_agent(0).await;
    let c = joined(&a, "c").await;
    // Where b's agent listens, the authority learns when it asks for something.
    b.does(&["rotate", "--port", &b.peers.port().to_string()], "").await;
    assert_eq!(c.connects_to(&b), Ok(()));
    let told = a.does(&["revoke", "c"], "").await;
    assert_eq!(told["unaware"], serde_json::json!([]));
    for host in [&a, &b] {
        let said = c.connects_to(host).unwrap_err();
        assert!(said.contains("certificate was revoked"), "{said}");
    }
    c.fails(&["rotate"], "", "was revoked").await;
    a.fails(&["revoke", "d"], "", "those that do: a, b, c").await;
    assert_eq!(b.does(&["status"], "").await["revocations"]["number"], 2);
    // Invited again, it is trusted again: only that certificate is not.
    fs::remove_dir_all(c.folder.path().join("pki")).unwrap();
    let again = token(&a, "c").await;
    c.does(&["join", "--token-file", "-"], &again).await;
    assert_eq!(c.connects_to(&b), Ok(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_revocations_counts_if_it_is_genuine_and_newer() {
    let (a, other) = (authority().await, authority().await);
    let (b, c) = (joined(&a, "b").await, joined(&a, "c").await);
    let lists = |host: &Host| fs::read(host.pki().revoked()).unwrap();
    let before = lists(&b);
    a.does(&["revoke", "c"], "").await;
    // b's agent does not run, so b was not told; it asks.
    assert_eq!(lists(&b), before);
    let folder = b.pki();
    assert!(
        tokio::task::spawn_blocking(move || client::fetch_revocations(&folder))
            .await
            .unwrap()
            .unwrap()
    );
    assert_eq!(lists(&b), lists(&a));
    // An older list of the same authority, handed on by a host of the cluster, changes nothing.
    let mut b = b;
    b.start_agent(0).await;
    fs::write(a.folder.path().join("older"), &before).unwrap();
    let newer = lists(&a);
    fs::write(a.pki().revoked(), &before).unwrap();
    let (folder, address) = (a.pki(), b.peers.to_string());
    tokio::task::spawn_blocking(move || client::tell_revocations(&folder, "b", &address))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(lists(&b), newer);
    // Another authority's, with a higher number.
    let _d = joined(&other, "d").await;
    other.does(&["revoke", "d"], "").await;
    other.does(&["revoke", "d"], "").await;
    fs::write(a.pki().revoked(), lists(&other)).unwrap();
    let (folder, address) = (a.pki(), b.peers.to_string());
    let told = tokio::task::spawn_blocking(move || client::tell_revocations(&folder, "b", &address))
        .await
        .unwrap();
    assert!(told.is_err());
    assert_eq!(lists(&b), newer);
    drop(c);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_is_served_to_hosts_of_the_cluster_and_to_nobody_else() {
    let port = free_port();
    let (mut a, address) = (Host::new("localhost"), format!("localhost:{port}"));
    a.does(
        &[
            "init",
            "--name",
            "localhost",
            "--address",
            &format!("127.0.0.1:{}", free_port()),
        ],
        "",
    )
    .await;
    a.options = vec!["--api-listen".to_owned(), format!("127.0.0.1:{port}")];
    a.start_agent(0).await;
    let stranger = authority().await;
    let asks = |host: &Host, address: &str| {
        let mut command = Command::new(VMFERRY);
        command
            .args(["--host", address, "--credentials"])
            .arg(host.folder.path())
            .args(["ps", "--json"]);
        command
    };
    let answer = asks(&a, &address).output().await.unwrap();
    assert!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr));
    let nobody = Host::new("nobody");
    for (mut command, with) in [
        (asks(&stranger, &address), "of another cluster"),
        (asks(&nobody, &address), "no certificate"),
        // Lanes are not asked for what the API is, and the socket's HTTP does not speak TLS.
        (asks(&a, &a.peers.to_string()), "no agent's API"),
        (asks(&stranger, &format!("127.0.0.1:{port}")), "of another cluster"),
    ] {
        let answer = command.output().await.unwrap();
        let said = String::from_utf8(answer.stderr).unwrap();
        assert!(!answer.status.success() && said.contains(with), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_without_a_certificate_does_not_start() {
    let host = Host::new("a");
    let output = host.agent_command(0).output().await.unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success(), "{said}");
    assert!(
        said.contains("vmferry pki init") && said.contains("vmferry pki join"),
        "{said}"
    );
    let a = authority().await;
    let mut named = a.agent_command(0);
    let output = named.args(["--name", "z"]).output().await.unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        !output.status.success() && said.contains("its certificate is for a"),
        "{said}"
    );
}
