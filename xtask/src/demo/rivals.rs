//! The same guest with the same content and traffic, moved by QEMU alone.

use std::time::Duration;

use anyhow::{Result, ensure};
use vmferry_e2e::accel::Accel;
use vmferry_e2e::baseline::{self, Mode};
use vmferry_e2e::image::Image;
use vmferry_e2e::net::{Host, Lab};
use vmferry_e2e::qemu::Qemu;

use super::machine::Machine;
use super::moves::{Move, time};
use super::traffic::{self, Traffic};
use crate::screen;

const TIME_MAX: Duration = Duration::from_secs(60);

/// Boots the guest, and moves it there plainly and back by QEMU's parallel compressed mode.
pub(crate) fn show(lab: &Lab, image: &Image, accel: Accel) -> Result<Vec<Move>> {
    screen::section("Beside it: QEMU's own migrations");
    let machine = Machine::new(lab, image, accel, 1)?;
    let step = screen::begin(
        "Guest",
        "booting the same guest under QEMU alone, and filling its Redis",
    );
    let first = Qemu::boot(lab, Host::A, &machine.spec)?;
    let mut guest = traffic::await_guest(lab, machine.spec.address())?;
    traffic::fill(lab, &mut guest)?;
    let traffic = Traffic::start(lab, guest)?;
    step.done("the same guest with the same content and client runs under QEMU alone on host-a");

    let (plain, second) = migrate(lab, &machine, &traffic, [Host::A, Host::B], &first, Mode::Plain)?;
    drop(first);
    let (multifd, _third) = migrate(lab, &machine, &traffic, [Host::B, Host::A], &second, Mode::MultifdZstd)?;
    traffic.finish()?;
    Ok(vec![plain, multifd])
}

fn migrate(
    lab: &Lab,
    machine: &Machine,
    traffic: &Traffic,
    [from, to]: [Host; 2],
    source: &Qemu,
    mode: Mode,
) -> Result<(Move, Qemu)> {
    let step = screen::begin(mode.name(), "moving the guest");
    let target = Qemu::await_guest(lab, to, &machine.spec)?;
    traffic.longest_pause()?;
    let figures = baseline::migrate(lab, from, source, &target, mode, TIME_MAX)?;
    ensure!(
        figures.completed,
        "QEMU's {} migration took longer than {TIME_MAX:?}",
        mode.name()
    );
    let longest_pause = traffic.longest_pause()?;
    step.done(&format!("{} to {} in {}", from.name(), to.name(), time(figures.total)));
    Ok((
        Move {
            by: format!("QEMU {}", mode.name()),
            took: figures.total,
            link_bytes: figures.link_bytes,
            longest_pause,
        },
        target,
    ))
}
