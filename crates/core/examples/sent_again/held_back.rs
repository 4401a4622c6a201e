//! What it would gain to keep back pages that are sent again and again.

use crate::stream::{Page, Piece, pages};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Who decides which pages are kept back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// Nobody.
    Nothing,
    /// One who knows what will be sent again: each page is sent once, when QEMU sends it last.
    Oracle,
    /// Pages that QEMU sends in a third round on end, at most so many, until the guest is stopped.
    ThirdTime(usize),
}

impl Rule {
    /// What would be sent in each round.
    pub(crate) fn apply(self, rounds: &[Vec<Piece>]) -> Vec<Vec<Piece>> {
        match self {
            Self::Nothing => rounds.to_vec(),
            Self::Oracle => oracle(rounds),
            Self::ThirdTime(pages_max) => third_time(rounds, pages_max),
        }
    }
}

fn oracle(rounds: &[Vec<Piece>]) -> Vec<Vec<Piece>> {
    let mut last = HashMap::new();
    for (round, pieces) in rounds.iter().enumerate() {
        last.extend(pages(pieces).map(|page| (page, round)));
    }
    let of_round = |(round, pieces): (usize, &Vec<Piece>)| {
        let is_last = |piece: &&Piece| match piece {
            Piece::Page(page, _) => last.get(page) == Some(&round),
            Piece::Bytes(_) => true,
        };
        pieces.iter().filter(is_last).cloned().collect()
    };
    rounds.iter().enumerate().map(of_round).collect()
}

fn third_time(rounds: &[Vec<Piece>], pages_max: usize) -> Vec<Vec<Piece>> {
    let mut held = BTreeMap::new();
    let mut before: [BTreeSet<Page>; 2] = Default::default();
    let mut out = Vec::with_capacity(rounds.len());
    for (round, pieces) in rounds.iter().enumerate() {
        let stopped = round + 1 == rounds.len();
        let mut sent = Vec::with_capacity(pieces.len());
        if stopped {
            for page in pages(pieces) {
                held.remove(&page);
            }
        }
        for piece in pieces {
            let Piece::Page(page, _) = piece else {
                sent.push(piece.clone());
                continue;
            };
            if stopped {
                // Here the stream may have records of pages.
                sent.extend(std::mem::take(&mut held).into_values());
            } else if held.contains_key(page)
                || held.len() < pages_max && before.iter().all(|round| round.contains(page))
            {
                held.insert(*page, piece.clone());
                continue;
            }
            sent.push(piece.clone());
        }
        let [_, last] = before;
        before = [last, pages(pieces).collect()];
        out.push(sent);
    }
    out
}
