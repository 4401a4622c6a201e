//! The target's one thread that works in the order of batches: puts them in order, assembles them, has their pages placed by
//! [`Placers`], then gives QEMU what is left and acknowledges.

use super::{Arrived, Ordered, Shared};
use crate::coding::{Bill, Spent};
use crate::connection::Sender;
use crate::placement::Placement;
use crate::placers::{BATCHES_MAX, Placed, Placers};
use crate::threads::lock;
use crossbeam_channel::{Receiver as Inbox, Sender as Outbox, select};
use std::collections::VecDeque;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use vmferry_core::page::{Op, ReadError};
use vmferry_core::session::{Ack, Reorder, Whole};
use vmferry_core::wire::frame::Kind;

/// What the writer does its work with.
pub(super) struct Writer {
    shared: Arc<Shared>,
    lanes: Vec<Arc<Mutex<Sender>>>,
    acks: Vec<Ack>,
    /// Where the source has a choice to make by it.
    bill: Option<Bill>,
    /// Connected to when the first bytes are there.
    qemu: Option<UnixStream>,
    /// Batches that came before their turn.
    reorder: Reorder<Arrived>,
    placers: Placers,
    /// Batches whose pages are being written, in order.
    under_way: VecDeque<UnderWay>,
    /// Buffers for the lanes to decode into.
    returned: Outbox<Vec<u8>>,
}

/// An assembled batch.
struct UnderWay {
    seq: u64,
    stream_bytes: u64,
    /// Parts of it that are still being written.
    parts_left: usize,
    for_qemu: Vec<u8>,
    lane: usize,
    wire_bytes: u64,
    spent: Spent,
}

impl Writer {
    pub(super) fn new(
        shared: Arc<Shared>,
        lanes: Vec<Arc<Mutex<Sender>>>,
        placers: Placers,
        returned: Outbox<Vec<u8>>,
    ) -> Self {
        Self {
            bill: (shared.settings.coders.is_choice()).then(|| Bill::new(shared.arrivals.clone())),
            shared,
            acks: vec![Ack::default(); lanes.len()],
            reorder: Reorder::new(lanes.len()),
            lanes,
            qemu: None,
            placers,
            under_way: VecDeque::new(),
            returned,
        }
    }

    /// Works until the lanes have ended.
    pub(super) fn run(mut self, inbox: &Inbox<Arrived>) -> Result<(), String> {
        let placed = self.placers.placed.clone();
        loop {
            select! {
                recv(inbox) -> arrived => match arrived {
                    Ok(arrived) => self.arrived(arrived)?,
                    Err(_) => return Ok(()),
                },
                recv(placed) -> placed => match placed {
                    Ok(Ok(placed)) => self.placed(&placed),
                    Ok(Err(error)) => return Err(format!("can't write the target guest's memory: {error}")),
                    Err(_) => return Err("nobody writes the target guest's memory any more".to_owned()),
                },
            }
            self.advance()?;
        }
    }

    fn arrived(&mut self, arrived: Arrived) -> Result<(), String> {
        let (seq, charge) = (arrived.whole.decoded.seq(), arrived.whole.decoded.charge());
        let put = self.reorder.put(seq, charge, arrived);
        put.map_err(|error| error.to_string())
    }

    fn placed(&mut self, placed: &Placed) {
        let mut under_way = self.under_way.iter_mut();
        if let Some(under_way) = under_way.find(|under_way| under_way.seq == placed.seq) {
            under_way.parts_left -= 1;
            under_way.spent.place += placed.processor;
        }
    }

    /// Does all that can be done now.
    fn advance(&mut self) -> Result<(), String> {
        loop {
            self.finish_placed()?;
            if self.under_way.len() >= BATCHES_MAX {
                return Ok(());
            }
            let Some(arrived) = self.reorder.take() else {
                return Ok(());
            };
            let under_way = self.shared.assemble(arrived, &self.placers)?;
            self.under_way.push_back(under_way);
            while let Some(buffer) = lock(&self.shared.ordered).assembler.spent() {
                // Full when the lanes have enough.
                let _ = self.returned.try_send(buffer);
            }
        }
    }

    /// Gives QEMU what is left of the oldest batches as far as they are placed, and acknowledges them.
    fn finish_placed(&mut self) -> Result<(), String> {
        while let Some(done) = self.under_way.pop_front_if(|oldest| oldest.parts_left == 0) {
            if !done.for_qemu.is_empty() {
                let qemu = match &mut self.qemu {
                    Some(qemu) => qemu,
                    None => self.qemu.insert(self.shared.connect()?),
                };
                qemu.write_all(&done.for_qemu)
                    .map_err(|error| format!("the target's QEMU stopped reading: {error}"))?;
            }
            let ack = &mut self.acks[done.lane];
            ack.stream_bytes += done.stream_bytes;
            ack.wire_bytes += done.wire_bytes;
            ack.refused = self.shared.costs.refused();
            if let Some(bill) = &mut self.bill {
                bill.add(done.spent, ack);
            }
            let sent = lock(&self.lanes[done.lane]).send(Kind::Ack, ack.encode().to_vec());
            sent.map_err(|error| format!("lane {}: {error}", done.lane))?;
        }
        Ok(())
    }
}

impl Shared {
    /// Assembles the next batch and has its pages written.
    fn assemble(&self, arrived: Arrived, placers: &Placers) -> Result<UnderWay, String> {
        let Arrived { lane, whole } = arrived;
        let Whole {
            decoded,
            wire_bytes,
            note: spent,
        } = whole;
        let mut ordered = lock(&self.ordered);
        // From then on the guest's memory is nobody's but the guest's.
        if self.loaded.load(Ordering::SeqCst) || self.closed.load(Ordering::SeqCst) {
            return Err("the source sends more than its QEMU's stream".to_owned());
        }
        let Ordered {
            assembler,
            memory,
            placement,
        } = &mut *ordered;
        let batch = assembler
            .apply(decoded, &mut |block, offset, into| match memory {
                Some(memory) => memory
                    .read(block, offset, into)
                    .map_err(|error| ReadError(error.to_string())),
                None => Err(ReadError(
                    "it lies beyond what this host keeps and may not be read".to_owned(),
                )),
            })
            .map_err(|error| error.to_string())?;
        for op in batch.ops() {
            // Nothing was placed before, so nobody else holds the memory.
            if let (Op::Blocks(blocks), Some(memory)) = (op, memory.as_mut().and_then(Arc::get_mut)) {
                memory.set_blocks(blocks);
                *placement = Some(Placement::new(memory, blocks, batch.page_bytes()));
            }
        }
        let (writes, for_qemu) = match placement {
            Some(placement) => placement.plan(&batch),
            None => (Vec::new(), batch.stream().into()),
        };
        let parts_left = memory
            .as_ref()
            .map_or(0, |memory| placers.start(memory, &batch, writes));
        Ok(UnderWay {
            seq: batch.seq,
            stream_bytes: batch.stream().len() as u64,
            parts_left,
            for_qemu: for_qemu.into_owned(),
            lane,
            wire_bytes,
            spent,
        })
    }
}
