//! The choice of coders in simulated sessions, on recorded costs.

use vmferry_core::page::choice::{
    mixes::{Mix, mixes},
    simulation::{Policy, Session},
    sweep::{Place, Point, held_out, points},
};

/// How much worse than the best fixed coder the choice may be, its first batches and probes included.
const REGRET_MAX: f64 = 1.05;

/// The part of the points that keeps to it at least: of the same ones with other errors of measurement, and of those that
/// were held out.
const OTHER_ERRORS_KEPT_MIN: f64 = 0.999;
const HELD_OUT_KEPT_MIN: f64 = 0.98;

/// Prints what a sweep found, and returns the part that keeps to the bound and the points that do not, the worst first.
fn judged(name: &str, points: &[Point]) -> (f64, Vec<String>) {
    let mut over: Vec<&Point> = points.iter().filter(|point| point.regret() > REGRET_MAX).collect();
    over.sort_by(|a, b| b.regret().total_cmp(&a.regret()));
    let kept = 1.0 - over.len() as f64 / points.len() as f64;
    let mean = points.iter().map(Point::regret).sum::<f64>() / points.len() as f64;
    let worst = points.iter().map(Point::regret).fold(0.0, f64::max);
    println!(
        "{name}: {} points, {kept:.4} of them within {REGRET_MAX}; on average {mean:.4}, at worst {worst:.3}",
        points.len()
    );
    let all = |of: fn(&Point) -> f64| points.iter().map(of).sum::<f64>();
    println!(
        "{name}: {:.4} of the processor time that the best fixed coders take in all, {:.4} of their bytes",
        all(|point| point.chosen.processor_s) / all(|point| point.best().1.processor_s),
        all(|point| point.chosen.wire_bytes as f64) / all(|point| point.best().1.wire_bytes as f64),
    );
    let shown = over.iter().map(|point| format!("{:.3} {point:?}", point.regret()));
    (kept, shown.collect())
}

#[test]
fn the_choice_is_close_to_the_best_fixed_coder_at_every_point() {
    let (_, over) = judged("grid", &points(1));
    assert!(over.is_empty(), "{over:#?}");
}

#[test]
fn the_choice_is_close_to_the_best_fixed_coder_where_nothing_was_adjusted() {
    let (kept, over) = judged("grid, other errors", &points(2));
    assert!(kept >= OTHER_ERRORS_KEPT_MIN, "{over:#?}");
    let (kept, over) = judged("held out", &held_out(2000, 7));
    println!("{:#?}", &over[..over.len().min(10)]);
    assert!(kept >= HELD_OUT_KEPT_MIN, "{over:#?}");
}

fn mix(name: &str) -> Mix {
    mixes().into_iter().find(|mix| mix.name == name).unwrap()
}

#[test]
fn pages_cross_as_they_are_on_a_link_faster_than_the_coders_and_densely_on_a_slow_one() {
    let over = |link_mbit_s, pages| {
        let place = Place {
            link_mbit_s,
            cores: [2, 2],
            shared: false,
            slowness: 1.0,
        };
        Point::run(place, &mix(pages), 1)
    };
    let fast = over(1e5, "heap");
    assert_eq!(fast.best().0, 0, "{fast:?}");
    assert!(fast.chosen.seconds < fast.fixed[1].seconds * 0.9, "{fast:?}");
    let slow = over(10.0, "page cache");
    assert!(slow.best().0 > 2, "{slow:?}");
    assert!(slow.chosen.seconds < slow.fixed[2].seconds, "{slow:?}");
}

#[test]
fn a_target_with_few_processors_counts_as_much_as_a_source_with_few() {
    let mix = mix("page cache");
    let session = |cores: [f64; 2]| Session {
        link_bytes_per_s: 1.25e9,
        source_cores: cores[0],
        target_cores: cores[1],
        shared: false,
        slowness: 1.0,
        mix: &mix,
        seed: 1,
    };
    let narrow = session([64.0, 1.0]);
    let wide = session([64.0, 64.0]);
    let chosen = narrow.run(Policy::Chosen).seconds;
    assert!(chosen > wide.run(Policy::Chosen).seconds);
    assert!(chosen <= narrow.run(Policy::Fixed(5)).seconds * 1.05);
}
