//! The choice of coders in simulated sessions, on recorded costs.

use vmferry_core::page::choice::{
    recorded::Pages,
    simulation::{Policy, Session},
    sweep::{Point, mixes, point, points},
};

/// How much worse than the best fixed coder the choice should be at most, its first batches and probes included.
const REGRET_AIM: f64 = 1.05;

/// The part of all points that keeps to the aim. It should be all of them.
const KEPT_MIN: f64 = 0.97;

/// How bad the worst point is.
const REGRET_MAX: f64 = 1.3;

#[test]
fn the_choice_is_close_to_the_best_fixed_coder() {
    let points: Vec<Point> = points().collect();
    let mut worst: Vec<&Point> = points.iter().filter(|point| point.regret() > REGRET_AIM).collect();
    worst.sort_by(|a, b| b.regret().total_cmp(&a.regret()));
    let kept = 1.0 - worst.len() as f64 / points.len() as f64;
    let shown: Vec<String> = worst
        .iter()
        .take(20)
        .map(|point| format!("{:.3} {point:?}", point.regret()))
        .collect();
    println!(
        "{kept:.4} of {} points keep to {REGRET_AIM}; the worst:\n{}",
        points.len(),
        shown.join("\n")
    );
    assert!(
        kept >= KEPT_MIN,
        "only {kept:.4} keep to {REGRET_AIM}:\n{}",
        shown.join("\n")
    );
    let is_bad = |point: &&&Point| point.regret() > REGRET_MAX;
    assert_eq!(worst.iter().filter(is_bad).count(), 0, "{}", shown.join("\n"));
}

fn mix(name: &str) -> (String, Vec<&'static Pages>) {
    mixes().into_iter().find(|mix| mix.0 == name).unwrap()
}

#[test]
fn pages_cross_as_they_are_on_a_link_faster_than_the_coders_and_densely_on_a_slow_one() {
    let fast = point(1e5, [2, 2], false, 1.0, &mix("heap"));
    assert_eq!(fast.best().0, 0, "{fast:?}");
    assert!(fast.chosen_s < fast.fixed_s[1] * 0.9, "{fast:?}");
    let slow = point(10.0, [2, 2], false, 1.0, &mix("heap"));
    assert!(slow.best().0 > 2, "{slow:?}");
    assert!(slow.chosen_s < slow.fixed_s[2], "{slow:?}");
}

#[test]
fn a_target_with_few_processors_counts_as_much_as_a_source_with_few() {
    let session = |cores: [f64; 2]| Session {
        link_bytes_per_s: 1.25e9,
        source_cores: cores[0],
        target_cores: cores[1],
        shared: false,
        slowness: 1.0,
        batches: mix("page cache").1,
    };
    let narrow = session([64.0, 1.0]);
    let wide = session([64.0, 64.0]);
    assert!(narrow.seconds(Policy::Chosen) > wide.seconds(Policy::Chosen));
    let densest = narrow.seconds(Policy::Fixed(5));
    assert!(narrow.seconds(Policy::Chosen) <= densest * 1.05);
}
