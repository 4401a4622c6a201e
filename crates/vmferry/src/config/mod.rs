//! Files that people write: TOML of a version, read with errors that show the place.
//!
//! | module | what |
//! |---|---|
//! | `words` | what is wrong, in words for who wrote it |
//!
//! The agent's configuration and VM definitions are read by this. Files without a version are of version 1: they were
//! written before there were versions, and read as they were then.

mod words;

use std::{
    fmt,
    ops::Range,
    path::{Path, PathBuf},
};

use serde::de::DeserializeOwned;
use toml::{
    Spanned,
    de::{DeTable, DeValue, Deserializer},
};

/// The version of files that is read here. A later one has keys, or meanings of keys, that are not known here.
pub const VERSION: u32 = 1;
/// The key that says which version a file is of.
const VERSION_KEY: &str = "config-version";

/// A file that is TOML, of a version that is read here.
#[derive(Debug, Clone)]
pub struct Document<'text> {
    text: &'text str,
    file: Option<&'text Path>,
    table: Spanned<DeTable<'text>>,
}

/// Something that is wrong in a file: where, and what was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Mistake {
    file: Option<PathBuf>,
    place: Option<Place>,
    what: String,
}

/// A part of a line.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    /// Counted from 1.
    line: usize,
    /// Its first character, counted from 1.
    column: usize,
    /// How many characters.
    width: usize,
    /// All of the line.
    text: String,
}

impl<'text> Document<'text> {
    /// Reads TOML; `file` is what mistakes call it.
    ///
    /// # Errors
    /// That it is none, or of a later version.
    pub fn parse(text: &'text str, file: Option<&'text Path>) -> Result<Self, Mistake> {
        let table = DeTable::parse(text).map_err(|error| Mistake::of(text, file, &error))?;
        let mut document = Self { text, file, table };
        if let Some(version) = document.table.get_mut().remove(VERSION_KEY) {
            document.check_version(&version)?;
        }
        Ok(document)
    }

    /// What it says, as what it is meant to be.
    ///
    /// # Errors
    /// The first key or value that is wrong.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, Mistake> {
        T::deserialize(Deserializer::from(self.table.clone()))
            .map_err(|error| Mistake::of(self.text, self.file, &error))
    }

    /// A mistake in the value of a key such as `memory.size`, or in a part of it: the item of that number, counted from 0, of the
    /// list `disk`. As much of this as there is in the file is shown.
    pub fn mistake(&self, key: &str, item: Option<usize>, what: String) -> Mistake {
        Mistake {
            file: self.file.map(Path::to_owned),
            place: self.find(key, item).map(|span| Place::of(self.text, span)),
            what,
        }
    }

    fn find(&self, key: &str, item: Option<usize>) -> Option<Range<usize>> {
        let mut keys = key.split('.');
        let mut found = self.table.get_ref().get(keys.next()?)?;
        if let Some(item) = item.and_then(|item| found.get_ref().get(item)) {
            found = item;
        }
        for key in keys {
            match found.get_ref().get(key) {
                Some(inner) => found = inner,
                None => break,
            }
        }
        Some(found.span())
    }

    fn check_version(&self, version: &Spanned<DeValue<'_>>) -> Result<(), Mistake> {
        let wrong = |what| Mistake {
            file: self.file.map(Path::to_owned),
            place: Some(Place::of(self.text, version.span())),
            what,
        };
        let number = version
            .get_ref()
            .as_integer()
            .and_then(|number| u32::from_str_radix(number.as_str(), number.radix()).ok());
        let software = env!("CARGO_PKG_VERSION");
        match number {
            Some(VERSION) => Ok(()),
            Some(later) if later > VERSION => Err(wrong(format!(
                "{VERSION_KEY} {later} is read by a later vmferry than this one, {software}, which reads {VERSION}: upgrade it, or \
                 write the file as of {VERSION}"
            ))),
            _ => Err(wrong(format!(
                "{VERSION_KEY} has to be a version: vmferry {software} reads {VERSION}"
            ))),
        }
    }
}

impl Mistake {
    fn of(text: &str, file: Option<&Path>, error: &toml::de::Error) -> Self {
        Self {
            file: file.map(Path::to_owned),
            place: error.span().map(|span| Place::of(text, span)),
            what: words::in_words(error.message()),
        }
    }
}

impl Place {
    /// The first line of a span of bytes, which may end where the text does.
    fn of(text: &str, span: Range<usize>) -> Self {
        let (before, rest) = text.split_at_checked(span.start).unwrap_or((text, ""));
        let line_start = before.rfind('\n').map_or(0, |end| end + 1);
        let line = text[line_start..].lines().next().unwrap_or_default();
        let marked = rest
            .get(..span.len())
            .unwrap_or(rest)
            .lines()
            .next()
            .unwrap_or_default();
        Self {
            line: before.matches('\n').count() + 1,
            column: text[line_start..before.len()].chars().count() + 1,
            width: marked.trim_end().chars().count().max(1),
            text: line.to_owned(),
        }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.file, &self.place) {
            (Some(file), Some(place)) => write!(f, "{}:{}:{}: ", file.display(), place.line, place.column)?,
            (Some(file), None) => write!(f, "{}: ", file.display())?,
            (None, Some(place)) => write!(f, "line {}, column {}: ", place.line, place.column)?,
            (None, None) => {}
        }
        f.write_str(&self.what)?;
        let Some(place) = &self.place else { return Ok(()) };
        let number = place.line.to_string();
        let (margin, indent) = (" ".repeat(number.len()), " ".repeat(place.column - 1));
        let marks = "^".repeat(place.width);
        write!(f, "\n{margin} |\n{number} | {}\n{margin} | {indent}{marks}", place.text)
    }
}

#[cfg(test)]
mod tests;
