//! Exports of NBD servers.
//!
//! | module | what |
//! |---|---|
//! | [`uri`] | where an export is |
//! | [`export`] | an export as a source of content |
//! | [`connection`] | as much of the protocol as that takes |

pub mod connection;
pub mod export;
pub mod uri;

pub use export::NbdExport;
pub use uri::{NbdServer, NbdUri, NbdUriError};
