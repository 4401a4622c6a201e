//! `cargo xtask versions`: this version of vmferry and another one move guests between each other, and finish what was under way
//! when an agent of the other version was replaced by this one, at each stage.
//!
//! The other is any revision in the repository's history, built beside this one. Where the two have no version of the protocol in
//! common, they say so when a move is asked for, and what was under way ends once both agents are of this version.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use vmferry_e2e::agent::{build_in, built_vmferry};
use vmferry_e2e::guest::Guest;
use vmferry_e2e::migration::Migration;
use vmferry_e2e::net::{Host, Lab};
use vmferry_e2e::proxy::{Held, Proxy};
use vmferry_e2e::scenario::{Scenario, address, ensure_alive, small_guest};

const VM: &str = "web";
/// So that a move is still in its pre-copy when the agent is replaced.
const SLOWLY: [&str; 2] = ["--bandwidth", "4MB/s"];

/// The arguments of `versions`.
#[derive(Args)]
pub(crate) struct VersionsArgs {
    /// The other version: a tag, a branch, a commit.
    #[arg(long, value_name = "REVISION")]
    with: String,
}

/// Where a move is when an agent is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Pages cross.
    PreCopy,
    /// The target has promised; the source has not heard of it.
    Prepared,
    /// The source has released the VM; the target has not heard of it.
    Released,
}

impl Stage {
    const ALL: [Self; 3] = [Self::PreCopy, Self::Prepared, Self::Released];

    fn name(self) -> &'static str {
        match self {
            Self::PreCopy => "in pre-copy",
            Self::Prepared => "prepared",
            Self::Released => "released",
        }
    }

    /// The message that is held back meanwhile.
    fn held(self) -> Option<&'static str> {
        match self {
            Self::PreCopy => None,
            Self::Prepared => Some("prepared"),
            Self::Released => Some("commit"),
        }
    }

    /// Who has the VM afterwards.
    fn owner(self) -> Host {
        if self == Self::Released { Host::B } else { Host::A }
    }
}

/// Builds the other version, and prints a line for each case. What agents and guests said goes to standard error.
///
/// # Errors
/// When it can't be built, or a case does not end as it has to.
pub(crate) fn run(args: &VersionsArgs) -> Result<()> {
    let (name, theirs) = built_revision(&args.with)?;
    let ours = built_vmferry(false)?;
    println!("| source | target | replaced by this version | outcome |\n|---|---|---|---|");
    let there = moves(&theirs, &ours).with_context(|| format!("a move from {name} to this version"))?;
    println!("| {name} | this | none | {} |", there.outcome());
    let back = moves(&ours, &theirs).with_context(|| format!("a move from this version to {name}"))?;
    println!("| this | {name} | none | {} |", back.outcome());
    let have_common = there == Move::Completed && back == Move::Completed;
    for stage in Stage::ALL {
        for side in [Host::A, Host::B] {
            let what = if side == Host::A { "source" } else { "target" };
            upgrade((&theirs, &ours), stage, side, have_common)
                .with_context(|| format!("the {what}'s agent, replaced {}", stage.name()))?;
            println!(
                "| {name} | {name} | the {what}'s agent, {} | the VM is on {}, and moves |",
                stage.name(),
                stage.owner().name()
            );
        }
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Move {
    Completed,
    NoCommonVersion,
}

impl Move {
    fn outcome(self) -> &'static str {
        match self {
            Self::Completed => "moved, all memory found equal",
            Self::NoCommonVersion => "declined: no version of the protocol in common; the guest runs on",
        }
    }
}

/// A guest of the agent `from` moves to the agent `to`.
fn moves(from: &Path, to: &Path) -> Result<Move> {
    let lab = Lab::new()?;
    let scenario = Scenario::of(&lab, from, to)?;
    let mut guest = guest_on_a(&scenario)?;
    let answer = scenario.a.cli(["migrate", VM, "--to", &address(Host::B), "--verify"])?;
    let printed: Vec<String> = answer.values.iter().map(ToString::to_string).collect();
    let said = format!("{}\n{}", answer.said, printed.join("\n"));
    let outcome = match answer.code {
        Some(0) => Move::Completed,
        _ if said.contains("speaks protocol versions") => Move::NoCommonVersion,
        _ => bail!("{said}"),
    };
    match outcome {
        Move::Completed => scenario.settles(&[], &[VM])?,
        Move::NoCommonVersion => scenario.settles(&[VM], &[])?,
    }
    ensure_alive(&mut guest)?;
    Ok(outcome)
}

fn guest_on_a(scenario: &Scenario) -> Result<Guest> {
    let mut guest = scenario.run(Host::A, VM, &small_guest(0, Vec::new())?)?;
    guest.ask("fill random 25165824")?;
    Ok(guest)
}

/// A move between two agents of the other version, of which that on `side` is replaced at `stage`; what the guest's client says to
/// it must get through, and the next move as well.
fn upgrade((theirs, ours): (&Path, &Path), stage: Stage, side: Host, have_common: bool) -> Result<()> {
    let lab = Lab::new()?;
    let mut scenario = Scenario::of(&lab, theirs, theirs)?;
    let proxy = Proxy::start(&lab)?;
    let guest = guest_on_a(&scenario)?;
    let talk = guest.converse();
    let (migration, held) = begin(&scenario, &proxy, stage)?;

    let (replaced, other) = if side == Host::A {
        (Host::A, Host::B)
    } else {
        (Host::B, Host::A)
    };
    agent(&mut scenario, replaced).stop()?;
    drop(held);
    if side == Host::B && stage.owner() == Host::A {
        let report = migration.report()?;
        ensure!(report["outcome"] == "rolled-back", "{report:#}");
    }
    agent(&mut scenario, replaced).upgrade(ours)?;
    if !have_common {
        agent(&mut scenario, other).upgrade(ours)?;
    }
    settles_on(&scenario, stage.owner())?;
    if have_common {
        agent(&mut scenario, other).upgrade(ours)?;
        settles_on(&scenario, stage.owner())?;
    }
    let (mut guest, _) = talk.finish()?;
    ensure_alive(&mut guest)?;
    let (from, to) = if stage.owner() == Host::A {
        (Host::A, Host::B)
    } else {
        (Host::B, Host::A)
    };
    scenario.moves(VM, from, to, &[])?;
    settles_on(&scenario, to)?;
    ensure_alive(&mut guest)
}

/// Begins a move and waits until it is at `stage`.
fn begin(scenario: &Scenario, proxy: &Proxy, stage: Stage) -> Result<(Migration, Option<Held>)> {
    let Some(message) = stage.held() else {
        let mut migration = Migration::begin(&scenario.a, VM, &address(Host::B), &SLOWLY)?;
        migration.until_precopy()?;
        return Ok((migration, None));
    };
    let held = proxy.hold(message);
    let migration = Migration::begin(&scenario.a, VM, &proxy.address(), &[])?;
    held.reached()?;
    Ok((migration, Some(held)))
}

fn agent<'a, 'lab>(scenario: &'a mut Scenario<'lab>, host: Host) -> &'a mut vmferry_e2e::agent::Agent<'lab> {
    if host == Host::A {
        &mut scenario.a
    } else {
        &mut scenario.b
    }
}

fn settles_on(scenario: &Scenario, host: Host) -> Result<()> {
    match host {
        Host::A => scenario.settles(&[VM], &[]),
        _ => scenario.settles(&[], &[VM]),
    }
}

/// The name and the program of a revision. What was built once is taken again.
fn built_revision(revision: &str) -> Result<(String, PathBuf)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."));
    let named = Command::new("git")
        .args(["rev-parse", "--short", "--verify", &format!("{revision}^{{commit}}")])
        .current_dir(root)
        .output()
        .context("starting git")?;
    ensure!(named.status.success(), "{revision} is no revision of this repository");
    let name = String::from_utf8(named.stdout)?.trim().to_owned();
    let folder = root.join("target/versions").join(&name);
    let program = folder.join("vmferry");
    if program.exists() {
        return Ok((name, program));
    }
    let source = folder.join("source");
    fs::create_dir_all(&source)?;
    let mut archive = Command::new("git")
        .args(["archive", &name])
        .current_dir(root)
        .stdout(Stdio::piped())
        .spawn()?;
    let archived = archive.stdout.take().context("no output of git")?;
    let unpacked = Command::new("tar")
        .args(["-x", "-C"])
        .arg(&source)
        .stdin(archived)
        .status()?;
    ensure!(
        archive.wait()?.success() && unpacked.success(),
        "{name} can't be unpacked"
    );
    // Dependencies are much the same, and compiled once. The program itself takes this version's place, which is built after it.
    let target = root.join("target").display().to_string();
    let built = build_in(&source, &["--target-dir", &target]).with_context(|| format!("building {name}"))?;
    fs::copy(&built, &program)?;
    fs::remove_dir_all(&source)?;
    Ok((name, program))
}
