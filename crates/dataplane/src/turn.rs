//! Lanes work at once, but some steps have to happen in the order of batches: each lane waits here for its batch's turn.

use crate::threads::lock;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// State that only the holder of the next number in order may touch.
#[derive(Debug)]
pub(crate) struct InTurn<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

#[derive(Debug)]
struct State<T> {
    next: u64,
    /// No further turn comes: a lane failed.
    ended: bool,
    value: T,
}

impl<T> InTurn<T> {
    pub(crate) fn new(value: T) -> InTurn<T> {
        InTurn {
            state: Mutex::new(State {
                next: 0,
                ended: false,
                value,
            }),
            changed: Condvar::new(),
        }
    }

    /// Waits for `number`'s turn and does `step`; `None` if the turns were ended meanwhile.
    pub(crate) fn take<R>(&self, number: u64, step: impl FnOnce(&mut T) -> R) -> Option<R> {
        let waiting = |state: &mut State<T>| !state.ended && state.next != number;
        let mut state = self
            .changed
            .wait_while(self.lock(), waiting)
            .unwrap_or_else(PoisonError::into_inner);
        if state.ended {
            return None;
        }
        let result = step(&mut state.value);
        state.next += 1;
        self.changed.notify_all();
        Some(result)
    }

    /// Lets nobody wait any longer.
    pub(crate) fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }

    /// Looks at the state out of turn.
    pub(crate) fn look<R>(&self, look: impl FnOnce(&T) -> R) -> R {
        look(&self.lock().value)
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // A thread that panicked in here has left counters, no invariants; its session ends anyway.
        lock(&self.state)
    }
}
