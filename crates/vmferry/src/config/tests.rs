use std::path::Path;

use serde::Deserialize;

use super::*;

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct Inn {
    name: String,
    beds: u32,
    is_open: bool,
    guests: Vec<String>,
    kitchen: Option<Kitchen>,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kitchen {
    stove: Stove,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Stove {
    Gas,
    Electric,
}

fn mistake(text: &str) -> String {
    let read = Document::parse(text, Some(Path::new("inn.toml"))).and_then(|document| document.read::<Inn>());
    read.unwrap_err().to_string()
}

#[test]
fn a_file_without_a_version_is_of_the_first() {
    let read = |text: &str| Document::parse(text, None).unwrap().read::<Inn>().unwrap();
    assert_eq!(read("beds = 3"), read("config-version = 1\nbeds = 3"));
    assert_eq!(read("config-version = 0x1\nbeds = 3").beds, 3);
}

#[test]
fn a_later_version_is_told_before_what_is_not_known_of_it() {
    let said = mistake("rooms = 4\nconfig-version = 2\n");
    assert!(
        said.starts_with("inn.toml:2:18: config-version 2 is read by a later vmferry"),
        "{said}"
    );
    assert!(
        said.contains(env!("CARGO_PKG_VERSION")) && said.contains("which reads 1"),
        "{said}"
    );
    for version in ["\"1\"", "0", "-1", "1.0", "99999999999"] {
        let said = mistake(&format!("config-version = {version}"));
        assert!(said.starts_with("inn.toml:1:18: config-version has to be"), "{said}");
    }
}

#[test]
fn a_mistake_shows_its_place() {
    assert_eq!(
        mistake("name = \"é\"\n  bed = 3\n"),
        "inn.toml:2:3: there is no key \"bed\"; did you mean \"beds\"?\n  |\n2 |   bed = 3\n  |   ^^^"
    );
    let twice = mistake(&"name = \"a\"\n".repeat(9));
    assert!(
        twice.starts_with("inn.toml:2:") && twice.contains("duplicate key"),
        "{twice}"
    );
    for broken in ["name = ", "[kitchen"] {
        let said = mistake(broken);
        assert!(said.starts_with("inn.toml:1:"), "{said}");
    }
}

#[test]
fn what_was_expected_is_said_in_words() {
    for (text, expected) in [
        (
            "beds = \"3\"",
            "expected a whole number from 0 to 4294967295, found string \"3\"",
        ),
        (
            "beds = -3",
            "expected a whole number from 0 to 4294967295, found integer -3",
        ),
        ("is-open = 1", "expected true or false, found integer 1"),
        ("name = 1", "expected text in quotes, found integer 1"),
        (
            "guests = \"a\"",
            "expected a list in brackets, such as [\"a\", \"b\"], found string \"a\"",
        ),
        ("name = []", "expected text in quotes, found a list"),
        ("kitchen = 1", "expected a table, found integer 1"),
        ("kitchen = {}", "the key \"stove\" is missing"),
        (
            "is_open = true",
            "there is no key \"is_open\"; did you mean \"is-open\"?",
        ),
        ("config_version = 1", "did you mean \"config-version\"?"),
        (
            "xyz = 1",
            "there is no key \"xyz\" here, but: name, beds, is-open, guests, kitchen",
        ),
        (
            "kitchen = { stove = \"elektric\" }",
            "there is no value \"elektric\"; did you mean \"electric\"?",
        ),
        (
            "kitchen = { stove = \"coal\" }",
            "there is no value \"coal\" here, but: gas, electric",
        ),
    ] {
        let said = mistake(text);
        assert!(
            said.starts_with("inn.toml:1:") && said.contains(expected),
            "{text}: {said}"
        );
    }
}

#[test]
fn the_value_of_a_key_is_found_as_far_as_it_is_there() {
    let text = "memory = { size = \"1KiB\" }\n[[disk]]\nid = \"a\"\n[[disk]]\nid = \"b\"\npath = \"c\"\n";
    let document = Document::parse(text, None).unwrap();
    let at = |key, item| document.mistake(key, item, "no".to_owned()).to_string();
    assert!(at("memory.size", None).starts_with("line 1, column 19: no\n"));
    assert!(at("disk.path", Some(1)).starts_with("line 6, column 8: no\n"));
    assert!(
        at("disk.path", Some(0)).starts_with("line 2,"),
        "{}",
        at("disk.path", Some(0))
    );
    assert!(at("memory.backend", None).starts_with("line 1, column 10: no\n"));
    assert_eq!(at("serial", None), "no");
}
