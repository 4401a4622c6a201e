//! Breadth first through every state that can be reached, and from each of them to the rest that it comes to.

use super::machines::Map;
use super::mutation::Mutation;
use super::packing::{Packed, Packer};
use super::rules::Broken;
use super::steps::{Bounds, Model, Step};
use super::world::World;
use foldhash::fast::RandomState;
use std::collections::{HashSet, VecDeque};

/// What a search found.
pub(super) struct Found {
    pub(super) states: usize,
    pub(super) steps: usize,
    /// States in which nothing happens any more, of the undisturbed continuations.
    pub(super) rests: usize,
    /// The lists of more than one effect that the machines gave.
    pub(super) lists: Vec<Vec<String>>,
    pub(super) counterexample: Option<Counterexample>,
}

/// How a rule is broken.
pub(super) struct Counterexample {
    pub(super) rule: Broken,
    /// Every step from the beginning, with both QEMUs after it.
    pub(super) trace: String,
}

/// Explores until everything was seen or a rule is broken.
pub(super) fn explore(bounds: Bounds, mutation: Option<Mutation>) -> Found {
    let mut model = Model::new(bounds, mutation);
    let mut search = Search {
        packer: Packer::new(model.begin()),
        model,
        seen: Map::default(),
        parents: Vec::new(),
        settled: HashSet::default(),
        rests: HashSet::default(),
        steps: 0,
    };
    let counterexample = search.run();
    let machinery = &search.model.machinery;
    let given = machinery.sources.given.iter().chain(&machinery.targets.given);
    Found {
        states: search.seen.len(),
        steps: search.steps,
        rests: search.rests.len(),
        lists: given.filter(|list| list.len() > 1).cloned().collect(),
        counterexample,
    }
}

struct Search {
    model: Model,
    packer: Packer,
    /// Each state, and which it was.
    seen: Map<Packed, u32>,
    /// How each state was reached first: from which, and by which of the steps that are possible there.
    parents: Vec<(u32, u16)>,
    /// States whose undisturbed continuation is known to come to a good rest.
    settled: HashSet<Packed, RandomState>,
    rests: HashSet<Packed, RandomState>,
    steps: usize,
}

impl Search {
    fn run(&mut self) -> Option<Counterexample> {
        let first = self.model.begin();
        let first = self.packer.pack(&first);
        let mut frontier = VecDeque::from([first]);
        self.seen.insert(first, 0);
        self.parents.push((0, 0));
        let mut at = 0;
        while let Some(packed) = frontier.pop_front() {
            let world = self.packer.unpack(packed);
            if let Err((rule, tail)) = self.settles(world) {
                return Some(self.counterexample(at, tail, rule));
            }
            for (index, step) in self.model.steps(&world).into_iter().enumerate() {
                self.steps += 1;
                let after = match self.after(&world, step) {
                    Ok(after) => after,
                    Err(rule) => return Some(self.counterexample(at, vec![step], rule)),
                };
                let (after, next) = (self.packer.pack(&after), u32::try_from(self.parents.len()).unwrap());
                self.seen.entry(after).or_insert_with(|| {
                    self.parents.push((at, u16::try_from(index).unwrap()));
                    frontier.push_back(after);
                    next
                });
            }
            at += 1;
        }
        None
    }

    fn after(&mut self, world: &World, step: Step) -> Result<World, Broken> {
        let after = self.model.after(world, step)?;
        Model::broken(&after).map_or(Ok(after), Err)
    }

    /// Follows what happens if nothing fails any more, until nothing happens.
    fn settles(&mut self, mut world: World) -> Result<(), (Broken, Vec<Step>)> {
        // How much might still fail makes no difference to it.
        (world.faults, world.repeats) = (0, 0);
        let mut way = Vec::new();
        let mut tail = Vec::new();
        loop {
            let packed = self.packer.pack(&world);
            if self.settled.contains(&packed) {
                break;
            }
            if way.contains(&packed) {
                return Err(("the hosts never come to an end", tail));
            }
            way.push(packed);
            let Some(step) = self.model.next_undisturbed(&world) else {
                if let Some(rule) = Model::broken_at_rest(&world) {
                    return Err((rule, tail));
                }
                self.rests.insert(packed);
                break;
            };
            tail.push(step);
            world = match self.after(&world, step) {
                Ok(after) => after,
                Err(rule) => return Err((rule, tail)),
            };
        }
        self.settled.extend(way);
        Ok(())
    }

    /// The steps to a state, and on from there.
    fn counterexample(&mut self, mut at: u32, tail: Vec<Step>, rule: Broken) -> Counterexample {
        let mut choices = Vec::new();
        while at != 0 {
            let (parent, choice) = self.parents[at as usize];
            choices.push(choice);
            at = parent;
        }
        let mut world = self.model.begin();
        let mut trace = String::new();
        let mut number = 0;
        let mut take = |model: &mut Model, step: Step, world: &mut World| {
            number += 1;
            let what = model.describe(world, step);
            let qemus = match model.after(world, step) {
                Ok(after) => {
                    *world = after;
                    format!("{:?} | {:?}", after.a_qemu, after.b_qemu)
                }
                Err(_) => String::new(),
            };
            trace.push_str(format!("{number:4} {what:60} {qemus}").trim_end());
            trace.push('\n');
        };
        for choice in choices.into_iter().rev() {
            let step = self.model.steps(&world)[usize::from(choice)];
            take(&mut self.model, step, &mut world);
        }
        for step in tail {
            take(&mut self.model, step, &mut world);
        }
        trace.push_str(&format!("  => {rule}\n"));
        Counterexample { rule, trace }
    }
}
