//! Memory that the guest fills, and memory that it keeps dirtying at a given rate.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::pages::{Kind, PAGE_BYTES, PAGE_WORDS, mix};
use crate::requests::memory_available;

/// The dirtier wakes this often, so its writes are spread evenly.
const SLICE: Duration = Duration::from_millis(2);
/// Time lost to a pause that is made up for: more would be a burst that no workload asked for.
const CATCH_UP_MAX: Duration = Duration::from_millis(20);

/// Pages of one kind, and the version that each must hold.
struct Region {
    kind: Kind,
    words: Vec<u64>,
    first_word: usize,
    versions: Vec<u32>,
}

impl Region {
    fn new(kind: Kind, bytes: u64) -> Result<Self> {
        let available = memory_available()?;
        ensure!(
            bytes >= PAGE_BYTES && bytes <= available,
            "{bytes} bytes: the guest can spare from {PAGE_BYTES} to {available}"
        );
        let pages = usize::try_from(bytes / PAGE_BYTES)?;
        // One page more than needed, to begin on a page boundary: a workload's page is a guest page.
        let mut words = vec![0u64; (pages + 1) * PAGE_WORDS];
        let misaligned = words.as_ptr().addr() % PAGE_BYTES as usize;
        let first_word = (PAGE_BYTES as usize - misaligned) % PAGE_BYTES as usize / 8;
        for (page, number) in words[first_word..].chunks_exact_mut(PAGE_WORDS).zip(0..).take(pages) {
            kind.write(page, number, 0);
        }
        Ok(Self {
            kind,
            words,
            first_word,
            versions: vec![0; pages],
        })
    }

    fn step(&mut self, number: usize) {
        let start = self.first_word + number * PAGE_WORDS;
        let page = &mut self.words[start..start + PAGE_WORDS];
        self.versions[number] = self.versions[number].wrapping_add(1);
        self.kind.step(page, number as u64, self.versions[number]);
    }

    /// Compares every page with what was written last.
    fn check(&self, sum: &mut Sum) {
        let mut expected = [0u64; PAGE_WORDS];
        let pages = self.words[self.first_word..].chunks_exact(PAGE_WORDS);
        for ((page, number), &version) in pages.zip(0..).zip(&self.versions) {
            self.kind.write(&mut expected, number, version);
            sum.wrong_pages += u64::from(page != expected);
            sum.pages += 1;
            sum.versions += u64::from(version);
            for &word in page {
                sum.hash = mix(sum.hash ^ word);
            }
        }
    }
}

#[derive(Default)]
struct Sum {
    pages: u64,
    wrong_pages: u64,
    versions: u64,
    hash: u64,
}

struct Dirtier {
    run: Arc<AtomicBool>,
    written_bytes: Arc<AtomicU64>,
    started: Instant,
    thread: JoinHandle<()>,
}

impl Dirtier {
    fn rate(&self) -> Value {
        let bytes = self.written_bytes.load(Ordering::Relaxed);
        let seconds = self.started.elapsed().as_secs_f64();
        json!({ "written_bytes": bytes, "bytes_per_s": bytes as f64 / seconds })
    }
}

/// All memory under test.
#[derive(Default)]
pub(crate) struct Memory {
    filled: Mutex<Vec<Region>>,
    dirtied: Mutex<Option<Arc<Mutex<Region>>>>,
    dirtier: Mutex<Option<Dirtier>>,
}

impl Memory {
    /// Fills `bytes` more bytes, which then stay as they are.
    pub(crate) fn fill(&self, kind: Kind, bytes: u64) -> Result<Value> {
        let region = Region::new(kind, bytes)?;
        let pages = region.versions.len();
        lock(&self.filled).push(region);
        Ok(json!({ "pages": pages }))
    }

    /// Writes to `bytes` bytes over and over, page after page, at `rate` bytes of pages per second.
    pub(crate) fn dirty(&self, kind: Kind, bytes: u64, rate: u64) -> Result<Value> {
        let mut dirtier = lock(&self.dirtier);
        if dirtier.is_some() {
            bail!("a dirtier runs already: stop-dirty first");
        }
        // The memory of the dirtier before goes first: there may be no room for both.
        *lock(&self.dirtied) = None;
        let region = Arc::new(Mutex::new(Region::new(kind, bytes)?));
        *lock(&self.dirtied) = Some(Arc::clone(&region));
        let run = Arc::new(AtomicBool::new(true));
        let written_bytes = Arc::new(AtomicU64::new(0));
        let thread = {
            let (region, run, written) = (region, Arc::clone(&run), Arc::clone(&written_bytes));
            thread::spawn(move || keep_dirtying(&region, rate, &run, &written))
        };
        *dirtier = Some(Dirtier {
            run,
            written_bytes,
            started: Instant::now(),
            thread,
        });
        Ok(json!({}))
    }

    /// What the dirtier that runs has achieved so far.
    pub(crate) fn dirty_rate(&self) -> Result<Value> {
        let dirtier = lock(&self.dirtier);
        Ok(dirtier.as_ref().context("no dirtier runs")?.rate())
    }

    /// Ends the dirtier; its memory stays, for [`Memory::sum`].
    pub(crate) fn stop_dirty(&self) -> Result<Value> {
        let dirtier = lock(&self.dirtier).take().context("no dirtier runs")?;
        let rate = dirtier.rate();
        dirtier.run.store(false, Ordering::Relaxed);
        if dirtier.thread.join().is_err() {
            bail!("the dirtier panicked");
        }
        Ok(rate)
    }

    /// Checks every page against what was written to it last. The dirtier waits meanwhile.
    pub(crate) fn sum(&self) -> Value {
        let mut sum = Sum::default();
        for region in lock(&self.filled).iter() {
            region.check(&mut sum);
        }
        if let Some(region) = lock(&self.dirtied).as_ref() {
            lock(region).check(&mut sum);
        }
        json!({
            "pages": sum.pages,
            "wrong_pages": sum.wrong_pages,
            "versions": sum.versions,
            "hash": format!("{:016x}", sum.hash),
        })
    }
}

fn keep_dirtying(region: &Mutex<Region>, rate: u64, run: &AtomicBool, written: &AtomicU64) {
    let per_second = rate as f64 / PAGE_BYTES as f64;
    let mut next = 0;
    let mut credit_pages = 0.0;
    let mut last = Instant::now();
    while run.load(Ordering::Relaxed) {
        thread::sleep(SLICE);
        let elapsed = last.elapsed();
        last += elapsed;
        credit_pages += per_second * elapsed.min(CATCH_UP_MAX).as_secs_f64();
        let mut region = lock(region);
        let pages = region.versions.len();
        // Never more than the whole region at a time: `sum` and `stop-dirty` must get their turn.
        let now = (credit_pages as usize).min(pages);
        credit_pages = (credit_pages - now as f64).min(pages as f64);
        for _ in 0..now {
            region.step(next);
            next = (next + 1) % pages;
        }
        drop(region);
        written.fetch_add(now as u64 * PAGE_BYTES, Ordering::Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
