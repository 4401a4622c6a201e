//! QEMU's stream and return path: the parsers on streams written by hand, generated, damaged and random.

mod followed;
mod lost;
mod properties;
mod return_path;
mod stream;
