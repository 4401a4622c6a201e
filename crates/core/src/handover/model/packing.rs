//! A world in ten bytes, so that many can be remembered.

use super::machines::Map;
use super::world::{Agent, Arbiter, Journal, Net, World};
use std::hash::Hash;

/// Values by numbers.
struct Numbers<T> {
    values: Vec<T>,
    numbers: Map<T, u16>,
}

impl<T: Copy + Eq + Hash> Numbers<T> {
    fn new() -> Numbers<T> {
        Numbers {
            values: Vec::new(),
            numbers: Map::default(),
        }
    }

    fn number(&mut self, value: T) -> u16 {
        *self.numbers.entry(value).or_insert_with(|| {
            self.values.push(value);
            u16::try_from(self.values.len() - 1).expect("fewer parts of a world than that")
        })
    }

    fn value(&self, number: u16) -> T {
        self.values[usize::from(number)]
    }
}

/// The numbers of its parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Packed([u16; 5]);

/// Packs worlds and unpacks them.
pub(super) struct Packer {
    hosts: Numbers<(Agent, Journal)>,
    nets: Numbers<(Net, Net)>,
    arbiters: Numbers<Arbiter>,
    /// Worlds of which nothing but the rest counts.
    rests: Numbers<World>,
    blank: World,
}

impl Packer {
    /// Any world serves as the blank.
    pub(super) fn new(blank: World) -> Packer {
        Packer {
            hosts: Numbers::new(),
            nets: Numbers::new(),
            arbiters: Numbers::new(),
            rests: Numbers::new(),
            blank,
        }
    }

    pub(super) fn pack(&mut self, world: &World) -> Packed {
        let rest = World {
            a: self.blank.a,
            b: self.blank.b,
            a_journal: self.blank.a_journal,
            b_journal: self.blank.b_journal,
            to_a: self.blank.to_a,
            to_b: self.blank.to_b,
            arbiter: self.blank.arbiter,
            ..*world
        };
        Packed([
            self.hosts.number((world.a, world.a_journal)),
            self.hosts.number((world.b, world.b_journal)),
            self.nets.number((world.to_a, world.to_b)),
            self.arbiters.number(world.arbiter),
            self.rests.number(rest),
        ])
    }

    pub(super) fn unpack(&self, Packed([a, b, net, arbiter, rest]): Packed) -> World {
        let ((a, a_journal), (b, b_journal), (to_a, to_b)) =
            (self.hosts.value(a), self.hosts.value(b), self.nets.value(net));
        World {
            a,
            b,
            a_journal,
            b_journal,
            to_a,
            to_b,
            arbiter: self.arbiters.value(arbiter),
            ..self.rests.value(rest)
        }
    }
}
