//! `cargo xtask setup`: the distribution's packages and the guests' images that tests, demo and benchmark need.

use anyhow::Result;
use vmferry_e2e::image::{Extras, image};
use vmferry_e2e::setup::setup;

use crate::screen::begin;

/// Installs what is missing, says so first, and builds the images. Does nothing where all is there.
///
/// # Errors
/// Where that is impossible: the message says what to do by hand.
pub(crate) fn run() -> Result<()> {
    let step = begin("Packages", "looking for what is missing");
    setup(&mut |text| step.say(text))?;
    step.done("QEMU, Redis and all else that is needed are installed");

    let step = begin(
        "Images",
        "fetching a kernel package, which is not installed, and compiling the guest program",
    );
    image(Extras::None)?;
    image(Extras::Redis)?;
    step.done("guest kernel and initramfs are built");
    Ok(())
}
