//! The data of the demo's Redis: orders, which stay, and sessions, which the client keeps replacing.
//!
//! Every value follows from its number and version, so that all can be checked and none need be kept.

use std::fmt::Write;

use crate::random::Random;

/// Orders, about 200 MB together.
pub(crate) const ORDERS: u32 = 60_000;
/// Sessions, a few hundred bytes each.
pub(crate) const SESSIONS: u32 = 10_000;

const LINES_PER_ORDER: u32 = 24;

const NAMES: [&str; 24] = [
    "Ada", "Alan", "Barbara", "Claude", "Donald", "Dennis", "Edsger", "Frances", "Grace", "Hedy", "Ivan", "Jean",
    "John", "Karen", "Ken", "Leslie", "Margaret", "Niklaus", "Radia", "Robin", "Shafi", "Tony", "Vint", "Yukihiro",
];
const GOODS: [&str; 20] = [
    "anchor",
    "barometer",
    "brass compass",
    "buoy",
    "chart",
    "deck lamp",
    "fender",
    "ferry ticket",
    "flare",
    "hawser",
    "lantern",
    "life jacket",
    "log book",
    "mooring line",
    "oilskin",
    "pilot ladder",
    "rudder",
    "sextant",
    "signal flag",
    "winch",
];

/// Key and value of an order.
pub(crate) fn order(number: u32) -> (String, String) {
    let mut random = Random::new(number, 0);
    let mut value = format!(
        r#"{{"order":{number},"customer":"{}","placed":{},"lines":["#,
        random.one_of(&NAMES),
        1_700_000_000 + random.below(30_000_000)
    );
    for line in 0..LINES_PER_ORDER {
        let _ = write!(
            value,
            r#"{}{{"article":"{}","sku":"{:016x}","quantity":{},"price":"{}.{:02}","lot":"{:016x}"}}"#,
            if line == 0 { "" } else { "," },
            random.one_of(&GOODS),
            random.next(),
            1 + random.below(9),
            random.below(500),
            random.below(100),
            random.next(),
        );
    }
    value.push_str("]}");
    (format!("order:{number}"), value)
}

/// Key and value of a session in its given version.
pub(crate) fn session(number: u32, version: u32) -> (String, String) {
    let mut random = Random::new(number, version);
    let value = format!(
        r#"{{"session":{number},"version":{version},"user":"{}","basket":["{}","{}"],"token":"{:016x}{:016x}"}}"#,
        random.one_of(&NAMES),
        random.one_of(&GOODS),
        random.one_of(&GOODS),
        random.next(),
        random.next(),
    );
    (format!("session:{number}"), value)
}
