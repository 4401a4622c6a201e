//! Everything between two QEMUs: from the socket that the source's QEMU migrates into, over the lanes, to the socket that
//! the target's QEMU loads from. Threads and sockets only; what is decided is decided in `vmferry-core`, and nothing here
//! knows what a VM definition is, so that the same code can stand between any two QEMUs.
//!
//! ```text
//! source                                                          target
//! QEMU ─▶ reader ─▶ lane: fingerprint │turn│ encode ─▶ TCP ─▶ lane: decode ─▶ writer: reorder, assemble ─▶ QEMU
//!              └──▶ lane: …           │    │        ─▶ TCP ─▶ lane: …     ─┘          │
//!                   acks ◀───────────────────────────────────────────────────────────┘
//! ```
//!
//! Every hand-over between threads is a bounded channel or a credit, so a slow part slows the source's QEMU down instead of
//! filling memory, and little is on its way when the guest stops.
//!
//! | module | what |
//! |---|---|
//! | [`connection`] | connections that carry frames, and outlive their TCP connections |
//! | [`transport`] | what they run over: TLS between hosts of a cluster, or plain TCP |
//! | [`source`] | reader and lanes on the source |
//! | [`target`] | lanes and writer on the target |
//! | [`guest_memory`] | the guest's pages, read and written from outside its QEMU |
//! | `placers` | the threads that write them |
//! | `placement` | which pages the target writes there itself |
//! | `kept` | what the source keeps because the target may ask for it |
//! | `arrivals` | how fast data arrives at the target, over all lanes |
//! | `socket` | a socket of which others can tell what it has received |
//! | `coding` | which coder the lanes use, and what it is decided from |
//! | `processors` | processor time used, and processors to spare |
//! | `turn` | the lanes' taking turns in the order of batches |
//! | `pace` | the limit on bandwidth |
//! | `threads` | threads whose panic is noticed |

mod arrivals;
mod coding;
pub mod connection;
pub mod guest_memory;
mod kept;
mod pace;
mod placement;
mod placers;
mod processors;
mod socket;
pub mod source;
pub mod target;
mod threads;
pub mod transport;
mod turn;
