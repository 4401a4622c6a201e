//! What an agent is told at its start, by flags and by a file.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use clap::Args;
use serde::Deserialize;

use crate::{
    api::types::PORT_DEFAULT,
    config::Document,
    policy::{Policy, PolicySettings},
    vm::{ByteSize, UserRange},
};

/// Memory that an agent keeps free for its host where nothing else is said.
const MEMORY_HEADROOM_DEFAULT: ByteSize = ByteSize(256 << 20);

/// Bytes a second that are read for indexes, where nothing else is said: a fraction of what a disk of today reads.
const INDEX_BANDWIDTH_DEFAULT: ByteSize = ByteSize(200 << 20);
/// Room for indexes, where nothing else is said: those of 1 TiB of disks.
const INDEX_SPACE_DEFAULT: ByteSize = ByteSize(2 << 30);
/// Memory for indexes, where nothing else is said: those of 60 GiB of content.
const INDEX_MEMORY_DEFAULT: ByteSize = ByteSize(256 << 20);

/// Room for memory of VMs that left, where nothing else is said.
const KEPT_MEMORY_DEFAULT: ByteSize = ByteSize(8 << 30);

/// Settings of an agent: each is a flag of `vmferry agent` and a key of its configuration file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Args)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Settings {
    /// Where other agents reach this one [default: 0.0.0.0:7464].
    #[arg(long, value_name = "IP:PORT")]
    pub listen: Option<SocketAddr>,
    /// The journal, and a folder for each VM [default: /var/lib/vmferry].
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// The API's socket; the command line has it as a flag of every command.
    #[arg(skip)]
    pub socket: Option<PathBuf>,
    /// What this host is called in reports [default: the host name].
    #[arg(long)]
    pub name: Option<String>,
    /// The QEMU that runs the guests [default: qemu-system-x86_64].
    #[arg(long, value_name = "PATH")]
    pub qemu: Option<PathBuf>,
    /// Most memory that all guests together may have [default: what the host has].
    #[arg(long, value_name = "SIZE")]
    pub memory_limit: Option<ByteSize>,
    /// Memory that guests taken in must leave free [default: 256MiB].
    #[arg(long, value_name = "SIZE")]
    pub memory_headroom: Option<ByteSize>,
    /// An image whose content guests here are likely to have in memory, such as the one that their disks were made from; may
    /// be given several times. Pages that stand in it are not sent to a host that has the same image, by whatever path.
    #[arg(long = "image", value_name = "PATH")]
    #[serde(rename = "images")]
    pub images: Vec<PathBuf>,
    /// Disks and images are read for their indexes by at most so much a second [default: 200MiB].
    #[arg(long, value_name = "SIZE")]
    pub index_bandwidth: Option<ByteSize>,
    /// Room for indexes in the state directory; one takes 1/512 of its disk [default: 2GiB].
    #[arg(long, value_name = "SIZE")]
    pub index_space: Option<ByteSize>,
    /// Memory for indexes while a VM is moved away, for each: 17 bytes for each 4 KiB of its disks and of images, 8 where
    /// they hold zeros, and up to 30 for each of what the target kept of the VM. What it does not suffice for is sent
    /// [default: 256MiB].
    #[arg(long, value_name = "SIZE")]
    pub index_memory: Option<ByteSize>,
    /// Room in the state directory for memory of VMs that left, encrypted, so that little of it has to be sent if they come
    /// back; 0 to keep none [default: 8GiB].
    #[arg(long, value_name = "SIZE")]
    pub kept_memory: Option<ByteSize>,
    /// The key of that memory, 32 random bytes; made where it is absent [default: content.key in the state directory].
    #[arg(long, value_name = "PATH")]
    pub kept_memory_key: Option<PathBuf>,
    /// Serve the API over TLS here, too, for every host of the cluster: whoever has a certificate of it may start, move and stop
    /// VMs on this host [default: on the socket only].
    #[arg(long, value_name = "IP:PORT")]
    pub api_listen: Option<SocketAddr>,
    /// Talk to other agents without encryption, and believe whoever connects. For measurements, on a network of their own:
    /// without it an agent needs a certificate, which `vmferry pki init` or `vmferry pki join` makes.
    #[arg(long)]
    pub insecure_plaintext: bool,
    /// Users that QEMUs run as, one for each VM; nobody else may have these numbers, nor groups of them [default:
    /// 300000-365535].
    #[arg(long, value_name = "FIRST-LAST")]
    pub qemu_users: Option<UserRange>,
    /// What other hosts may do here; only in the file.
    #[arg(skip)]
    pub policy: Option<PolicySettings>,
    /// Who says which host has a VM when one of the two of a migration is gone for ever: etcd, by its nodes' addresses, such
    /// as etcd:http://a:2379,http://b:2379,http://c:2379. The same on every host [default: nobody, and a host that is gone
    /// is waited for].
    #[arg(long, value_name = "etcd:URL,URL,URL")]
    pub arbiter: Option<String>,
    /// What the arbiter's keys begin with [default: /vmferry].
    #[arg(long, value_name = "PREFIX")]
    pub arbiter_prefix: Option<String>,
    /// The certificate by which those of the arbiter's nodes are signed, PEM, where they are reached by https.
    #[arg(long, value_name = "PATH")]
    pub arbiter_ca: Option<PathBuf>,
    /// This host's certificate towards the arbiter, PEM, if its nodes ask for one.
    #[arg(long, value_name = "PATH")]
    pub arbiter_cert: Option<PathBuf>,
    /// The key of that certificate, PEM.
    #[arg(long, value_name = "PATH")]
    pub arbiter_key: Option<PathBuf>,
}

/// Where an arbiter is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArbiterSettings {
    /// The addresses of etcd's nodes.
    pub urls: Vec<String>,
    /// What its keys begin with.
    pub prefix: String,
    /// The certificate of who signed those of the nodes.
    pub ca: Option<PathBuf>,
    /// This host's certificate.
    pub certificate: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
}

/// Settings with every default filled in, and paths absolute: QEMU changes its working directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where other agents reach this one.
    pub listen: SocketAddr,
    /// The journal, and a folder for each VM.
    pub state_dir: PathBuf,
    /// The API's socket.
    pub socket: PathBuf,
    /// What this host is called.
    pub name: String,
    /// The QEMU that runs the guests.
    pub qemu: PathBuf,
    /// Most memory that all guests together may have; none for what the host has.
    pub memory_limit: Option<ByteSize>,
    /// Memory that guests taken in must leave free.
    pub memory_headroom: ByteSize,
    /// Images whose content guests are likely to have.
    pub images: Vec<PathBuf>,
    /// Bytes a second that are read for indexes.
    pub index_bandwidth: ByteSize,
    /// Room for indexes on disk.
    pub index_space: ByteSize,
    /// Memory for indexes while a VM is moved away, for each.
    pub index_memory: ByteSize,
    /// Room for memory of VMs that left.
    pub kept_memory: ByteSize,
    /// The key of that memory.
    pub kept_memory_key: PathBuf,
    /// Where the API is served over TLS, if it is.
    pub api_listen: Option<SocketAddr>,
    /// Whether other agents are talked to without encryption.
    pub insecure_plaintext: bool,
    /// Users that QEMUs run as.
    pub qemu_users: UserRange,
    /// What other hosts may do here.
    pub policy: Policy,
    /// The arbiter, if there is one.
    pub arbiter: Option<ArbiterSettings>,
}

/// The state directory where none is named.
pub fn default_state_dir() -> PathBuf {
    PathBuf::from("/var/lib/vmferry")
}

/// The API's socket where none is named.
pub fn default_socket() -> PathBuf {
    PathBuf::from("/run/vmferry/agent.sock")
}

impl Settings {
    /// These settings, and what they leave open from the file.
    ///
    /// # Errors
    /// A sentence for people, with the file's line where there is one.
    pub fn or_from_file(self, file: Option<&Path>) -> Result<Settings, String> {
        let Some(path) = file else { return Ok(self) };
        let text = std::fs::read_to_string(path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
        let file = Document::parse(&text, Some(path)).and_then(|document| document.read());
        Ok(self.or(file.map_err(|mistake| mistake.to_string())?))
    }

    fn or(self, other: Settings) -> Settings {
        Settings {
            listen: self.listen.or(other.listen),
            state_dir: self.state_dir.or(other.state_dir),
            socket: self.socket.or(other.socket),
            name: self.name.or(other.name),
            qemu: self.qemu.or(other.qemu),
            memory_limit: self.memory_limit.or(other.memory_limit),
            memory_headroom: self.memory_headroom.or(other.memory_headroom),
            images: if self.images.is_empty() {
                other.images
            } else {
                self.images
            },
            index_bandwidth: self.index_bandwidth.or(other.index_bandwidth),
            index_space: self.index_space.or(other.index_space),
            index_memory: self.index_memory.or(other.index_memory),
            kept_memory: self.kept_memory.or(other.kept_memory),
            kept_memory_key: self.kept_memory_key.or(other.kept_memory_key),
            api_listen: self.api_listen.or(other.api_listen),
            insecure_plaintext: self.insecure_plaintext || other.insecure_plaintext,
            qemu_users: self.qemu_users.or(other.qemu_users),
            policy: self.policy.or(other.policy),
            arbiter: self.arbiter.or(other.arbiter),
            arbiter_prefix: self.arbiter_prefix.or(other.arbiter_prefix),
            arbiter_ca: self.arbiter_ca.or(other.arbiter_ca),
            arbiter_cert: self.arbiter_cert.or(other.arbiter_cert),
            arbiter_key: self.arbiter_key.or(other.arbiter_key),
        }
    }

    /// Every setting, with the defaults.
    ///
    /// # Errors
    /// The system's, where a relative path has no working directory to start from.
    pub fn resolve(self) -> io::Result<Config> {
        let host_name = || rustix::system::uname().nodename().to_string_lossy().into_owned();
        let qemu = self.qemu.unwrap_or_else(|| PathBuf::from("qemu-system-x86_64"));
        let state_dir = std::path::absolute(self.state_dir.unwrap_or_else(default_state_dir))?;
        let arbiter = self.arbiter.as_deref().map(|arbiter| {
            let urls = arbiter.strip_prefix("etcd:").ok_or_else(|| {
                let why = format!("--arbiter {arbiter:?}: only etcd can be asked; write etcd:URL,URL,URL");
                io::Error::new(io::ErrorKind::InvalidInput, why)
            })?;
            Ok::<_, io::Error>(ArbiterSettings {
                urls: urls.split(',').map(|url| url.trim().to_owned()).collect(),
                prefix: self.arbiter_prefix.clone().unwrap_or_else(|| "/vmferry".to_owned()),
                ca: self.arbiter_ca.clone(),
                certificate: self.arbiter_cert.clone(),
                key: self.arbiter_key.clone(),
            })
        });
        let is_looked_up_in_path = qemu.components().count() == 1;
        Ok(Config {
            listen: self
                .listen
                .unwrap_or_else(|| SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT_DEFAULT))),
            socket: std::path::absolute(self.socket.unwrap_or_else(default_socket))?,
            name: self.name.unwrap_or_else(host_name),
            qemu: if is_looked_up_in_path {
                qemu
            } else {
                std::path::absolute(qemu)?
            },
            arbiter: arbiter.transpose()?,
            memory_limit: self.memory_limit,
            memory_headroom: self.memory_headroom.unwrap_or(MEMORY_HEADROOM_DEFAULT),
            images: self
                .images
                .into_iter()
                .map(std::path::absolute)
                .collect::<io::Result<_>>()?,
            index_bandwidth: self.index_bandwidth.unwrap_or(INDEX_BANDWIDTH_DEFAULT),
            index_space: self.index_space.unwrap_or(INDEX_SPACE_DEFAULT),
            index_memory: self.index_memory.unwrap_or(INDEX_MEMORY_DEFAULT),
            kept_memory: self.kept_memory.unwrap_or(KEPT_MEMORY_DEFAULT),
            kept_memory_key: std::path::absolute(
                self.kept_memory_key.unwrap_or_else(|| state_dir.join("content.key")),
            )?,
            api_listen: self.api_listen,
            insecure_plaintext: self.insecure_plaintext,
            qemu_users: self.qemu_users.unwrap_or_default(),
            policy: self.policy.unwrap_or_default().resolve(),
            state_dir,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Places;

    #[test]
    fn flags_win_over_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "name = \"b\"\nmemory-limit = \"8GiB\"\n").unwrap();
        let flags = Settings {
            name: Some("a".to_owned()),
            ..Settings::default()
        };
        let settings = flags.or_from_file(Some(file.path())).unwrap();
        assert_eq!(settings.name.as_deref(), Some("a"));
        assert_eq!(settings.memory_limit, Some(ByteSize(8 << 30)));
    }

    #[test]
    fn a_wrong_key_is_named_with_its_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "name = \"b\"\nlistne = \"0.0.0.0:1\"\n").unwrap();
        let error = Settings::default().or_from_file(Some(file.path())).unwrap_err();
        let place = format!("{}:2:1: ", file.path().display());
        assert!(
            error.starts_with(&place) && error.contains("did you mean \"listen\"?"),
            "{error}"
        );
    }

    #[test]
    fn a_wrong_policy_is_told_with_its_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(
            file.path(),
            "name = \"b\"\n[policy]\nbridges = [\"br0\"]\nvms-max = -1\n",
        )
        .unwrap();
        let error = Settings::default().or_from_file(Some(file.path())).unwrap_err();
        assert!(error.contains(":4:11: expected a whole number"), "{error}");
    }

    /// What the package installs, with all that is commented out in force.
    fn sample() -> String {
        let sample = include_str!("../../../../packaging/agent.toml");
        let is_key = |text: &&str| text.starts_with(|c: char| c.is_ascii_lowercase()) && text.contains(" = ");
        let lines = sample.lines();
        lines
            .map(|line| line.strip_prefix('#').filter(is_key).unwrap_or(line).to_owned() + "\n")
            .collect()
    }

    #[test]
    fn the_sample_has_every_key() {
        let text = sample();
        let read: Settings = Document::parse(&text, None).unwrap().read().unwrap();
        let Settings {
            listen,
            state_dir,
            socket,
            name,
            qemu,
            memory_limit,
            memory_headroom,
            images,
            index_bandwidth,
            index_space,
            index_memory,
            kept_memory,
            kept_memory_key,
            api_listen,
            insecure_plaintext: _,
            qemu_users,
            policy,
            arbiter,
            arbiter_prefix,
            arbiter_ca,
            arbiter_cert,
            arbiter_key,
        } = read;
        let PolicySettings {
            version,
            senders,
            disk_directories,
            disk_uris,
            serial_directories,
            bridges,
            taps,
            memory_max,
            vms_max,
            qemu_arguments,
        } = policy.unwrap();
        let paths = [
            state_dir,
            socket,
            qemu,
            kept_memory_key,
            arbiter_ca,
            arbiter_cert,
            arbiter_key,
        ];
        assert!(paths.iter().all(Option::is_some) && !images.is_empty());
        let sizes = [
            memory_limit,
            memory_headroom,
            index_bandwidth,
            index_space,
            index_memory,
            kept_memory,
            memory_max,
        ];
        assert!(sizes.iter().all(Option::is_some));
        assert!([name, arbiter, arbiter_prefix].iter().all(Option::is_some));
        assert!([senders, bridges, taps].iter().all(Option::is_some));
        assert!([disk_directories, serial_directories].iter().all(Option::is_some));
        assert!(listen.is_some() && api_listen.is_some() && qemu_users.is_some() && version.is_some());
        assert!(disk_uris.is_some() && vms_max.is_some() && qemu_arguments.is_some());
    }

    #[test]
    fn what_the_sample_calls_defaults_are_the_defaults() {
        let text = sample();
        let read: Settings = Document::parse(&text, None).unwrap().read().unwrap();
        let (shown, default) = (read.resolve().unwrap(), Settings::default().resolve().unwrap());
        let defaults = Config {
            name: default.name.clone(),
            memory_limit: default.memory_limit,
            images: default.images.clone(),
            api_listen: default.api_listen,
            policy: Policy {
                disks: Places {
                    directories: shown.policy.disks.directories.clone(),
                    ..default.policy.disks.clone()
                },
                ..default.policy.clone()
            },
            arbiter: None,
            ..shown.clone()
        };
        assert_eq!(defaults, default);
        assert_eq!(shown.arbiter.unwrap().prefix, "/vmferry");
        let as_installed: Settings = Document::parse(include_str!("../../../../packaging/agent.toml"), None)
            .unwrap()
            .read()
            .unwrap();
        assert_eq!(
            as_installed.resolve().unwrap(),
            default,
            "nothing is set before somebody sets it"
        );
    }

    #[test]
    fn paths_become_absolute_but_a_program_to_look_up_stays_a_name() {
        let settings = Settings {
            state_dir: Some("state".into()),
            qemu: Some("./q".into()),
            ..Settings::default()
        };
        let config = settings.resolve().unwrap();
        assert!(config.state_dir.is_absolute() && config.socket.is_absolute() && config.qemu.is_absolute());
        assert_eq!(
            Settings::default().resolve().unwrap().qemu,
            PathBuf::from("qemu-system-x86_64")
        );
    }
}
