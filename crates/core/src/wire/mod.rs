//! What two agents, or the two ends of a tunnel, say to each other: a preface, then frames, on a control lane and on N data lanes.
//!
//! Every connection begins with [`PREFACE`], so that a stray client is recognised by its first eight bytes, then carries
//! [`frame`]s only. The first frame each way is a [`Hello`](hello::Hello) or its answer; what follows depends on the lane:
//!
//! | lane | source to target | target to source |
//! |---|---|---|
//! | control | [`Message`](message::Message) frames | the same, and QEMU's return path |
//! | tunnel | [`tunnel::Message`] frames, and bytes that are no migration stream | the same, and QEMU's return path |
//! | data | batches ([`crate::page`]) | acknowledgements, which are also the credit ([`crate::session`]) |
//!
//! A later transport (TLS) wraps the whole connection, preface included; nothing in here changes for it.

pub mod frame;
pub mod hello;
pub mod message;
pub mod tunnel;

/// The first bytes of every connection, both ways. The last one is the framing's generation: it changes only if frames
/// themselves do; what is inside them is versioned by the hello.
pub const PREFACE: [u8; 8] = *b"vmferry\x02";
