//! Points at which an agent ends, to be upgraded or by a crash, and what the next one finds. Those of handovers are those of
//! docs/handover.md.

use vmferry::agent::record::Record;
use vmferry::vm::VmDefinition;
use vmferry_core::handover::{AfterRestart, Record as Fact};
use vmferry_core::wire::hello::MigrationId;
use vmferry_core::wire::message::{Epoch, Handover};

const DEFINITION: &str = r#"
name = "web"
uuid = "abababab-abab-4bab-abab-abababababab"
machine = "pc-q35-10.0"
accel = "tcg"
cpu = "max,-avx512f"
vcpus = 2
memory = { size = "1GiB", backend = "file", path = "/dev/shm/web", prealloc = true, share = true }
kernel = "/boot/vmlinuz"
initrd = "/boot/initrd"
append = "console=ttyS0"
serial = { file = "/var/log/web" }
balloon = true
free_page_hint = true
extra_args = ["-device", "virtio-rng-pci"]
numa = [{ vcpus = [0], memory = "512MiB" }, { vcpus = [1], memory = "512MiB" }]

[[disk]]
id = "root"
path = "/images/root.qcow2"
format = "qcow2"
cache = "writeback"

[[disk]]
id = "data"
nbd = "nbd://[fd00::1]:10809/data"
format = "raw"
readonly = true

[[nic]]
id = "lan"
mac = "52:54:00:12:34:56"
bridge = "br0"
"#;

const SOURCE: &str = "10.0.0.1:7464";
const TARGET: &str = "10.0.0.2:7464";

pub(crate) fn definition() -> VmDefinition {
    VmDefinition::from_toml(DEFINITION).unwrap()
}

pub(crate) fn handover() -> Handover {
    Handover {
        migration: MigrationId(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef),
        vm: "web".to_owned(),
        epoch: Epoch(2),
    }
}

/// A point at which an agent ends, and what the next one has to find in its journal.
pub(crate) struct Point {
    /// What the file is called.
    pub(crate) name: &'static str,
    /// All that its journal has.
    pub(crate) records: Vec<Record>,
    /// Ends in the middle of writing the last record.
    pub(crate) torn: bool,
    /// To the handover.
    pub(crate) owes: AfterRestart,
    /// The VM is this host's, in that epoch.
    pub(crate) owns: Option<Epoch>,
    /// Its definition is kept, should it come.
    pub(crate) awaits: bool,
}

pub(crate) fn points() -> Vec<Point> {
    let started = || Record::Started {
        definition: Box::new(definition()),
        epoch: Epoch(1),
    };
    let incoming = || Record::Incoming {
        migration: handover().migration,
        definition: Box::new(definition()),
    };
    let fact = |fact: Fact| Record::Handover { fact };
    let of = |make: fn(Handover) -> Fact| fact(make(handover()));
    let offered = || {
        fact(Fact::Offered {
            handover: handover(),
            peer: TARGET.to_owned(),
        })
    };
    let prepared = || {
        fact(Fact::Prepared {
            handover: handover(),
            peer: SOURCE.to_owned(),
            arbiter: false,
        })
    };
    let released = || {
        of(|handover| Fact::Released {
            handover,
            arbiter: None,
        })
    };
    let reclaimed = || of(|handover| Fact::Reclaimed { handover });
    let rolled_back = || of(|handover| Fact::RolledBack { handover });
    let owned = || of(|handover| Fact::Owned { handover });
    let dropped = || of(|handover| Fact::Dropped { handover });
    let stopped = Record::Stopped {
        vm: "web".to_owned(),
        reason: "the guest shut down".to_owned(),
    };

    let (nothing, roll_back) = (AfterRestart::Nothing, AfterRestart::RollBack(handover()));
    let commit = AfterRestart::Commit(handover(), TARGET.to_owned(), None);
    let ask = AfterRestart::Ask(handover(), SOURCE.to_owned(), false);
    let run = AfterRestart::Run(handover(), SOURCE.to_owned());
    let point = |name, records: Vec<Record>, owes: &AfterRestart, owns: Option<u64>, awaits| Point {
        name,
        records,
        torn: false,
        owes: owes.clone(),
        owns: owns.map(Epoch),
        awaits,
    };
    let forgotten = Record::Forgotten { vm: "web".to_owned() };
    vec![
        point("started", vec![started()], &nothing, Some(1), false),
        point("stopped", vec![started(), stopped], &nothing, Some(1), false),
        point("forgotten", vec![started(), forgotten], &nothing, None, false),
        point("offered", vec![started(), offered()], &roll_back, Some(1), false),
        point(
            "rolled-back",
            vec![started(), offered(), rolled_back()],
            &nothing,
            Some(1),
            false,
        ),
        Point {
            torn: true,
            ..point(
                "release-torn",
                vec![started(), offered(), released()],
                &roll_back,
                Some(1),
                false,
            )
        },
        point(
            "released",
            vec![started(), offered(), released()],
            &commit,
            Some(1),
            false,
        ),
        point(
            "reclaimed",
            vec![started(), offered(), released(), reclaimed()],
            &roll_back,
            Some(2),
            false,
        ),
        point(
            "reclaimed-and-resumed",
            vec![started(), offered(), released(), reclaimed(), rolled_back()],
            &nothing,
            Some(2),
            false,
        ),
        point(
            "handed-over",
            vec![
                started(),
                offered(),
                released(),
                of(|handover| Fact::HandedOver { handover }),
            ],
            &nothing,
            None,
            false,
        ),
        point("incoming", vec![incoming()], &nothing, None, true),
        point("prepared", vec![incoming(), prepared()], &ask, None, true),
        point(
            "dropped",
            vec![incoming(), prepared(), dropped()],
            &nothing,
            None,
            false,
        ),
        Point {
            torn: true,
            ..point("owning-torn", vec![incoming(), prepared(), owned()], &ask, None, true)
        },
        point("owned", vec![incoming(), prepared(), owned()], &run, Some(2), false),
        point(
            "owned-and-dropped",
            vec![incoming(), prepared(), owned(), dropped()],
            &nothing,
            None,
            false,
        ),
        point(
            "taken-over",
            vec![
                incoming(),
                prepared(),
                owned(),
                of(|handover| Fact::TakenOver { handover }),
            ],
            &nothing,
            Some(2),
            false,
        ),
    ]
}
