//! vmferry: moves running QEMU virtual machines between hosts.
//!
//! | module | what |
//! |---|---|
//! | [`cli`] | the command line |
//! | [`api`] | the agent's HTTP API |
//! | [`agent`] | owning VMs, and moving them |
//! | [`arbiter`] | who decides when another host is gone |
//! | [`doctor`] | what on this host would stop or slow a migration |
//! | [`migrate`] | carrying a handover out, on both sides |
//! | [`config`] | files that people write, and what is wrong in them |
//! | [`content`] | what this host knows of content outside its guests |
//! | [`pki`] | who may talk: certificates |
//! | [`tunnel`] | the data plane alone, for VMs that others own |
//! | [`vm`] | one VM: definition, command line, process |
//! | [`host`] | what a host can take, and what it promised |
//! | [`policy`] | what other hosts may do here |

pub mod agent;
pub mod api;
pub mod arbiter;
pub mod cli;
pub mod config;
pub mod content;
pub mod doctor;
pub mod host;
pub mod migrate;
pub mod pki;
pub mod policy;
pub mod tunnel;
pub mod vm;
