//! Real guests on hosts made of network namespaces: the ground that the end-to-end tests, the demo
//! and the benchmark stand on.
//!
//! | module | what it gives |
//! |---|---|
//! | [`setup`] | the distribution's packages that all this needs |
//! | [`image`] | kernel, initramfs and disks of the guests, built once and cached |
//! | [`accel`] | KVM if a guest really boots under it, else TCG |
//! | [`net`] | two hosts, a storage host, a client and the switch between them |
//! | [`nbd`] | a disk exported by the storage host |
//! | [`etcd`] | three nodes of etcd |
//! | [`agent`] | a `vmferry agent` on such a host, and its command line |
//! | [`pki`] | certificates for a lab's hosts |
//! | [`api`] | the streams of an agent's API |
//! | [`migration`] | a migration under way, and its report |
//! | [`scenario`] | two agents and their guests, and the proof of who runs which |
//! | [`proxy`] | stops two agents at a message, or spoils what crosses |
//! | [`guest`] | a client of the program that runs inside the guests |
//! | [`qemu`] | a plain QEMU with a guest on such a host |
//! | [`definition`] | the same guest as a VM of vmferry |
//! | [`libvirt`] | a stock libvirtd on such a host, and virsh against it |
//! | [`tunnel`] | one end of a `vmferry tunnel` |
//! | [`baseline`] | QEMU's own migrations, measured |
//! | [`memory`] | the memory of two stopped guests compared byte for byte |
//! | [`usage`] | processor time and memory of processes |

pub mod accel;
pub mod agent;
pub mod api;
pub mod baseline;
mod command;
pub mod definition;
pub mod etcd;
pub mod guest;
pub mod image;
pub mod libvirt;
pub mod memory;
pub mod migration;
pub mod nbd;
pub mod net;
pub mod pki;
pub mod proxy;
pub mod qemu;
pub mod scenario;
pub mod setup;
pub mod tunnel;
pub mod usage;
