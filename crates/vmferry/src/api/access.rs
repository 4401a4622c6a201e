//! Who may use the API: root, the agent's own user, and members of the group `vmferry` where there is one. Whoever can use it can
//! start what programs he likes as QEMU's users, and stop every guest.

use std::{
    ffi::CString,
    fs, io,
    os::unix::fs::{PermissionsExt, chown},
    path::Path,
};

use anyhow::Context;
use axum::serve::Listener;
use nix::unistd::{Gid, Group, Uid, User, getgrouplist};
use tokio::net::{UnixListener, UnixStream, unix::SocketAddr};

/// The group whose members may use it.
const GROUP: &str = "vmferry";

/// The API's socket. The kernel's word for who connects counts, beside the file's mode.
#[derive(Debug)]
pub struct ApiListener {
    listener: UnixListener,
    group: Option<Gid>,
}

impl ApiListener {
    /// Binds the socket at `path`; one that an agent left behind is replaced, one that an agent listens on is not.
    ///
    /// # Errors
    /// Why not, for people.
    pub async fn bind(path: &Path) -> anyhow::Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        if UnixStream::connect(path).await.is_ok() {
            anyhow::bail!(
                "another agent answers on {}; stop it, or choose another socket with --socket",
                path.display()
            );
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot replace {}", path.display()));
            }
            _ => {}
        }
        let listener = UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        let group = Group::from_name(GROUP).with_context(|| format!("cannot look up the group {GROUP}"))?;
        let mut group = group.map(|group| group.gid);
        if let Some(gid) = group {
            // Fails for an agent that is neither root nor in that group: then the group can't be let in.
            match chown(path, None, Some(gid.as_raw())) {
                Ok(()) => fs::set_permissions(path, fs::Permissions::from_mode(0o660))?,
                Err(error) => {
                    tracing::warn!(%error, "the group {GROUP} is not let in: its socket can't be given to it");
                    group = None;
                }
            }
        }
        Ok(Self { listener, group })
    }

    fn admits(&self, uid: u32, gid: u32) -> bool {
        uid == 0 || uid == Uid::effective().as_raw() || self.group.is_some_and(|group| is_member(uid, gid, group))
    }
}

impl Listener for ApiListener {
    type Io = UnixStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (UnixStream, SocketAddr) {
        loop {
            // It waits by itself where descriptors are lacking.
            let (stream, address) = Listener::accept(&mut self.listener).await;
            match stream.peer_cred() {
                Ok(peer) if self.admits(peer.uid(), peer.gid()) => return (stream, address),
                Ok(peer) => tracing::warn!(uid = peer.uid(), pid = ?peer.pid(), "may not use the API: turned away"),
                Err(error) => tracing::warn!(%error, "who wants to use the API is not known: turned away"),
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// By the system's list of users, as the process's other groups are not told by its socket.
fn is_member(uid: u32, gid: u32, group: Gid) -> bool {
    if gid == group.as_raw() {
        return true;
    }
    let Ok(Some(user)) = User::from_uid(Uid::from_raw(uid)) else {
        return false;
    };
    let groups = CString::new(user.name).map(|name| getgrouplist(&name, user.gid));
    matches!(groups, Ok(Ok(groups)) if groups.contains(&group))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn strangers_are_turned_away_and_members_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let mut listener = ApiListener::bind(&folder.path().join("socket")).await.unwrap();
        listener.group = Some(Gid::from_raw(4321));
        let own = Uid::effective().as_raw();
        assert!(listener.admits(0, 0) && listener.admits(own, 1));
        assert!(listener.admits(54321, 4321), "by its own group");
        assert!(!listener.admits(54321, 54321));
        listener.group = None;
        assert!(!listener.admits(54321, 4321));
    }

    #[test]
    fn roots_groups_are_in_the_systems_list() {
        assert!(is_member(0, 54321, Gid::from_raw(0)));
        assert!(!is_member(0, 54321, Gid::from_raw(4321)));
    }
}
