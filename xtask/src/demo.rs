//! `cargo xtask demo`: a real guest moves from host A to host B and back while a client uses it.
//!
//! | module | what |
//! |---|---|
//! | [`machine`] | the guest and its disk |
//! | [`shop`] | what is in its Redis |
//! | [`traffic`] | the client, and what it proves |
//! | [`ferry`] | the guest under vmferry, and its moves |
//! | [`rivals`] | the same guest moved by QEMU alone |
//! | [`moves`] | the table at the end |

mod ferry;
mod machine;
mod moves;
mod rivals;
mod shop;
mod traffic;

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use vmferry_e2e::accel::Accel;
use vmferry_e2e::agent::built_vmferry;
use vmferry_e2e::image::{Extras, image};
use vmferry_e2e::net::{Host, Lab};

use crate::{screen, setup};

/// The hosts' links, million bits a second.
const LINK_MBIT: u32 = 1000;
/// What a shell says of a command that Ctrl-C ended.
const INTERRUPTED: i32 = 130;

/// Sets up, shows everything, and cleans up; on Ctrl-C it cleans up at once.
///
/// # Errors
/// When a step fails or a promise does not hold.
pub(crate) fn run() -> Result<()> {
    setup::run()?;
    let step = screen::begin("Build", "compiling vmferry, release");
    let vmferry = built_vmferry(true)?;
    step.done("vmferry is built, release");

    let step = screen::begin("Hosts", "joining network namespaces by a switch");
    let lab = Arc::new(Lab::new()?);
    for host in [Host::A, Host::B] {
        lab.set_rate(host, Some(LINK_MBIT))?;
    }
    step.done("host-a, host-b, storage and client are joined by a switch; the links carry 1 Gb/s");

    let show = {
        let lab = Arc::clone(&lab);
        move || {
            let image = image(Extras::Redis)?;
            let step = screen::begin("KVM", "booting a probe guest");
            let accel = Accel::probed(&image)?;
            step.done(match accel {
                Accel::Kvm => "a probe guest boots under it: guests run on the processor",
                Accel::Tcg => "a probe guest does not boot under it: guests run under TCG, QEMU's translator",
            });
            let started = Instant::now();
            let mut moves = ferry::show(&lab, &vmferry, &image, accel)?;
            moves.extend(rivals::show(&lab, &image, accel)?);
            screen::section("All moves of the same guest, over the same link");
            screen::text(&moves::table(&moves));
            anyhow::Ok(started.elapsed())
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let shown = runtime.block_on(async {
        tokio::select! {
            shown = tokio::task::spawn_blocking(show) => shown.context("the demo panicked")?,
            Ok(()) = tokio::signal::ctrl_c() => {
                screen::text("\nInterrupted: ending the guests and removing the hosts.\n");
                lab.clean_up();
                // What the demo was doing has lost its ground, and has nothing to say any more.
                std::process::exit(INTERRUPTED);
            }
        }
    });
    lab.clean_up();
    let seconds = shown?.as_secs();
    screen::text(&format!(
        "\nShown in {} min {:02} s; hosts, guests and files are gone again.\n",
        seconds / 60,
        seconds % 60
    ));
    Ok(())
}
