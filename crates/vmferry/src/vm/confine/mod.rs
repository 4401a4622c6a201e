//! What keeps a QEMU from the rest of its host: a user of its own, a filter of system calls, a cgroup.
//!
//! | module | what |
//! |---|---|
//! | [`user`] | the user that a VM's QEMU runs as |
//! | [`cgroup`] | a cgroup for each |

pub mod cgroup;
pub mod user;

use std::{
    collections::BTreeSet,
    io,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

pub use cgroup::{CgroupParent, VmCgroup};
pub use user::{UserRange, VmUser};
pub(crate) use user::{field, group_for_kvm};

/// What QEMU's own filter forbids: becoming somebody else, running programs, and its share of the processors; and system calls
/// that nobody uses any more.
pub const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// How QEMUs are confined here.
#[derive(Debug, Clone, Default)]
pub struct Confinement {
    /// Users that they run as; none for the agent's own.
    pub users: Option<UserRange>,
    /// Whether QEMU can filter its system calls.
    pub sandbox: bool,
    /// Where their cgroups are made; none where that can't be done.
    pub cgroups: Option<CgroupParent>,
    /// What of these is not to be had, and why.
    pub lacks: Vec<String>,
    /// Users of QEMUs that are being started.
    starting: Arc<Mutex<BTreeSet<u32>>>,
}

/// The user of a QEMU that is being started. Nobody else is given it while this lives, nor while there is a process of it.
#[derive(Debug)]
pub struct StartingUser {
    user: VmUser,
    starting: Arc<Mutex<BTreeSet<u32>>>,
}

impl StartingUser {
    /// Who it is.
    pub fn user(&self) -> VmUser {
        self.user
    }
}

impl Drop for StartingUser {
    fn drop(&mut self) {
        let mut starting = self.starting.lock().unwrap_or_else(PoisonError::into_inner);
        starting.remove(&self.user.uid);
    }
}

impl Confinement {
    /// What can be done on this host, whose QEMU has a filter or not.
    pub fn find(users: UserRange, sandbox: bool) -> Self {
        let mut lacks = Vec::new();
        let users = match user::can_use(users) {
            Ok(()) => Some(users),
            Err(why) => {
                lacks.push(format!("QEMUs run as the agent's own user: {why}"));
                None
            }
        };
        if !sandbox {
            lacks.push("QEMUs may call everything in the kernel: this QEMU is built without seccomp".to_owned());
        }
        let cgroups = match CgroupParent::find() {
            Ok(parent) => Some(parent),
            Err(why) => {
                lacks.push(format!("QEMUs have no cgroups of their own: {why}"));
                None
            }
        };
        Self {
            users,
            sandbox,
            cgroups,
            lacks,
            starting: Arc::default(),
        }
    }

    /// Chooses the user for the QEMU of the VM `name`; none where QEMUs run as the agent's own. `kvm` says whether the kernel
    /// runs its CPUs.
    ///
    /// # Errors
    /// The system's, or every user is taken.
    pub fn choose_user(&self, name: &str, kvm: bool) -> io::Result<Option<StartingUser>> {
        let Some(users) = self.users else { return Ok(None) };
        let mut starting = self.starting.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = user::users_of_processes()?;
        taken.extend(starting.iter());
        let uid = users
            .for_vm(name, &taken)
            .ok_or_else(|| io::Error::other(format!("all users from {users} are taken; give the agent more")))?;
        let gid = match kvm {
            true => user::group_for_kvm(Path::new("/dev/kvm"))?,
            false => None,
        };
        starting.insert(uid);
        Ok(Some(StartingUser {
            user: VmUser {
                uid,
                gid: gid.unwrap_or(uid),
            },
            starting: self.starting.clone(),
        }))
    }
}
