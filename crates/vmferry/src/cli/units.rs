//! Durations, sizes and rates as people write and read them.

use std::time::Duration;

/// The text is not a quantity of the kind asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {expected}")]
pub struct BadQuantity {
    text: String,
    expected: &'static str,
}

const DURATION: &str = "a duration: write a number and ms, s, m or h, such as 300ms or 10m";
const RATE: &str = "a rate: write a number and bit, kbit, Mbit, Gbit, B/s, kB/s, MB/s, GB/s, KiB/s, MiB/s or GiB/s, such as 1Gbit or 100MB/s";

/// Reads a duration: `300ms`, `2.5s`, `10m`, `1h`. A unit is needed, so that nobody mixes up seconds and milliseconds.
///
/// # Errors
/// [`BadQuantity`] says how durations are written.
pub fn parse_duration(text: &str) -> Result<Duration, BadQuantity> {
    let units = [("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
    let seconds = parse(text, &units, DURATION)?;
    Duration::try_from_secs_f64(seconds).map_err(|_| bad(text, DURATION))
}

/// Reads a rate and gives bytes a second: `1Gbit`, `1Gbit/s`, `100MB/s`, `64MiB/s`.
///
/// # Errors
/// [`BadQuantity`] says how rates are written.
pub fn parse_rate(text: &str) -> Result<u64, BadQuantity> {
    let bits = [
        ("bit", 1.0 / 8.0),
        ("kbit", 1e3 / 8.0),
        ("mbit", 1e6 / 8.0),
        ("gbit", 1e9 / 8.0),
    ];
    let decimal = [("b/s", 1.0), ("kb/s", 1e3), ("mb/s", 1e6), ("gb/s", 1e9)];
    let binary = [("kib/s", 1024.0), ("mib/s", 1048576.0), ("gib/s", 1073741824.0)];
    let units: Vec<_> = bits.into_iter().chain(decimal).chain(binary).collect();
    let lower = text.trim().to_ascii_lowercase();
    let bytes_s = parse(
        lower
            .strip_suffix("bit/s")
            .map(|n| format!("{n}bit"))
            .as_deref()
            .unwrap_or(&lower),
        &units,
        RATE,
    )
    .map_err(|_| bad(text, RATE))?;
    // The largest rate worth writing is far below what u64 holds; a cast would saturate at nonsense.
    (1.0..1e15)
        .contains(&bytes_s)
        .then_some(bytes_s as u64)
        .ok_or_else(|| bad(text, RATE))
}

fn bad(text: &str, expected: &'static str) -> BadQuantity {
    BadQuantity {
        text: text.to_owned(),
        expected,
    }
}

fn parse(text: &str, units: &[(&str, f64)], expected: &'static str) -> Result<f64, BadQuantity> {
    let text = text.trim();
    let number_len = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(number_len);
    let number: f64 = number.parse().map_err(|_| bad(text, expected))?;
    let scale = units
        .iter()
        .find(|(name, _)| *name == unit.trim_start())
        .ok_or_else(|| bad(text, expected))?
        .1;
    Ok(number * scale)
}

/// Bytes with three significant digits and a decimal unit: `44.1 MB`.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1e3;
    let mut unit = 0;
    // 999.5 would print as 1000.
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1e3;
        unit += 1;
    }
    format!("{} {}", three_digits(value), UNITS[unit])
}

/// A rate of bytes: `112 MB/s`.
pub fn rate(bytes_s: f64) -> String {
    format!("{}/s", bytes(bytes_s.max(0.0) as u64))
}

/// Milliseconds, in the unit that reads best: `212 ms`, `6.41 s`, `2 min 05 s`.
pub fn milliseconds(ms: f64) -> String {
    if ms < 999.5 {
        format!(
            "{} ms",
            if ms < 9.95 {
                format!("{ms:.1}")
            } else {
                format!("{ms:.0}")
            }
        )
    } else if ms < 59_950.0 {
        format!("{} s", three_digits(ms / 1e3))
    } else {
        let seconds = (ms / 1e3).round() as u64;
        format!("{} min {:02} s", seconds / 60, seconds % 60)
    }
}

/// An integer with a comma between thousands: `103,411`.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn three_digits(value: f64) -> String {
    if value < 9.995 {
        format!("{value:.2}")
    } else if value < 99.95 {
        format!("{value:.1}")
    } else {
        format!("{value:.0}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_unit_and_may_have_a_fraction() {
        assert_eq!(parse_duration("300ms"), Ok(Duration::from_millis(300)));
        assert_eq!(parse_duration("2.5s"), Ok(Duration::from_millis(2500)));
        assert_eq!(parse_duration("10 m"), Ok(Duration::from_secs(600)));
        assert_eq!(parse_duration("1h"), Ok(Duration::from_secs(3600)));
        for wrong in [
            "300",
            "",
            "ms",
            "-1s",
            "1.2.3s",
            "1d",
            "99999999999999999999999h",
            "1e3s",
        ] {
            let error = parse_duration(wrong).unwrap_err().to_string();
            assert!(error.contains("300ms"), "{error}");
        }
    }

    #[test]
    fn rates_come_in_bits_and_bytes_and_the_case_of_letters_does_not_matter() {
        assert_eq!(parse_rate("1Gbit"), Ok(125_000_000));
        assert_eq!(parse_rate("1gbit/s"), Ok(125_000_000));
        assert_eq!(parse_rate("100Mbit"), Ok(12_500_000));
        assert_eq!(parse_rate("100MB/s"), Ok(100_000_000));
        assert_eq!(parse_rate("64MiB/s"), Ok(64 << 20));
        assert_eq!(parse_rate("2.5 MB/s"), Ok(2_500_000));
        for wrong in ["100", "0Gbit", "1GB", "x", "-5MB/s", "99999999999999999Gbit"] {
            let error = parse_rate(wrong).unwrap_err().to_string();
            assert!(error.contains(wrong) && error.contains("1Gbit"), "{error}");
        }
    }

    #[test]
    fn quantities_print_with_three_digits() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1000), "1.00 kB");
        assert_eq!(bytes(999_600), "1.00 MB");
        assert_eq!(bytes(44_123_000), "44.1 MB");
        assert_eq!(bytes(u64::MAX), "18.4 EB");
        assert_eq!(rate(112_345_678.0), "112 MB/s");
        assert_eq!(milliseconds(0.44), "0.4 ms");
        assert_eq!(milliseconds(212.3), "212 ms");
        assert_eq!(milliseconds(6412.0), "6.41 s");
        assert_eq!(milliseconds(59_960.0), "1 min 00 s");
        assert_eq!(milliseconds(125_000.0), "2 min 05 s");
        assert_eq!(count(1), "1");
        assert_eq!(count(103_411), "103,411");
        assert_eq!(count(1_234_567), "1,234,567");
    }
}
