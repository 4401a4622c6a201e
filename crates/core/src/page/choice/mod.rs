//! Which coder a batch goes through, decided from what was measured. Pure: time and processors are arguments.
//!
//! A session is a pipeline of three stages that work at the same time: the source's processors, the link, the target's
//! processors. The slowest decides, so a coder is good if it takes load from that one and does not make another slower.
//! All is counted per byte of QEMU's stream.
//!
//! | module | what |
//! |---|---|
//! | [`mod@predict`] | what a stream byte takes with a coder, stage by stage |
//! | [`kind`] | what a batch has to send, as far as a cheap look tells |
//! | [`costs`] | what each coder costs and saves by kind of page: as recorded, then as measured |
//! | [`link`] | what the link carries, as the target sees it |
//! | [`chooser`] | puts these together: least time, ties to the least work, probes within a budget, no flapping |
//! | [`log`] | what was chosen over stretches of time, and why |
//! | [`recorded`] | costs measured by `coder_costs`: what is assumed before anything is measured |
//! | [`mixes`] | what simulated sessions send |
//! | [`simulation`] | a session in virtual time, on recorded costs |
//! | [`sweep`] | the simulation over links, processors and pages |

pub mod chooser;
pub mod costs;
pub mod kind;
pub mod link;
pub mod log;
pub mod mixes;
pub mod predict;
pub mod recorded;
pub mod simulation;
pub mod sweep;

pub use chooser::{Chooser, Encoded};
pub use costs::Cost;
pub use kind::{Load, PageKind};
pub use link::Link;
pub use log::{Log, Stretch};
pub use predict::{Conditions, Prediction, predict};
