//! What the developer commands print for people: steps, sections, findings.

use std::io::{IsTerminal, Write, stdout};

const LABEL_CELLS: usize = 12;
const RULE_CELLS: usize = 96;

/// A step under way: a terminal shows what is being done until it is done.
pub(crate) struct Step {
    label: &'static str,
}

/// Begins the step `label`, in which `doing` goes on.
pub(crate) fn begin(label: &'static str, doing: &str) -> Step {
    if stdout().is_terminal() {
        show(&format!("  {label:<LABEL_CELLS$}  \x1b[2m{doing} …\x1b[0m"));
    }
    Step { label }
}

impl Step {
    /// Says what goes on beside the step and stays on the screen.
    pub(crate) fn say(&self, text: &str) {
        let Self { label } = self;
        show(&format!("{}  {label:<LABEL_CELLS$}  {text}\n", erase()));
    }

    /// Ends the step with what came of it.
    pub(crate) fn done(self, outcome: &str) {
        self.say(outcome);
    }
}

/// Begins a section.
pub(crate) fn section(title: &str) {
    let rule = "─".repeat(RULE_CELLS.saturating_sub(title.chars().count() + 4));
    show(&format!("\n── {} {rule}\n\n", bold(title)));
}

/// Something that was shown to hold.
pub(crate) fn proven(text: &str) {
    let mark = if stdout().is_terminal() {
        "\x1b[32m✓\x1b[0m"
    } else {
        "✓"
    };
    show(&format!("  {mark} {text}\n"));
}

/// A command as a person would type it.
pub(crate) fn typed(command: &str) {
    show(&format!("$ {}\n", bold(command)));
}

/// Text as it is.
pub(crate) fn text(text: &str) {
    show(text);
}

fn bold(text: &str) -> String {
    if stdout().is_terminal() {
        format!("\x1b[1m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}

fn erase() -> &'static str {
    if stdout().is_terminal() { "\r\x1b[K" } else { "" }
}

/// What cannot be written is left out: nothing depends on anyone watching.
fn show(text: &str) {
    let mut output = stdout();
    let _ = output.write_all(text.as_bytes()).and_then(|()| output.flush());
}
