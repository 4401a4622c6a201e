//! `cargo xtask fuzz`: runs the fuzz targets, one after the other.
//!
//! They are built as `cargo-fuzz` builds them, less the sanitizer: the parsers hold no unsafe code, so panics, hangs and memory
//! taken on somebody's word are what can be found. The last the targets see to themselves (`fuzz/src/lib.rs`).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

/// Flags of the compiler: what libFuzzer needs to see which ways an input takes.
const COMPILER_FLAGS: [&str; 10] = [
    "--cfg",
    "fuzzing",
    "-Cdebug-assertions",
    "-Coverflow-checks",
    "-Ccodegen-units=1",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];
/// The longest that one input may take, seconds.
const INPUT_MAX_S: u32 = 10;
/// The most memory that a target may have, MiB, of which all inputs that it found make up the most.
const MEMORY_MAX_MIB: u32 = 1024;

/// The arguments of `fuzz`.
#[derive(Args)]
pub(crate) struct FuzzArgs {
    /// How long each target runs, minutes.
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// The same in seconds.
    #[arg(long, conflicts_with = "minutes")]
    seconds: Option<u64>,
    /// Which run [default: all].
    target: Vec<String>,
}

impl FuzzArgs {
    fn time(&self) -> Duration {
        Duration::from_secs(self.seconds.unwrap_or(self.minutes * 60))
    }
}

/// Builds all targets, runs those asked for, and prints a line of each.
///
/// # Errors
/// When one is not there, does not compile, or has found something: the input is kept and named.
pub(crate) fn run(args: &FuzzArgs) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."));
    let all = targets(&root.join("fuzz/fuzz_targets"))?;
    for name in &args.target {
        ensure!(
            all.contains(name),
            "there is no fuzz target {name}; there are {}",
            all.join(", ")
        );
    }
    let chosen = if args.target.is_empty() { &all } else { &args.target };
    let binaries = build(root)?;
    println!("| target | seconds | executions | inputs kept |\n|---|---|---|---|");
    for name in chosen {
        let found = run_one(root, &binaries.join(name), name, args.time())?;
        println!(
            "| {name} | {} | {} | {} |",
            args.time().as_secs(),
            found.executions,
            found.inputs
        );
    }
    Ok(())
}

/// Every file there is a target.
fn targets(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
    }
    names.sort_unstable();
    Ok(names)
}

/// Builds all, and says where they are.
fn build(root: &Path) -> Result<PathBuf> {
    let host = Command::new("rustc").args(["--print", "host-tuple"]).output()?;
    ensure!(host.status.success(), "rustc does not tell the host: {}", host.status);
    let host = String::from_utf8(host.stdout)?.trim().to_owned();
    let folder = root.join("target/fuzz");
    let status = Command::new("cargo")
        .args(["build", "--quiet", "--release", "--manifest-path"])
        .arg(root.join("fuzz/Cargo.toml"))
        // Named, so that the flags are kept from build scripts, which have no fuzzer to report to.
        .args(["--target", &host, "--target-dir"])
        .arg(&folder)
        .env("CARGO_ENCODED_RUSTFLAGS", COMPILER_FLAGS.join("\x1f"))
        .current_dir(root)
        .status()
        .context("starting cargo")?;
    ensure!(status.success(), "the fuzz targets do not compile");
    Ok(folder.join(host).join("release"))
}

/// What came of a run without a finding.
struct Found {
    executions: u64,
    inputs: u64,
}

/// New inputs go to `target/fuzz/corpus`, those of the repository (`fuzz/seeds`) are only read.
fn run_one(root: &Path, binary: &Path, name: &str, time: Duration) -> Result<Found> {
    let (corpus, seeds) = (
        root.join("target/fuzz/corpus").join(name),
        root.join("fuzz/seeds").join(name),
    );
    let findings = root.join("fuzz/artifacts").join(name);
    for folder in [&corpus, &findings] {
        fs::create_dir_all(folder)?;
    }
    let mut command = Command::new(binary);
    command.arg(&corpus);
    if seeds.is_dir() {
        command.arg(&seeds);
    }
    let output = command
        .arg(format!("-max_total_time={}", time.as_secs()))
        .arg(format!("-timeout={INPUT_MAX_S}"))
        .arg(format!("-rss_limit_mb={MEMORY_MAX_MIB}"))
        .arg(format!("-artifact_prefix={}/", findings.display()))
        .arg("-print_final_stats=1")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting {}", binary.display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!(
            "fuzz target {name} found a failure: its input is in {}\n{said}",
            findings.display()
        );
    }
    let executions = figure(&said, "stat::number_of_executed_units:");
    Ok(Found {
        executions: executions.with_context(|| format!("fuzz target {name} does not tell its executions:\n{said}"))?,
        inputs: fs::read_dir(&corpus)?.count() as u64,
    })
}

/// The number behind `name` in what libFuzzer says at its end.
fn figure(said: &str, name: &str) -> Option<u64> {
    said.lines()
        .find_map(|line| line.strip_prefix(name))?
        .trim()
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_is_built_and_described() {
        let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
        let [manifest, readme] = ["Cargo.toml", "README.md"].map(|name| fs::read_to_string(fuzz.join(name)).unwrap());
        for name in targets(&fuzz.join("fuzz_targets")).unwrap() {
            assert!(
                manifest.contains(&format!("\"fuzz_targets/{name}.rs\"")),
                "{name} is not built"
            );
            assert!(readme.contains(&format!("| `{name}` |")), "{name} is not described");
        }
    }

    #[test]
    fn executions_are_read() {
        let said = "Done 7 runs in 2 second(s)\nstat::number_of_executed_units: 7\nstat::average_exec_per_sec:     3\n";
        assert_eq!(figure(said, "stat::number_of_executed_units:"), Some(7));
        assert_eq!(figure("", "stat::number_of_executed_units:"), None);
    }
}
