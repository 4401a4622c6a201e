//! What serde says of a wrong key or value, in words for who wrote it. Its errors are sentences by the time they come here.

use super::VERSION_KEY;

/// How alike two names are (Jaro-Winkler, 1 for the same) before one is taken for a slip of the other.
const ALIKE_MIN: f64 = 0.8;

/// The kinds of values as serde calls them, and as they are written.
const KINDS: [(&str, &str); 14] = [
    ("u16", "a whole number from 0 to 65535"),
    ("u32", "a whole number from 0 to 4294967295"),
    ("u64", "a whole number, not negative"),
    ("usize", "a whole number, not negative"),
    ("i64", "a whole number"),
    ("a boolean", "true or false"),
    ("a string", "text in quotes"),
    ("path string", "a path in quotes"),
    (
        "socket address",
        "an address and a port in quotes, such as \"0.0.0.0:7464\"",
    ),
    ("a sequence", "a list in brackets, such as [\"a\", \"b\"]"),
    ("a map", "a table"),
    ("sequence", "a list"),
    ("map", "a table"),
    ("unit", "nothing"),
];

/// The sentence in words that name no types of the program's.
pub(super) fn in_words(message: &str) -> String {
    if message.starts_with("unknown field") {
        return unknown("there is no key", message);
    }
    if message.starts_with("unknown variant") {
        return unknown("there is no value", message);
    }
    if let Some(key) = message.strip_prefix("missing field ") {
        return format!("the key {} is missing", key.replace('`', "\""));
    }
    let wrong = ["invalid type: ", "invalid value: ", "invalid length "];
    let wrong = wrong.iter().find_map(|prefix| message.strip_prefix(prefix));
    match wrong.and_then(|rest| rest.rsplit_once(", expected ")) {
        Some((found, expected)) => format!("expected {}, found {}", kind(expected), kind(found).replace('`', "")),
        None => message.to_owned(),
    }
}

/// Names stand between backticks: the one that is not known, then those that are.
fn unknown(what: &str, message: &str) -> String {
    let mut names = message.split('`').skip(1).step_by(2);
    let name = names.next().unwrap_or_default();
    let known: Vec<&str> = names.collect();
    let likeness = |known: &&str| strsim::jaro_winkler(name, known);
    let nearest = known
        .iter()
        .copied()
        .chain([VERSION_KEY])
        .max_by(|a, b| likeness(a).total_cmp(&likeness(b)))
        .filter(|nearest| likeness(nearest) >= ALIKE_MIN);
    match nearest {
        Some(nearest) => format!("{what} {name:?}; did you mean {nearest:?}?"),
        None => format!("{what} {name:?} here, but: {}", known.join(", ")),
    }
}

fn kind(word: &str) -> &str {
    let known = KINDS.iter().find(|(of_serde, _)| *of_serde == word);
    match known {
        Some((_, written)) => written,
        None if word.starts_with("struct ") => "a table",
        None => word,
    }
}
