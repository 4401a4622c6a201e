//! Any line of a monitor is a message or not JSON, and whatever a command answers is what vmferry reads of it or an error. Any text
//! of `info ramblock` has no more blocks than lines.

#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use vmferry_fuzz::within;
use vmferry_qmp::{
    BlockDevice, BlockNode, CpuDefinition, CpuModel, Event, EventKind, Machine, MemorySize, Message, MigrationInfo,
    Status, Version, ramblock,
};

fuzz_target!(|data: &[u8]| {
    let Some((way, bytes)) = data.split_first() else {
        return;
    };
    // A value takes many times its text, and an answer is read as each of its kinds.
    within((64 << 10) + 256 * bytes.len(), || match way % 4 {
        0 => line(bytes),
        // As values of the keys that mean something, which no fuzzer finds at once.
        1 => line(&[br#"{"event":"MIGRATION","data":"#, bytes, b"}"].concat()),
        2 => line(&[br#"{"id":7,"return":"#, bytes, b"}"].concat()),
        _ => {
            let text = String::from_utf8_lossy(bytes);
            if let Ok(blocks) = ramblock::parse(&text) {
                assert!(blocks.len() <= text.lines().count());
            }
        }
    });
});

fn line(bytes: &[u8]) {
    match Message::parse(bytes) {
        Ok(Message::Event(Event { kind, .. })) => {
            if let EventKind::Other(name) = kind {
                assert!(name.len() <= bytes.len());
            }
        }
        Ok(Message::Reply {
            outcome: Ok(answer), ..
        }) => read(answer),
        Ok(_) | Err(_) => {}
    }
}

/// Reads an answer as that of each command. What each makes of another's is only to be no panic.
fn read(answer: Value) {
    let _ = serde_json::from_value::<MigrationInfo>(answer.clone());
    let _ = serde_json::from_value::<Status>(answer.clone());
    let _ = serde_json::from_value::<Version>(answer.clone());
    let _ = serde_json::from_value::<CpuModel>(answer.clone()).map(|model| model.features().count());
    let _ = serde_json::from_value::<MemorySize>(answer.clone());
    let _ = serde_json::from_value::<Vec<BlockNode>>(answer.clone());
    let _ = serde_json::from_value::<Vec<BlockDevice>>(answer.clone());
    let _ = serde_json::from_value::<Vec<Machine>>(answer.clone());
    let _ = serde_json::from_value::<Vec<CpuDefinition>>(answer);
}
