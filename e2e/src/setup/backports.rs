//! The release's backports, from where the release itself comes.
//!
//! The new source is the existing one with another suite, so it has the same server, components and
//! keys, whatever mirror this machine uses.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

const SOURCES: &str = "/etc/apt/sources.list.d";

/// The name of the release's backports suite.
pub(super) fn suite() -> Result<String> {
    let release = fs::read_to_string("/etc/os-release").context("reading /etc/os-release")?;
    let value = |key: &str| {
        let line = release.lines().find_map(|line| line.strip_prefix(key))?;
        Some(line.trim_matches('"').to_owned())
    };
    let codename = value("VERSION_CODENAME=").context("/etc/os-release has no VERSION_CODENAME")?;
    Ok(format!("{codename}-backports"))
}

/// Adds `suite` beside the release's own; returns whether it had to.
pub(super) fn enable(suite: &str) -> Result<bool> {
    let release = suite.trim_end_matches("-backports");
    let mut files: Vec<PathBuf> = fs::read_dir(SOURCES)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    files.push(PathBuf::from("/etc/apt/sources.list"));
    let mut found = None;
    for path in files {
        let format = match path.extension().and_then(|end| end.to_str()) {
            Some("sources") => Format::Stanzas,
            Some("list") => Format::Lines,
            _ => continue,
        };
        let Ok(text) = fs::read_to_string(&path) else {
            continue;
        };
        if with_suite(format, &text, suite, suite).is_some() {
            return Ok(false);
        }
        found = found.or_else(|| Some((format, with_suite(format, &text, release, suite)?)));
    }
    let (format, text) = found.with_context(|| format!("no package source has {release}"))?;
    let end = match format {
        Format::Stanzas => "sources",
        Format::Lines => "list",
    };
    let path = Path::new(SOURCES).join(format!("vmferry-backports.{end}"));
    ensure!(
        !path.exists(),
        "{} exists and does not give {suite}: remove it",
        path.display()
    );
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    Ok(true)
}

/// The two formats of apt's sources (sources.list(5)): deb822 stanzas, and one source a line.
#[derive(Clone, Copy, Debug)]
enum Format {
    Stanzas,
    Lines,
}

/// The first source of binary packages in `text` that has the suite `has`, with `wanted` as its only
/// suite.
fn with_suite(format: Format, text: &str, has: &str, wanted: &str) -> Option<String> {
    match format {
        Format::Stanzas => text
            .split("\n\n")
            .find_map(|stanza| stanza_with_suite(stanza, has, wanted)),
        Format::Lines => text.lines().find_map(|line| line_with_suite(line, has, wanted)),
    }
}

fn stanza_with_suite(stanza: &str, has: &str, wanted: &str) -> Option<String> {
    let fields = || stanza.lines().filter(|line| !line.starts_with('#'));
    let value = |key: &str| fields().find_map(|line| line.strip_prefix(key));
    let lists =
        |key: &str, word: &str| value(key).is_some_and(|list| list.split_whitespace().any(|listed| listed == word));
    if !lists("Types:", "deb") || !lists("Suites:", has) {
        return None;
    }
    if value("Enabled:").is_some_and(|enabled| enabled.trim() == "no") {
        return None;
    }
    let mut result = String::new();
    for line in fields() {
        if line.starts_with("Suites:") {
            result.push_str(&format!("Suites: {wanted}"));
        } else {
            result.push_str(line);
        }
        result.push('\n');
    }
    Some(result)
}

fn line_with_suite(line: &str, has: &str, wanted: &str) -> Option<String> {
    // `deb [options] URI suite component…`; the options may hold spaces.
    let rest = line.trim().strip_prefix("deb ")?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => {
            let (options, rest) = rest.split_once(']')?;
            (format!("[{options}] "), rest)
        }
        None => (String::new(), rest),
    };
    let mut words = rest.split_whitespace();
    let (uri, suite) = (words.next()?, words.next()?);
    let components: Vec<&str> = words.collect();
    (suite == has).then(|| format!("deb {options}{uri} {wanted} {}\n", components.join(" ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STANZAS: &str = "Types: deb\n\
        URIs: http://mirror.example/debian-security\n\
        Suites: bookworm-security\n\
        Components: main\n\
        \n\
        Types: deb deb-src\n\
        # a comment\n\
        URIs: http://mirror.example/debian\n\
        Suites: bookworm bookworm-updates\n\
        Components: main contrib\n\
        Signed-By: /usr/share/keyrings/archive.gpg\n";

    #[test]
    fn a_stanza_keeps_all_but_its_suites() {
        let source = with_suite(Format::Stanzas, STANZAS, "bookworm", "bookworm-backports");
        assert_eq!(
            source.unwrap(),
            "Types: deb deb-src\n\
             URIs: http://mirror.example/debian\n\
             Suites: bookworm-backports\n\
             Components: main contrib\n\
             Signed-By: /usr/share/keyrings/archive.gpg\n"
        );
    }

    #[test]
    fn a_suite_is_a_whole_word() {
        let found = with_suite(Format::Stanzas, STANZAS, "bookworm-backports", "any");
        assert_eq!(found, None);
    }

    #[test]
    fn a_disabled_stanza_is_no_source() {
        let disabled = "Enabled: no\nTypes: deb\nURIs: http://m.example\nSuites: bookworm\n";
        let found = with_suite(Format::Stanzas, disabled, "bookworm", "any");
        assert_eq!(found, None);
    }

    #[test]
    fn a_line_keeps_its_options() {
        let lines = "# deb http://old.example bookworm main\n\
            deb-src http://mirror.example/debian bookworm main\n\
            deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian bookworm main contrib\n";
        let source = with_suite(Format::Lines, lines, "bookworm", "bookworm-backports");
        assert_eq!(
            source.unwrap(),
            "deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian bookworm-backports \
             main contrib\n"
        );
    }
}
