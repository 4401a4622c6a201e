//! Everything vmferry decides, and nothing it does: this crate has no socket, file, thread, clock or environment. Time
//! is an argument, effects are values, so that the same code runs in the product, in simulation and under a fuzzer.
//!
//! | module | what |
//! |---|---|
//! | [`qemu`] | QEMU's migration stream and its return path: parser and writer |
//! | [`page`] | what crosses the wire for a page: batches, fingerprints, known content, LZ coders |
//! | [`wire`] | frames and messages between two agents |
//! | [`session`] | order and credit of the lanes |
//! | [`handover`] | the four stages as state machines of source and target |
//! | [`controller`] | when to stop the guest |
//! | [`limits`] | every bound on what a peer, a guest or a stream can make us hold |
//! | [`memory`] | what a migration takes of each host's memory, and may take |

pub mod controller;
pub mod handover;
pub mod limits;
pub mod memory;
pub mod page;
pub mod qemu;
pub mod session;
pub mod wire;
