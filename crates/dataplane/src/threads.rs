//! Threads whose panic does not go unnoticed: what waits for one that died would wait for ever.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

/// Runs `run` on a thread of that name, and `panicked` on the same one if it panics.
pub(crate) fn spawn(
    name: String,
    run: impl FnOnce() + Send + 'static,
    panicked: impl FnOnce() + Send + 'static,
) -> io::Result<()> {
    let watched = move || {
        let _watch = Watch(Some(panicked));
        run();
    };
    thread::Builder::new().name(name).spawn(watched).map(drop)
}

/// What is behind the mutex, whatever became of others that held it: a thread that panicked ends the session, and what it left
/// half done are figures, or is not looked at any more.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Watch<F: FnOnce()>(Option<F>);

impl<F: FnOnce()> Drop for Watch<F> {
    fn drop(&mut self) {
        if thread::panicking()
            && let Some(panicked) = self.0.take()
        {
            panicked();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn a_panic_is_told_and_an_ordinary_end_is_not() {
        for panics in [true, false] {
            let (tell, told) = channel();
            let run = move || assert!(!panics, "on purpose");
            spawn("test".to_owned(), run, move || tell.send(()).unwrap()).unwrap();
            // The end of the thread drops the sender.
            assert_eq!(told.recv().is_ok(), panics);
        }
    }
}
